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
from see_lightning.engine.run_report import REPORT, STUDY, run_report
from see_lightning.errors import FULL, Refusal, barred, listed, room_needed
from see_lightning.files.run_files import seal, well_shaped
from see_lightning.files.writing import check_out, write_text

if TYPE_CHECKING:
    from see_lightning.evaluation.recorded import RecordedDecisions

DESCRIPTION = """\
The results that a finished run of SEE would have with another order of experts or another threshold. They are computed from
the cached verdicts and responses (tasks/*/remembered.jsonl), so no model is read without --answer. Prints a table, keeps it
as study.json in the run's directory, and draws it into report.html."""
EPILOG = """\
An expert accepts a query by its verdict, as in the run itself, or if its log-odds of accepting reach a threshold. If
another expert would answer than in the run, its answer was never generated and the score is unknown: AR and BWT are then
ranges, from 0 to 100 for each such answer, unless --answer generates it. Routing is always exact."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a run, orders and thresholds."""
    parser.add_run_dir()
    parser._negative_number_matcher = re.compile(r"-[\d.]")  # -2,0 is a value, as -2 is
    parser.add_argument(
        "--thresholds",
        type=_numbers,
        metavar="X,X,...",
        help="log-odds, such as -2,0,2.5; by default 0, one that 1 %% of other tasks' queries reach, and one that 1 %% of own"
        " queries miss. The one with the best routing is always added",
    )
    parser.add_argument(
        "--orders",
        action="append",
        metavar="ORDER,...",
        help="newest (the run's own), oldest, random:N, or all tasks in the order of routing; may be given several"
        " times; the picture shows the first (default newest,oldest,random:3)",
    )
    parser.add_argument(
        "--answer",
        action="store_true",
        help="first generate the answer of each expert to every test query that it accepts, and of the base model to all:"
        " then every order is exact. Reads the model and the data; the answers are kept with the run",
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
    """Print the study of a run, keep it with its results, and draw it into the report.

    Args:
        run_dir: of a finished run.
        thresholds: least log-odds of an accepted query; None chooses them from the observed ones.
        orders: such as ``newest,oldest,random:3``, see ``name_orders``.
        answer: whether to load the experts first and generate the answers to all queries that they accept.
        out: another file for the study; then nothing is written into the run's directory, and no lock is taken there.
        trust: the code named in the run's settings that may run for ``answer``.

    Returns:
        The path of the report, or ``out``.

    Raises:
        Refusal: the run has no usable record of verdicts.
    """
    run_dir = find_run(run_dir)
    results = _finished(run_dir)
    # Late, because these import torch, which takes longer than a refusal should.
    from rich.console import Console

    from see_lightning.evaluation.study import name_orders, study
    from see_lightning.evaluation.thresholds import default_thresholds
    from see_lightning.reporting.report.study import print_study

    named = name_orders(orders, results["tasks"], results["seed"])
    ledger = Unheld(run_dir)  # final files never change, so reading takes no lock
    if out:
        check_out(out)
    if answer:
        from see_lightning.engine.loaded_run import answer_everything

        with room_needed(run_dir, "--out FILE"), ledger if out else Ledger(run_dir) as held:
            print(f"{answer_everything(held, trust)} further answers were generated", file=sys.stderr)
        ledger = ledger if out else Unheld(run_dir)
    recorded = _remembered(run_dir, ledger, results)
    studied = study(recorded, named, default_thresholds(recorded) if thresholds is None else thresholds)
    try:
        _keep(run_dir, out, results, studied)
    except OSError as error:
        if error.errno in FULL or (reason := barred(error)) is None:
            raise
        print(f"note: the study is printed but not kept: {reason} --out FILE keeps it elsewhere.", file=sys.stderr)
    print_study(studied, Console())
    return out or run_dir / REPORT


def _remembered(run_dir: Path, ledger: Unheld, results: dict[str, Any]) -> "RecordedDecisions":
    """The recorded verdicts and responses of every query, checked against the run's own answers."""
    from see_lightning.evaluation.counterfactual import mismatch, simulate
    from see_lightning.evaluation.recorded import gather

    stages = list(ledger.content["stages"])
    records = [record for stage in stages for record in ledger.remembered(stage)]
    if not records:
        raise Refusal(f"{run_dir} has no record of its experts' verdicts; run the experiment again from the start.")
    with well_shaped(run_dir / "results.json"):
        try:
            recorded = gather(records, results, ledger.answers(stages[-1]))
        except Refusal as error:
            raise Refusal(f"the record of verdicts in {run_dir} cannot be studied: {error}") from error
        wrong = mismatch(simulate(recorded, results["tasks"][::-1]), results)
    if wrong:
        raise Refusal(
            f"the record of verdicts in {run_dir} does not belong to its results: {wrong}. Put its files back, or run the"
            f" experiment again from the start."
        )
    return recorded


def _keep(run_dir: Path, out: Path | None, results: dict[str, Any], studied: dict[str, Any]) -> None:
    """Write the study to ``out``, or by default with the run's results and into the run's report."""
    text = dump(seal(studied))
    if out:
        write_text(out, text)
        return
    with Ledger(run_dir) as held:
        held.write(run_dir / STUDY, text)
        held.write(run_dir / REPORT, run_report(run_dir, results))


def _finished(run_dir: Path) -> dict[str, Any]:
    """The results of a run whose experts gave verdicts."""
    results = finished_results(run_dir, "a study needs every answer")
    run = Unheld(run_dir)
    *_, last = run.content["stages"]
    if not any(answer["verdicts"] for answer in run.answers(last)):
        raise Refusal(
            f"{run_dir} is a run of {results['method']} without verdicts of experts, so no other order or threshold can be"
            f" studied; give a run whose experts accept or reject queries, such as one of method=see."
        )
    if (router := results.get("router") or "walk") != "walk":
        raise Refusal(
            f"{run_dir} was routed by {router}, which asks few experts for a query, and a study needs the verdicts of all;"
            f" give a run of the same experts without router=."
        )
    if results.get("config", {}).get("method", {}).get("second_chance") == "on":
        raise Refusal(
            f"{run_dir} gave refused queries a second chance, which depends on more than the verdicts of the walk; give a run"
            f" of the same experts with method.second_chance=off."
        )
    others = [task for task, expert in results.get("given", {}).items() if task != expert]
    order = results.get("config", {}).get("order", {})
    others += [
        task for task, one in (order.get("experts") or {}).items() if isinstance(one, str) and task not in others
    ]
    if others:
        raise Refusal(
            f"{run_dir} trained no expert for {listed(others)}, which was reused, left out or imported, and a study needs one"
            f" for every task; give a run with method.reuse=off and without order.experts."
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
