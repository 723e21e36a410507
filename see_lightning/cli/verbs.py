"""The table of verbs: ``see-lightning run method=see``, ``see-lightning ask RUN_DIR "query"``."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from see_lightning import __version__


class Verb(NamedTuple):
    """A module whose ``main`` takes the words behind the verb, and what it does in one line."""

    module: str
    help: str


VERBS = {
    "run": Verb("see_lightning.cli.run", "run, resume or report an experiment; the same as python run.py in a clone"),
    "ask": Verb("see_lightning.cli.ask", "put queries to the experts of a run"),
    "runs": Verb("see_lightning.cli.runs", "list runs"),
    "compare": Verb("see_lightning.cli.compare", "finished runs side by side"),
    "figures": Verb("see_lightning.cli.figures", "draw finished runs as the paper does"),
    "study": Verb("see_lightning.cli.study", "other asking orders and thresholds of a finished run"),
    "calibrate": Verb("see_lightning.cli.calibrate", "thresholds for the experts of a finished run"),
    "perplexity": Verb("see_lightning.cli.perplexity", "how likely a run finds the reference answers"),
    "transfer": Verb("see_lightning.cli.transfer", "what experts score on each other's tasks"),
    "harness": Verb("see_lightning.cli.harness", "tasks of lm-evaluation-harness, put to a run"),
    "lm-eval": Verb("see_lightning.cli.lm_eval", "the harness's own command, which knows runs as models"),
    "publish": Verb("see_lightning.cli.publish", "keep results, and fill a document's tables"),
    "data": Verb("see_lightning.cli.data", "check a benchmark's files"),
}


def usage() -> str:
    """The table of verbs as text."""
    lines = [f"  {name:<11} {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(["usage: see-lightning VERB [...]; see-lightning VERB --help tells more", "", *lines])


def main(words: Sequence[str] | None = None) -> None:
    """Hand the words behind a verb to its module, which is imported only then.

    Args:
        words: as typed; those of the process by default.

    Raises:
        SystemExit: with 2, there is no such verb; or as the verb ends.
    """
    name, *rest = [*(sys.argv[1:] if words is None else words)] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(__version__)
    elif name in VERBS:
        import_module(VERBS[name].module).main(rest)
    else:
        refuse(name)


def refuse(name: str) -> None:
    """Tell in one line that there is no such verb, and the nearest that there is.

    Raises:
        SystemExit: with 2.
    """
    # Late, because these import OmegaConf and Hydra, which the table does without.
    from see_lightning.errors import ConfigError, nearest
    from see_lightning.frame import frame

    with frame():
        raise ConfigError(f"there is no verb {name!r}.{nearest(name, VERBS)} see-lightning alone lists all verbs.")
