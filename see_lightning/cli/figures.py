"""The paper's figures from finished runs: ``see-lightning figures PATH...``."""

import argparse
import sys
from pathlib import Path

from see_lightning.cli.command import Parser, command
from see_lightning.cli.output import common_folder, is_of_a_run, write
from see_lightning.engine.measured import PERPLEXITY, TRANSFER, is_current, stale
from see_lightning.errors import Refusal
from see_lightning.evaluation.transfer import Transfer
from see_lightning.files.reading import file_bytes
from see_lightning.files.run_files import read_file, well_shaped
from see_lightning.reporting.comparison.groups import compare, counted
from see_lightning.reporting.figures.capacity import capacity_csv, capacity_svg, has_capacity
from see_lightning.reporting.figures.figure_data import FigureData, sheets
from see_lightning.reporting.figures.latency import latency_csv, latency_figure, latency_rows
from see_lightning.reporting.figures.perplexity import perplexity_csv, perplexity_svg
from see_lightning.reporting.figures.rivals import has_rivals, rivals_csv, rivals_svg
from see_lightning.reporting.figures.tasks import tasks_csv, tasks_svg
from see_lightning.reporting.figures.transfer import transfer_csv, transfer_svg
from see_lightning.reporting.runs import Run, find_runs, read_run
from see_lightning.reporting.svg import standalone_svg

DESCRIPTION = """\
Draws the figures of SEE's paper from finished runs: the score of each task after the last one, beside MTL and AvgSTL (stl);
the distribution of the perplexity of reference answers; the score of each expert on each task; the score over the storage
after each task; AR over all that is kept, with the costs of each method; and the latency of routing. No model is read."""
EPILOG = """\
For each order: ORDER_tasks.svg; ORDER_capacity.svg of runs whose results have their storage; ORDER_rivals.svg of three or
more methods whose results have their costs; ORDER_perplexity.svg of runs measured by see-lightning perplexity;
ORDER_transfer.svg of those measured by see-lightning transfer; with --latency, latency.svg. Each figure has a .csv of its
numbers beside it. Prints the paths of all files."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: runs, and measured latencies."""
    parser.add_paths()
    parser.add_argument("--latency", type=Path, metavar="FILE", help="output of benchmarks/route.py --csv FILE")


@command("figures", DESCRIPTION, add_arguments, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Draw the figures of some runs."""
    folder = given.out or common_folder(given.paths)
    if given.out is None and is_of_a_run(folder):
        raise Refusal(f"{folder} is the folder of a run, so nothing is written there; give another one with --out DIR.")
    finished, unfinished = find_runs(given.paths)
    comparison = compare(map(read_run, finished), unfinished)
    texts: dict[str, str] = {}
    unmeasured: list[Path] = []
    for sheet in sheets(comparison):
        texts |= {f"{sheet.name}_tasks.svg": tasks_svg(sheet), f"{sheet.name}_tasks.csv": tasks_csv(sheet)}
        if has_capacity(sheet):
            texts[f"{sheet.name}_capacity.svg"] = capacity_svg(sheet)
            texts[f"{sheet.name}_capacity.csv"] = capacity_csv(sheet)
        if has_rivals(sheet):
            texts |= {f"{sheet.name}_rivals.svg": rivals_svg(sheet), f"{sheet.name}_rivals.csv": rivals_csv(sheet)}
        answers = _answers(sheet, unmeasured)
        if answers:
            texts[f"{sheet.name}_perplexity.svg"] = perplexity_svg(sheet, answers)
            texts[f"{sheet.name}_perplexity.csv"] = perplexity_csv(sheet, answers)
        transfers = _transfers(sheet)
        if transfers:
            texts[f"{sheet.name}_transfer.svg"] = transfer_svg(sheet, transfers)
            texts[f"{sheet.name}_transfer.csv"] = transfer_csv(sheet, transfers)
    if given.latency:
        rows = latency_rows(_read(given.latency), str(given.latency))
        texts["latency.svg"] = standalone_svg(latency_figure(rows), "latency", "Latency of routing")
        texts["latency.csv"] = latency_csv(rows)
    written = [write(folder, name, text) for name, text in texts.items()]
    notices = [*comparison.notices]
    if unmeasured:
        how = "see-lightning perplexity RUN_DIR measures it"
        notices.append(f"no perplexity is known of {counted(unmeasured)}; {how}")
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)
    print(*written, sep="\n")


def _answers(sheet: FigureData, unmeasured: list[Path]) -> dict[str, dict[str, list[tuple[float, int]]]]:
    """Label of a group -> task -> reference answers of all seeds. Runs without a measurement go to ``unmeasured``."""
    found: dict[str, dict[str, list[tuple[float, int]]]] = {}
    for group, label in zip(sheet.groups, sheet.labels, strict=True):
        for run in group.runs:
            measured = _measured(run)
            if measured is None:
                unmeasured.append(run.path.parent)
                continue
            for task, answers in measured.items():
                found.setdefault(label, {}).setdefault(task, []).extend(answers)
    return found


def _measured(run: Run) -> dict[str, list[tuple[float, int]]] | None:
    """Task -> negative log-likelihood and tokens of its reference answers; None if not measured or out of date."""
    path = run.path.with_name(PERPLEXITY)
    if not path.exists():
        return None
    content = read_file(path)
    with well_shaped(path):
        tasks = {
            task: [(float(query["nll"]), query["tokens"]) for query in content["tasks"][task]["queries"]]
            for task in run.tasks
        }
    return tasks if is_current(path, content["belongs_to"]) else None


def _transfers(sheet: FigureData) -> dict[str, dict[int, Transfer]]:
    """Label of a group -> seed -> transfer matrix, of measured runs; prints a note on a matrix older than its run."""
    found: dict[str, dict[int, Transfer]] = {}
    for group, label in zip(sheet.groups, sheet.labels, strict=True):
        for run in group.runs:
            path = run.path.with_name(TRANSFER)
            if not path.exists():
                continue
            content = read_file(path)
            with well_shaped(path):
                transfer = Transfer.of(content, run.tasks)
            if is_current(path, content["belongs_to"]):
                found.setdefault(label, {})[run.seed] = transfer
            else:
                print(f"note: {stale(path)}", file=sys.stderr)
    return found


def _read(path: Path) -> str:
    try:
        return file_bytes(path).decode()
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}.") from error
