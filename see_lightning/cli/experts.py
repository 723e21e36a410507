"""The experts of a finished run: ``see-lightning experts RUN_DIR``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from see_lightning.cli.command import Parser, command
from see_lightning.config.origins import LEAST
from see_lightning.config.trust import add_trust, trust_in
from see_lightning.engine.latest import find_run
from see_lightning.errors import ConfigError
from see_lightning.files.text import visible
from see_lightning.reporting.terminal import print_table
from see_lightning.reporting.words import number

if TYPE_CHECKING:
    from see_lightning.engine.experts import Expert

DESCRIPTION = """\
Lists the experts of a run: task, training rows, rows that it learned to refuse, score on its own test rows after its stage,
size and threshold.
export TASK DIR writes one as a folder that PEFT, vLLM and llama.cpp's converter read, with a model card that has their
commands. The other words make a new run beside this one, which takes over all other experts and is evaluated; its
results.json is the last line:
remove TASK: without this expert; other experts or the base model answer the task's queries.
retrain TASK: with --lr, --epochs or --seed of its own. Without them, where rows of the task have changed: it and all later
experts, which refuse such rows, are trained again.
import TASK DIR: with the LoRA adapter of a PEFT folder in place of the task's expert, or as that of a further task of the
run's data. An adapter that SEE has trained gives verdicts, with a threshold as the others; another one answers what no
expert accepts.
quantize int8|nf4: with all experts in a quarter or a seventh of the bytes; they answer as they are stored. results.json has
the error of each expert, and how many answers have changed.
RUN_DIR is not changed."""
USES = {"list": 0, "export": 2, "remove": 1, "retrain": 1, "import": 2, "quantize": 1}  # number of words after each


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a run, and what is done with one of its experts."""
    parser.add_run_dir()
    words = "export TASK DIR, remove TASK, retrain TASK, import TASK DIR, or quantize int8|nf4"
    parser.add_argument("action", nargs="*", metavar="WORD", help=words)
    base = "export: name or folder of the base model for other programs (default: the name in the run's settings)"
    parser.add_argument("--base", metavar="MODEL", help=base)
    parser.add_argument("--lr", type=float, help="retrain: peak learning rate")
    parser.add_argument("--epochs", type=int, metavar="N", help="retrain: passes over the training rows")
    parser.add_argument("--seed", type=int, metavar="N", help="retrain: seed of weights, order of rows and dropout")
    add_trust(parser)


@command("experts", DESCRIPTION, add_arguments)
def main(given: argparse.Namespace) -> None:
    """Print the list, export one expert and print how it is loaded, or make a run with another expert."""
    action, *words = given.action or ["list"]
    if len(words) != USES.get(action, -1):
        raise ConfigError(
            "write see-lightning experts RUN_DIR, and behind it nothing, export TASK DIR, remove TASK, retrain TASK, import"
            f" TASK DIR or quantize int8|nf4; got {' '.join(given.action)!r}."
        )
    training = {name: value for name in LEAST if (value := getattr(given, name)) is not None}
    for option, use in (("base", "export"), *((name, "retrain") for name in LEAST)):
        if getattr(given, option) is not None and action != use:
            raise ConfigError(f"--{option} is for {use} TASK{' DIR' if use == 'export' else ''}.")
    run_dir, trust = given.run_dir, trust_in(given)
    if action in ("list", "export"):
        from see_lightning.engine.experts import export_expert, list_experts

        if action == "list":
            _print(list_experts(find_run(run_dir), trust))
            return
        task, out = words
        card = export_expert(find_run(run_dir), task, Path(out), base=given.base, trust=trust)
        print(visible(card.partition("## Load\n\n")[2].replace("DIR", out)))
        print(visible(out))
        return
    from see_lightning.engine.other_experts import import_expert, quantize_experts, remove_expert, retrain_expert

    if action == "remove":
        remove_expert(run_dir, words[0], trust)
    elif action == "retrain":
        retrain_expert(run_dir, words[0], training, trust)
    elif action == "quantize":
        quantize_experts(run_dir, words[0], trust)
    else:
        import_expert(run_dir, words[0], words[1], trust)


def _print(experts: Sequence["Expert"]) -> None:
    right = ("rows", "refused", "rehearsed", "score", "MiB", "threshold")
    table = Table("stage", "task", *(Column(name, justify="right") for name in right), "from", box=box.SIMPLE_HEAD)
    for one in experts:
        cells = (
            one.stage,
            one.task,
            *map(str, (one.rows, one.refused, one.rehearsed)),
            number(one.score),
            f"{one.size / 2**20:.1f}",
            number(one.threshold),
            one.origin or one.parent or "",
        )
        table.add_row(*map(Text, cells))
    print_table(table, Console())
