"""Compare finished runs over seeds, methods, ratios and orders: ``see-lightning compare PATH...``."""

import argparse
import sys

from rich.console import Console

from see_lightning.cli.command import Parser, command
from see_lightning.cli.output import common_folder, is_of_a_run, write
from see_lightning.reporting.comparison.groups import compare
from see_lightning.reporting.comparison.page import render_comparison
from see_lightning.reporting.comparison.tables import groups_csv, runs_csv
from see_lightning.reporting.comparison.terminal import print_comparison
from see_lightning.reporting.runs import find_runs, read_run

DESCRIPTION = """\
A table of finished runs, with mean and sample standard deviation over seeds. Runs that differ only in their seed are one
row; each setting in which rows of one order differ is a column after the metrics. Only results.json is read, so thousands
of runs take seconds."""
EPILOG = """\
Writes comparison.html (the table, and the matrices side by side), comparison.csv (a line for each row of the table) and
runs.csv (a line for each run), and prints the path of the page as the last line."""


@command("compare", DESCRIPTION, Parser.add_paths, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Print the table of some runs, and write it as a page and as CSV files."""
    finished, unfinished = find_runs(given.paths)
    comparison = compare(map(read_run, finished), unfinished)
    folder = given.out or common_folder(given.paths)
    if given.out is None and is_of_a_run(folder):
        print_comparison(comparison, Console())
        print(f"note: {folder} is the folder of a run, so nothing is written there; give --out DIR", file=sys.stderr)
        return
    write(folder, "comparison.csv", groups_csv(comparison))
    write(folder, "runs.csv", runs_csv(comparison))
    page = write(folder, "comparison.html", render_comparison(comparison, given.command, folder))
    print_comparison(comparison, Console())
    print(page)
