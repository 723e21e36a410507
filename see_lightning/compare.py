"""Compare finished runs over seeds, methods, ratios and orders: ``python -m see_lightning.compare PATH...``."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from see_lightning.config import Refusal
from see_lightning.frame import frame
from see_lightning.reporting.comparison.groups import compare
from see_lightning.reporting.comparison.page import render_comparison
from see_lightning.reporting.comparison.tables import groups_csv, runs_csv
from see_lightning.reporting.comparison.terminal import print_comparison
from see_lightning.reporting.runs import find_runs, read_run
from see_lightning.writing import make_folder, write_text

DESCRIPTION = """\
A table of finished runs, with mean and sample standard deviation over seeds. Runs that differ in nothing but their seed
are one row; each difference of settings between rows of one order is a column behind the metrics. Only results.json is
read, so thousands of runs take seconds."""
EPILOG = """\
Writes comparison.html (the table, and the matrices side by side), comparison.csv (a line for each row of the table) and
runs.csv (a line for each run), and prints the path of the page as the last line."""


@frame()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of some runs and write it as a page and for spreadsheets.

    Args:
        arguments: as typed; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m see_lightning.compare", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="a folder that holds runs at any depth, or a results.json"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write; by default the folder in which all the paths lie, if it is not a run's",
    )
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = parser.parse_args(words)
    finished, unfinished = find_runs(given.paths)
    comparison = compare(map(read_run, finished), unfinished)
    folder = given.out or common_folder(given.paths)
    if given.out is None and is_of_a_run(folder):
        print_comparison(comparison, Console())
        print(f"note: {folder} is the folder of a run, so nothing is written there; give --out DIR", file=sys.stderr)
        return
    write(folder, "comparison.csv", groups_csv(comparison))
    write(folder, "runs.csv", runs_csv(comparison))
    command = shlex.join(["python", "-m", "see_lightning.compare", *words])
    page = write(folder, "comparison.html", render_comparison(comparison, command, folder))
    print_comparison(comparison, Console())
    print(page)


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder in which all the paths lie, or which is all of them; a file lies in its own folder.

    >>> common_folder([Path("runs/superni_5/see"), Path("runs/superni_5/mtl")]).as_posix()
    'runs/superni_5'
    """
    folders = [path.parent if path.is_file() else path for path in paths]
    if any(folder.is_absolute() for folder in folders):
        folders = [folder.absolute() for folder in folders]
    return Path(os.path.commonpath(folders))


def is_of_a_run(folder: Path) -> bool:
    """Whether a folder is that of a run, into which only what is measured of the run is written."""
    return any((folder / name).exists() for name in ("results.json", "ledger.json"))


def write(folder: Path, name: str, text: str) -> Path:
    """Put a text into a folder, which is made if need be.

    Raises:
        Refusal: it cannot be written there.
    """
    try:
        make_folder(folder)
        write_text(folder / name, text)
    except OSError as error:
        raise Refusal(
            f"{folder / name} cannot be written: {error.strerror}; give another folder with --out."
        ) from error
    return folder / name


if __name__ == "__main__":
    main()
