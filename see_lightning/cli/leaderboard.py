"""All kept results in one document and one page: ``see-lightning leaderboard``."""

import argparse
from pathlib import Path

from see_lightning.cli.command import Parser, command
from see_lightning.files.writing import make_folder, write_text
from see_lightning.reporting.leaderboard import boards, difference_text, leaderboard_page, leaderboard_text

DESCRIPTION = """\
Write LEADERBOARD.md and leaderboard.html from kept results: for each order and size a table of all methods, the best first,
with intervals and with what is within noise, and the routers that were compared on their experts. No model is read."""
EPILOG = """\
A row is added by a file: see-lightning publish results RESULTS.md --add RUN_DIR, then this command."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a folder of results, and where to write."""
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("results"), help="of kept results, or of runs (results)"
    )
    parser.add_argument("--out", type=Path, default=Path("LEADERBOARD.md"), help="the document; the page is beside it")
    parser.add_argument(
        "--between", type=Path, nargs=2, metavar="RUNS", help="print how two settings differ, and write nothing"
    )


@command("leaderboard", DESCRIPTION, add_arguments, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Write the document and the page, and print their paths; or print how two settings differ."""
    if given.between:
        print(difference_text(*given.between))
        return
    found = boards(given.folder)
    page = given.out.with_name("leaderboard.html")
    make_folder(given.out.parent)
    write_text(given.out, leaderboard_text(found, given.command))
    write_text(page, leaderboard_page(found, given.command))
    print(given.out)
    print(page)
