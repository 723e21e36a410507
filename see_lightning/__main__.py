"""All commands by one name: ``see-lightning run method=see``, ``see-lightning ask RUN_DIR "query"``."""

import sys
from collections.abc import Sequence
from importlib import import_module

from see_lightning import __version__

#: Verb -> module with a ``main`` that takes its words, and what it does.
COMMANDS = {
    "run": ("see_lightning.cli", "run, resume or report an experiment; as python run.py in a clone"),
    "ask": ("see_lightning.ask", "put queries to the experts of a run"),
    "runs": ("see_lightning.runs", "list runs"),
    "compare": ("see_lightning.compare", "finished runs side by side"),
    "figures": ("see_lightning.figures", "draw finished runs as the paper does"),
    "study": ("see_lightning.study", "other asking orders and thresholds of a finished run"),
    "calibrate": ("see_lightning.calibrate", "thresholds for the experts of a finished run"),
    "perplexity": ("see_lightning.perplexity", "how likely a run finds the reference answers"),
    "transfer": ("see_lightning.transfer", "what experts score on each other's tasks"),
    "harness": ("see_lightning.harness", "tasks of lm-evaluation-harness, put to a run"),
    "lm-eval": ("see_lightning.lm_eval", "the harness's own command, which knows runs as models"),
    "publish": ("see_lightning.publish", "keep results, and fill a document's tables"),
    "data": ("see_lightning.data.__main__", "check a benchmark's files"),
}


def usage() -> str:
    """The table of commands."""
    lines = [f"  {verb:<11} {told}" for verb, (_, told) in COMMANDS.items()]
    return "\n".join(["usage: see-lightning COMMAND [...]; COMMAND --help tells more", "", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """Hand the words behind a verb to its command, which is imported only then.

    Args:
        arguments: as typed; those of the process by default.

    Raises:
        SystemExit: there is no such command, or as the command ends.
    """
    verb, *words = [*(sys.argv[1:] if arguments is None else arguments)] or [""]
    if verb in ("-h", "--help"):
        print(usage())
    elif verb == "--version":
        print(__version__)
    elif verb in COMMANDS:
        import_module(COMMANDS[verb][0]).main(words)
    else:
        from see_lightning.config import nearest

        told = f"there is no command {verb!r}.{nearest(verb, COMMANDS)}\n" if verb else ""
        raise SystemExit(f"{told}{usage()}")


if __name__ == "__main__":
    main()
