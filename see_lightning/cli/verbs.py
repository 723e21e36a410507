"""The table of verbs: ``see-lightning run method=see``, ``see-lightning ask RUN_DIR "query"``."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from see_lightning import __version__


class Verb(NamedTuple):
    """A module whose ``main`` takes the words after the verb, and one line of help."""

    module: str
    help: str


VERBS = {
    "run": Verb(
        "see_lightning.cli.run",
        "trains and evaluates an experiment, resumes an interrupted run, or prints the report of a finished one",
    ),
    "ask": Verb(
        "see_lightning.cli.ask",
        "answers queries with a trained run: those of the command line, of a file, or of a conversation",
    ),
    "serve": Verb("see_lightning.cli.serve", "serves a run to clients of the OpenAI API, and routes their queries"),
    "experts": Verb(
        "see_lightning.cli.experts",
        "lists the experts of a run, exports one, or makes a run with one removed, trained again or imported",
    ),
    "merge": Verb("see_lightning.cli.merge", "merges LoRA adapters of one base model into an adapter or a checkpoint"),
    "extract": Verb("see_lightning.cli.extract", "writes the difference of two checkpoints as a LoRA adapter"),
    "instruct-transfer": Verb(
        "see_lightning.cli.instruct_transfer", "carries an adapter from a base model to its instruction-tuned model"
    ),
    "runs": Verb("see_lightning.cli.runs", "lists runs"),
    "compare": Verb(
        "see_lightning.cli.compare", "tabulates finished runs, with means and standard deviations over seeds"
    ),
    "report": Verb("see_lightning.cli.report", "writes the report of a finished run and the page of its answers again"),
    "figures": Verb("see_lightning.cli.figures", "draws the figures of the SEE paper from finished runs"),
    "study": Verb("see_lightning.cli.study", "computes scores under other routing orders and thresholds"),
    "calibrate": Verb("see_lightning.cli.calibrate", "sets new thresholds for a run's experts, as a new run"),
    "perplexity": Verb("see_lightning.cli.perplexity", "measures the perplexity of the reference answers"),
    "transfer": Verb("see_lightning.cli.transfer", "scores every expert on every task"),
    "route": Verb("see_lightning.cli.route", "compares all routers on the experts of a run, without training"),
    "harness": Verb("see_lightning.cli.harness", "evaluates a run on tasks of lm-evaluation-harness"),
    "lm-eval": Verb("see_lightning.cli.lm_eval", "the command line of lm-evaluation-harness, with runs as models"),
    "leaderboard": Verb(
        "see_lightning.cli.leaderboard",
        "writes all kept results as one document and one page, with what is within noise",
    ),
    "publish": Verb("see_lightning.cli.publish", "copies results into a folder, and fills the tables of a document"),
    "data": Verb("see_lightning.cli.data", "checks the files of a benchmark"),
}


def usage() -> str:
    """The table of verbs as text."""
    lines = [f"  {name:<17} {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        ["usage: see-lightning COMMAND [...]; see-lightning COMMAND --help prints its arguments", "", *lines]
    )


def main(words: Sequence[str] | None = None) -> None:
    """Import a verb's module and pass it the words after the verb.

    Args:
        words: as typed; those of the process by default.

    Raises:
        SystemExit: with 2 if there is no such verb; or with the verb's own code.
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
    """Refuse an unknown verb in one line that names the nearest one.

    Raises:
        SystemExit: with 2.
    """
    # Late, because these import OmegaConf and Hydra, which the table does without.
    from see_lightning.errors import ConfigError, nearest
    from see_lightning.frame import frame

    with frame():
        raise ConfigError(
            f"there is no command {name!r}.{nearest(name, VERBS)} see-lightning alone lists all commands."
        )
