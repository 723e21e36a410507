"""Kept results and the tables of a document: ``see-lightning publish results RESULTS.md --add RUN_DIR``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from see_lightning.cli.command import Parser, command
from see_lightning.engine.finished import finished_results
from see_lightning.engine.latest import find_run
from see_lightning.engine.ledger import dump
from see_lightning.engine.measured import PERPLEXITY, ROUTE, TRANSFER, is_current, stale
from see_lightning.errors import ConfigError
from see_lightning.files.run_files import read_file
from see_lightning.files.writing import make_folder, refuse_links, write_text
from see_lightning.reporting.markdown import KINDS, fill
from see_lightning.reporting.places import machine, without_places
from see_lightning.reporting.runs import read_run

KEPT = ("results.json", PERPLEXITY, TRANSFER, ROUTE, "harness.json")  # metrics of a run, without its answers

DESCRIPTION = f"""\
Fill the tables of a document from a folder of results. A table stands between the lines <!-- KIND: ORDER --> and
<!-- end -->, where KIND is one of {", ".join(KINDS)}. A table of ood queries takes names for sets of its tasks,
<!-- foreign: ORDER | NAME: TASK, TASK | NAME: * -->, each a column with the mean of their shares."""
EPILOG = """\
--add copies the metrics of a run into the folder, at ORDER/METHOD/KEY/seed=N, without paths of this machine. No model is
read."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a folder of results, a document, and runs to keep."""
    parser.add_argument("folder", type=Path, help="where results are kept, such as results")
    parser.add_argument("document", type=Path, help="a Markdown file, such as RESULTS.md")
    parser.add_argument(
        "--add", type=Path, action="append", default=[], metavar="RUN_DIR", help="a finished run to be kept"
    )


@command("publish", DESCRIPTION, add_arguments, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Fill a document's tables."""
    publish(given.folder, given.document, given.add)
    print(given.document)


def publish(folder: Path, document: Path, added: Sequence[Path] = ()) -> None:
    """Keep the results of some runs, and fill the tables of a document from all kept results.

    Args:
        folder: where results are kept.
        document: Markdown with marks for tables, see ``reporting.markdown.fill``.
        added: run directories.

    Raises:
        Refusal: a run is not finished, or a table cannot be filled.
    """
    if not document.is_file():
        raise ConfigError(f"there is no {document}; give a Markdown file with places for tables.")
    for run_dir in added:
        keep(run_dir, folder)
    text, left_out = fill(document.read_text(encoding="utf-8"), folder)
    write_text(document, text)
    for path in left_out:
        print(f"note: {path} is in no table of {document}", file=sys.stderr)


def keep(run_dir: Path, folder: Path) -> Path:
    """Copy the metrics of a run, without the paths of its data, models and files on this machine.

    Args:
        run_dir: of a run.
        folder: of kept results; the copy is at ``<order>/<method>/<key>/seed=<n>`` in it.

    Raises:
        Refusal: there is no finished run.
    """
    run_dir = find_run(run_dir)
    results = finished_results(run_dir, "only finished runs are kept")
    run_dir = run_dir.resolve()
    run = read_run(run_dir / "results.json")
    for name in (run.order, run.method):
        if "/" in name or name in ("", ".", ".."):
            raise ConfigError(f"{run.path} calls its order or method {name!r}, which cannot name a folder.")
    from see_lightning.engine.contents import place_values  # imports torch, which filling a document does without

    runs = run_dir.parents[3] if run.is_at_home else run_dir.parent
    places = machine(results["config"], runs, place_values(results))
    place = folder / run.order / run.method / run.key / f"seed={run.seed}"
    refuse_links(place, folder)
    make_folder(place)
    for name in KEPT:
        content = read_file(run_dir / name) if (run_dir / name).exists() else None
        if content and "belongs_to" in content and not is_current(run_dir / name, content["belongs_to"]):
            raise ConfigError(stale(run_dir / name))
        if content is None:
            (place / name).unlink(missing_ok=True)  # of an earlier state
            continue
        kept = without_places(content, places)
        if "logger" in kept.get("config", {}):
            kept["config"]["logger"] = None  # it may have an account or a tracker's address
        write_text(place / name, dump(kept))
    return place
