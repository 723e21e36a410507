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
size and threshold. With export TASK DIR, writes one as a folder that PEFT, vLLM and llama.cpp's converter read, with a model
card that has their commands. The run is not changed."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a run, and what is done with one of its experts."""
    parser.add_run_dir()
    parser.add_argument(
        "action", nargs="*", metavar="export TASK DIR", help="write the expert of TASK into the new folder DIR"
    )
    base = "name or folder of the base model for other programs (default: the name in the run's settings)"
    parser.add_argument("--base", metavar="MODEL", help=base)
    add_trust(parser)


@command("experts", DESCRIPTION, add_arguments)
def main(given: argparse.Namespace) -> None:
    """Print the list, or export one expert and print how it is loaded."""
    action, *words = given.action or ["list"]
    if action not in ("list", "export") or len(words) != (2 if action == "export" else 0):
        raise ConfigError("write see-lightning experts RUN_DIR, or see-lightning experts RUN_DIR export TASK DIR.")
    if given.base and action != "export":
        raise ConfigError("--base is for export TASK DIR.")
    from see_lightning.engine.experts import export_expert, list_experts

    run_dir, trust = find_run(given.run_dir), trust_in(given)
    if action == "list":
        _print(list_experts(run_dir, trust))
        return
    task, out = words
    card = export_expert(run_dir, task, Path(out), base=given.base, trust=trust)
    print(visible(card.partition("## Load\n\n")[2].replace("DIR", out)))
    print(visible(out))


def _print(experts: Sequence["Expert"]) -> None:
    right = ("rows", "refused", "rehearsed", "score", "MiB", "threshold")
    table = Table("stage", "task", *(Column(name, justify="right") for name in right), "parent", box=box.SIMPLE_HEAD)
    for one in experts:
        cells = (
            one.stage,
            one.task,
            *map(str, (one.rows, one.refused, one.rehearsed)),
            number(one.score),
            f"{one.size / 2**20:.1f}",
            number(one.threshold),
            one.parent or "",
        )
        table.add_row(*map(Text, cells))
    print_table(table, Console())
