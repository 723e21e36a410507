"""The run that a server serves, and how it takes up a grown one."""

import threading
from collections.abc import Callable
from pathlib import Path

from see_lightning.engine.ensemble import Ensemble
from see_lightning.engine.latest import find_run
from see_lightning.serving.engine import Engine
from see_lightning.serving.openai_form import ModelNames


class ServedRun:
    """A run under the name by which clients ask it.

    Args:
        path: a run directory, or another path that ``find_run`` takes, such as ``runs/<order>/<method>/latest``: a grown run
            is found there when the server is told to reload.
        load: loads the ensemble of a run directory.
        name: for clients; None makes it of the path, ``<order>-<method>``.
    """

    def __init__(self, path: Path, load: Callable[[Path], Ensemble], name: str | None = None) -> None:
        self.path, self._load = path, load
        self.directory = find_run(path)
        self.ensemble = load(self.directory)
        self._name = name or run_name(self.directory)
        self.names = ModelNames(self._name, self.ensemble.experts())
        self._reloading = threading.Lock()

    def reload(self, engine: Engine) -> None:
        """Load the run that the path names now; requests that are being answered end with the one they began with.

        Raises:
            Refusal: there is no such run, or it is damaged; the one that is served stays.
        """
        with self._reloading:
            directory = find_run(self.path)
            ensemble = self._load(directory)
            engine.replace(ensemble)
            self.directory, self.ensemble = directory, ensemble
            self.names = ModelNames(self._name, ensemble.experts())

    def count_tokens(self, text: str) -> int:
        """Tokens of an answer's text."""
        return len(self.ensemble.method.template.tokenizer(text, add_special_tokens=False)["input_ids"])


def run_name(directory: Path) -> str:
    """The name of a run for clients.

    >>> run_name(Path("runs/pocket_5/see/1a2b3c4d/seed=0"))
    'pocket_5-see'
    """
    return "-".join(directory.parts[-4:-2]) or directory.name
