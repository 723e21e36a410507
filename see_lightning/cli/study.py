"""Study a finished run without its model: ``see-lightning study RUN_DIR``."""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from see_lightning.cli.command import Parser, command
from see_lightning.config.trust import NOTHING, Trust, add_trust, trust_in
from see_lightning.engine.finished import Unheld, finished_results
from see_lightning.engine.latest import find_run
from see_lightning.engine.ledger import Ledger, dump
from see_lightning.errors import FULL, Refusal, barred, room_needed
from see_lightning.files.run_files import seal, well_shaped
from see_lightning.files.writing import check_out, write_text

if TYPE_CHECKING:
    from see_lightning.evaluation.recorded import RecordedDecisions

REPORT = "report.html"
DESCRIPTION = """\
What a finished run of SEE would have given, had its experts been asked in another order or been believed at another
threshold. It is counted from what the experts said (tasks/*/remembered.jsonl), so no model is read unless --answer asks for
it. Prints a table, keeps it as study.json in the run's directory, and draws it into report.html."""
EPILOG = """\
An expert accepts a query by its verdict, as in the run itself, or if its log-odds of accepting reach a threshold. Where
another expert would answer than in the run, the text was never generated and its score is unknown: AR and BWT are then
ranges, from 0 to 100 for each such answer, unless --answer has it generated. Routing is always exact."""


def add_arguments(parser: Parser) -> None:
    """Take a run, orders and thresholds."""
    parser.add_run_dir()
    parser._negative_number_matcher = re.compile(r"-[\d.]")  # -2,0 is a value, as -2 is
    parser.add_argument(
        "--thresholds",
        type=_numbers,
        metavar="X,X,...",
        help="log-odds, such as -2,0,2.5; by default 0, one that 1 %% of foreign queries reach, and one that 1 %% of own"
        " queries miss. The one with the best routing is always added",
    )
    parser.add_argument(
        "--orders",
        action="append",
        metavar="ORDER,...",
        help="newest (the run's own), oldest, random:N, or all tasks, the first to be asked first; may be given several"
        " times; the picture shows the first (default newest,oldest,random:3)",
    )
    parser.add_argument(
        "--answer",
        action="store_true",
        help="first let the experts answer every test query that they accept, and the base model all: then every order by"
        " their verdicts is exact. Reads the model and the data; what is answered stays with the run",
    )
    parser.add_out("study.json and the report")
    add_trust(parser)


@command("study", DESCRIPTION, add_arguments, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Print the study of a run and add it to the report."""
    orders = given.orders or ["newest,oldest,random:3"]
    path = run_study(given.run_dir, given.thresholds, orders, answer=given.answer, out=given.out, trust=trust_in(given))
    print(path)


def run_study(
    run_dir: Path,
    thresholds: Sequence[float] | None,
    orders: Sequence[str],
    *,
    answer: bool = False,
    out: Path | None = None,
    trust: Trust = NOTHING,
) -> Path:
    """Print the study of a run, keep it beside its results, and draw it into the report.

    Args:
        run_dir: of a finished run.
        thresholds: log-odds from which on a query is accepted; None chooses them by what was observed.
        orders: as `name_orders` takes them.
        answer: whether to load the experts first and let them answer all that they accept.
        out: where the study is kept instead; then nothing is written into the run's directory, and no lock is taken there.
        trust: what of the run's settings may be run for that.

    Returns:
        The path of the report, or ``out``.

    Raises:
        Refusal: the run or what it remembers cannot be studied.
    """
    run_dir = find_run(run_dir)
    results = _finished(run_dir)
    # Late, because these import torch, which takes longer than a refusal should.
    from rich.console import Console

    from see_lightning.evaluation.study import name_orders, study
    from see_lightning.evaluation.thresholds import default_thresholds
    from see_lightning.reporting.report.study import print_study

    named = name_orders(orders, results["tasks"], results["seed"])
    ledger = Unheld(run_dir)  # what is final never changes, so to read it takes no lock
    if out:
        check_out(out)
    if answer:
        from see_lightning.engine.ensemble import answer_everything

        with room_needed(run_dir, "--out FILE"), ledger if out else Ledger(run_dir) as held:
            print(f"{answer_everything(held, trust)} answers were written that the run had no need of", file=sys.stderr)
        ledger = ledger if out else Unheld(run_dir)
    recorded = _remembered(run_dir, ledger, results)
    studied = study(recorded, named, default_thresholds(recorded) if thresholds is None else thresholds)
    try:
        _keep(run_dir, out, results, studied)
    except OSError as error:
        if error.errno in FULL or (told := barred(error)) is None:
            raise
        print(f"note: the study is printed but not kept: {told} --out FILE keeps it elsewhere.", file=sys.stderr)
    print_study(studied, Console())
    return out or run_dir / REPORT


def _remembered(run_dir: Path, ledger: Unheld, results: dict[str, Any]) -> "RecordedDecisions":
    """What the experts said of every query, if the run's own answers follow from it."""
    from see_lightning.evaluation.counterfactual import mismatch, simulate
    from see_lightning.evaluation.recorded import gather

    stages = list(ledger.content["stages"])
    records = [record for stage in stages for record in ledger.remembered(stage)]
    if not records:
        raise Refusal(f"{run_dir} remembers nothing of what its experts said; run the experiment anew.")
    with well_shaped(run_dir / "results.json"):
        try:
            recorded = gather(records, results, ledger.answers(stages[-1]))
        except Refusal as error:
            raise Refusal(f"what {run_dir} remembers cannot be studied: {error}") from error
        wrong = mismatch(simulate(recorded, results["tasks"][::-1]), results)
    if wrong:
        raise Refusal(
            f"what {run_dir} remembers does not belong to its results: {wrong}. Put its files back, or run the"
            f" experiment anew."
        )
    return recorded


def _keep(run_dir: Path, out: Path | None, results: dict[str, Any], studied: dict[str, Any]) -> None:
    """Write the study to ``out``; without one, beside the run's results and into the run's report."""
    from see_lightning.reporting.report.page import render_html

    text = dump(seal(studied))
    if out:
        write_text(out, text)
        return
    with Ledger(run_dir) as held:
        held.write(run_dir / "study.json", text)
        held.write(run_dir / REPORT, render_html(results, studied))


def _finished(run_dir: Path) -> dict[str, Any]:
    """The results of a run whose experts gave verdicts."""
    results = finished_results(run_dir, "a study needs every answer")
    run = Unheld(run_dir)
    *_, last = run.content["stages"]
    if not any(answer["verdicts"] for answer in run.answers(last)):
        raise Refusal(
            f"{run_dir} is a run of {results['method']} without verdicts of experts, so no other order or threshold can be"
            f" studied; give a run whose experts accept or refuse queries, such as one of method=see."
        )
    return results


def _numbers(text: str) -> list[float]:
    """Finite numbers between commas."""
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(f"finite numbers between commas are wanted, such as -2,0,2.5; got {text!r}")
    return numbers
