"""The interface of trackers, which show a run to its user while it goes on, and what they share.

Results do not depend on the tracker, nor on its failure. Reports are made in a thread, an error becomes a notice, and the run
waits at most ``timeout`` seconds for the tracker at its end.
"""

import importlib.util
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from see_lightning.config.checks import within
from see_lightning.config.instantiate import instantiate
from see_lightning.engine.preemption import StopSignal
from see_lightning.engine.relay import Relay, notice
from see_lightning.errors import ConfigError
from see_lightning.files.reading import file_bytes
from see_lightning.files.writing import refuse_links

TIMEOUT = 30.0  # seconds
_ID = re.compile(r"[^/\\#?%:\s\x00-\x1f\ufffd]{1,128}")  # ids that W&B accepts; those of MLflow are hex digits


class Tracker:
    """The interface of trackers; reports nothing itself. A context, so that it is closed however the run ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        match error:
            case None:
                self.close(0)
            case SystemExit(code=int(code)):
                self.close(code, goes_on=True)
            case KeyboardInterrupt():
                self.close(128 + signal.SIGINT, goes_on=True)
            case _:
                self.close(1)

    def open(self, directory: Path, config: Mapping[str, Any], stop_signal: StopSignal) -> None:
        """Begin tracking a run, or continue it, before training.

        Args:
            directory: of the run.
            config: resolved, as plain containers.
            stop_signal: shortens every wait.

        Raises:
            ConfigError: the tracker cannot be used with these settings.
        """

    def stage(self, task: str, folder: Path) -> Logger | Literal[False]:
        """The logger for a task's Trainer; ``folder`` is that of its stage."""
        return False

    def score(self, *, after: int, task: str, score: float) -> None:
        """Report a cell of the results matrix: the score (0..100) on a task after ``after`` tasks, from 1."""

    def finish(self, results: Mapping[str, Any], report: Path) -> None:
        """Report the finished run: the content of ``results.json``, and the path of ``report.html``."""

    def close(self, code: int, *, goes_on: bool = False) -> None:
        """Close with the run's exit code; ``goes_on``: the run was stopped and can be resumed."""


def needs(package: str, extra: str) -> None:
    """Refuse a logger whose package is not installed.

    Args:
        package: as it is imported.
        extra: of this package, which installs it; also the name of the logger.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"logger={extra} needs a package that is not installed; pip install -e '.[{extra}]'")


def kept_id(path: Path, client: str) -> str | None:
    """The id under which a run is known to a client, kept in a folder of the run directory; None if there is none yet.

    Raises:
        ConfigError: the file holds no id.
        Refusal: it is a link.
    """
    refuse_links(path, path.parents[1])
    if not path.exists():
        return None
    kept = file_bytes(path).decode(errors="replace")
    if not _ID.fullmatch(kept):
        raise ConfigError(f"{path} holds no id of a {client} run; remove it, and this run is a new one there.")
    return kept


def make_tracker(node: DictConfig | None) -> Tracker:
    """The tracker that the config names; on other ranks than the first, one that reports nothing."""
    tracker: Tracker = instantiate(node) if node and rank_zero_only.rank == 0 else Tracker()
    return tracker


class ThreadTracker(Tracker):
    """A tracker whose client works in a thread of this process.

    Args:
        name: of the client, for notices.
        timeout: seconds that the run waits for it at its end.
    """

    def __init__(self, name: str, timeout: float) -> None:
        within("logger.timeout", timeout, 0)
        self.name, self.timeout = name, timeout
        self._relay: Relay | None = None

    def open(self, directory: Path, config: Mapping[str, Any], stop_signal: StopSignal) -> None:
        """Start the thread."""
        self._stop_signal, self._relay = stop_signal, Relay(self.name)

    def put(self, call: Callable[[], object]) -> None:
        """Let the thread make a call; nothing before ``open``."""
        if self._relay:
            self._relay.put(call)

    def close(self, code: int, *, goes_on: bool = False) -> None:
        """Wait until all reports are made."""
        if self._relay is None:
            return
        if not self._relay.end(self._stop_signal.patience(self.timeout, stopped=goes_on), self._stop_signal):
            notice(f"{self.name} did not end and is not waited for; its last reports may be missing{self.where()}")
        self._relay = None

    def where(self) -> str:
        """The place from which reports may be missing, for the notice."""
        return ""
