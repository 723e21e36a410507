"""The list of runs in some folders: ``see-lightning runs [PATH...]``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from see_lightning.cli.command import Parser, command
from see_lightning.errors import Refusal
from see_lightning.files.run_files import LedgerError, read_file
from see_lightning.reporting.runs import find_runs, read_run
from see_lightning.reporting.terminal import print_table
from see_lightning.reporting.words import number

DESCRIPTION = """\
A list of runs, the most recently changed one first. PATH/latest, wherever a command takes a RUN_DIR, is the run that was
finished last. Only results.json and ledger.json are read."""


@dataclass(frozen=True)
class Listed:
    """A line of the list; unknown fields are empty or None."""

    path: Path
    when: datetime
    order: str
    method: str
    seed: str
    state: str
    AR: float | None = None
    BWT: float | None = None


def add_arguments(parser: Parser) -> None:
    """Add folders as arguments."""
    parser.add_argument(
        "paths", type=Path, nargs="*", metavar="PATH", default=[Path("runs")],
        help="folders that hold runs at any depth (default: runs)",
    )  # fmt: skip


@command("runs", DESCRIPTION, add_arguments)
def main(given: argparse.Namespace) -> None:
    """Print the list of runs."""
    found = list_runs(given.paths)
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("AR", "BWT")]
    table = Table(
        "when", "order", "method", "seed", "state", *numbers, Column("path", overflow="fold"), box=box.SIMPLE_HEAD
    )
    for run in found:
        when = run.when.isoformat(" ", timespec="minutes")
        cells = (when, run.order, run.method, run.seed, run.state, number(run.AR), number(run.BWT), str(run.path))
        table.add_row(*map(Text, cells))
    print_table(table, Console())


def list_runs(paths: Sequence[Path]) -> list[Listed]:
    """All runs in some folders, the most recently changed one first.

    Args:
        paths: folders that hold runs at any depth.

    Raises:
        Refusal: there is no such folder, or no run in it.
    """
    finished, unfinished = find_runs(paths)
    found = [*map(_finished, finished), *map(_unfinished, unfinished)]
    if not found:
        raise Refusal(f"there is no run in {', '.join(map(str, paths))}; give folders that hold runs, such as runs.")
    return sorted(found, key=lambda run: (run.when, str(run.path)), reverse=True)


def _finished(path: Path) -> Listed:
    try:
        run = read_run(path)
    except Refusal:
        return Listed(path.parent, _changed(path), *_by_place(path.parent), "damaged")
    metrics = run.metrics.get("AR"), run.metrics.get("BWT")
    return Listed(path.parent, _changed(path), run.order, run.method, str(run.seed), "finished", *metrics)


def _unfinished(directory: Path) -> Listed:
    ledger = directory / "ledger.json"
    try:
        stages = read_file(ledger)["stages"]
        state = f"unfinished, {sum(bool(stage['trained']) for stage in stages.values())} stages trained"
    except LedgerError:
        state = "damaged"
    return Listed(directory, _changed(ledger), *_by_place(directory), state)


def _changed(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime)


def _by_place(directory: Path) -> tuple[str, str, str]:
    """Order, method and seed from the path of a run's directory; empty if it is not of that form."""
    *_, order, method, _, seed = ("", "", "", *directory.absolute().parts)
    return (order, method, seed.removeprefix("seed=")) if seed.startswith("seed=") else ("", "", "")
