"""Write the report of a finished run again: ``see-lightning report RUN_DIR``."""

import argparse
import sys
from pathlib import Path

from see_lightning.cli.command import Parser, command
from see_lightning.cli.output import is_of_a_run, write
from see_lightning.config.trust import add_trust, trust_in
from see_lightning.engine.answers_page import ANSWERS, find_prompts, write_answers
from see_lightning.engine.finished import Unheld, finished_results
from see_lightning.engine.latest import find_run
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.run_report import REPORT, run_report
from see_lightning.errors import ConfigError, room_needed
from see_lightning.files.writing import make_folder
from see_lightning.reporting.answers.files import INDEX

DESCRIPTION = """\
Writes report.html of a finished run again, and the page of its test queries, answers/index.html: prompt, references, answer,
score, who answered, and the verdicts and log-odds of the experts that were asked, after each stage. Runs write both when they
finish; this command gives them to the runs of earlier versions. No model is read."""
EPILOG = """\
A run keeps of most prompts only a digest. The prompts are taken from the page, if the run has one, and else from its data;
a note tells how many could not be found. Prints the paths of the report and the page as the last lines."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a run, and another folder for the output."""
    parser.add_run_dir()
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write report.html and the folder answers here instead of into the run's directory, which then stays as it is",
    )
    add_trust(parser)


@command("report", DESCRIPTION, add_arguments, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Write the report and the page of answers, and print their paths."""
    run_dir, out = find_run(given.run_dir), given.out
    results = finished_results(run_dir, "a report shows what is there after the last task")
    if out and is_of_a_run(out):
        raise ConfigError(
            f"--out {out} is the folder of a run; give another one, or leave --out out to write into {run_dir}."
        )
    with room_needed(run_dir, "--out DIR"), Unheld(run_dir) if out else Ledger(run_dir) as ledger:
        queries, reason = find_prompts(ledger, results, trust_in(given))
        if reason:
            counts = f"{queries.without_prompt} of {len(queries.keys)}"
            print(f"note: the prompts of {counts} test queries are not shown: {reason}", file=sys.stderr)
        if out:
            make_folder(out)
        write_answers(ledger, queries, out)
        text = run_report(run_dir, results, with_answers=True)
        write(out, REPORT, text) if out else ledger.write(run_dir / REPORT, text)
    folder = out or run_dir
    print(f"{folder / REPORT}\n{folder / ANSWERS / INDEX}")
