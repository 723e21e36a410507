"""A finished run simulated with another order of experts or another threshold, from its cached responses, without a model.

Letters: T tasks, as many as experts and stages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from see_lightning.errors import Refusal
from see_lightning.evaluation.continual import average, backward_transfer
from see_lightning.evaluation.matrix import ResultsMatrix
from see_lightning.evaluation.recorded import Decisions, RecordedDecisions
from see_lightning.evaluation.routing import BASE, routing_report
from see_lightning.routing.verdicts import walk

Range = tuple[float | None, float | None]
LAST_DIGIT = 1.001e-4  # scores are rounded to 4 digits, and versions of Python differ in the rounding of sums


@dataclass(frozen=True, slots=True)
class Simulation:
    """The results of a run under another order of experts or another threshold.

    The score of an answer that was never generated is unknown; metrics are then ranges.

    Args:
        answers: for each stage, a record for each test query: ``id, task, expert, verdicts, score``.
        lowest: the results matrix with 0 for unknown scores; None for tasks that were not tested.
        highest: the results matrix with 100 for unknown scores.
        ar: lowest and highest AR, 0..100.
        bwt: lowest and highest BWT; None for a single task.
        routing: the section of ``results.json`` after the last stage; it is always exact.
        unknown: number of answers that the matrix needs and that were never generated.
        asked: mean number of experts asked per query after the last stage.
    """

    answers: tuple[list[dict[str, Any]], ...]
    lowest: list[list[float | None]]
    highest: list[list[float | None]]
    ar: Range
    bwt: Range | None
    routing: dict[str, Any]
    unknown: int
    asked: float


def simulate(recorded: RecordedDecisions, order: Sequence[str], threshold: float | None = None) -> Simulation:
    """Route all test queries of a run again, from its recorded verdicts.

    Args:
        recorded: verdicts, log-odds and scores of the run.
        order: all experts in the order of routing; at every stage those that did not exist yet are left out.
        threshold: an expert accepts a query if its log-odds reach it, else rejects it; None uses the verdicts, of which
            ``neither`` ends the walk at the base model.

    Raises:
        Refusal: `order` does not name every expert once, or the threshold is not finite.
    """
    if sorted(order) != sorted(recorded.tasks):
        raise Refusal(f"an order names every expert once: {', '.join(recorded.tasks)}; got {', '.join(order)}.")
    if threshold is not None and not math.isfinite(threshold):
        raise Refusal(f"a threshold is a finite number of log-odds; got {threshold}.")
    decisions = recorded.decisions(threshold)
    answers = tuple(_stage(recorded, stage, order, decisions) for stage in range(len(recorded.tasks)))
    lowest, highest = _matrix(recorded, answers, 0, 0), _matrix(recorded, answers, 100, 100)
    # BWT is lowest if unknown scores are 0 in the last row and 100 before it.
    most_lost, least_lost = _matrix(recorded, answers, 0, 100), _matrix(recorded, answers, 100, 0)
    last = answers[-1]
    return Simulation(
        answers,
        lowest,
        highest,
        (average(lowest), average(highest)),
        (backward_transfer(most_lost), backward_transfer(least_lost)) if len(recorded.tasks) > 1 else None,
        routing_report(last, recorded.tasks),
        len({(a["task"], a["id"], a["expert"]) for stage in answers for a in stage if a["score"] is None}),
        sum(len(answer["verdicts"]) for answer in last) / len(last),
    )


def _stage(recorded: RecordedDecisions, stage: int, order: Sequence[str], decisions: Decisions) -> list[dict[str, Any]]:
    """Route the test queries of a stage (counted from 0): a record for each, as in ``Simulation.answers``."""
    tested = [number for number, (task, _) in enumerate(recorded.queries) if task in recorded.tests[stage]]
    born = [expert for expert in order if expert in recorded.tasks[: stage + 1]]
    routes = walk([born] * len(tested), lambda expert, rows: [decisions[expert][tested[row]] for row in rows])
    return [
        {
            "id": recorded.queries[number][1],
            "task": recorded.queries[number][0],
            "expert": end.expert or BASE,
            "verdicts": list(end.verdicts),
            "score": recorded.scores[end.expert or BASE][number],
        }
        for number, end in zip(tested, routes, strict=True)
    ]


def _matrix(
    recorded: RecordedDecisions, answers: Sequence[list[dict[str, Any]]], unknown: float, unknown_before: float
) -> list[list[float | None]]:
    """The results matrix with a score for every unknown answer, and another one for those that are not in the last stage."""
    at_end = {(a["task"], a["id"], a["expert"]) for a in answers[-1]}
    matrix = ResultsMatrix(recorded.tasks)
    for after, stage in enumerate(answers, start=1):
        scores: dict[str, list[float]] = {task: [] for task in recorded.tests[after - 1]}
        for a in stage:
            # The same expert's answer to the same query is the same answer at every stage.
            fill = unknown if (a["task"], a["id"], a["expert"]) in at_end else unknown_before
            scores[a["task"]].append(fill if a["score"] is None else a["score"])
        for task, values in scores.items():
            matrix.set(after, task, round(sum(values) / len(values), 4))
    return matrix.to_list()


def mismatch(simulated: Simulation, results: Mapping[str, Any]) -> str | None:
    """Compare a simulation of the run's own walk with ``results.json``: the first difference in words, or None."""
    tasks = results["tasks"]
    for t, rows in enumerate(zip(simulated.lowest, simulated.highest, results["matrix"], strict=True)):
        for task, low, high, measured in zip(tasks, *rows, strict=True):
            if low is None or high is None or measured is None:
                continue
            if low != high:
                return f"answers to {task!r} after {t + 1} tasks that results.json counts are not in the record"
            if abs(low - measured) > LAST_DIGIT:
                return f"they give {low} on {task!r} after {t + 1} tasks, results.json has {measured}"
    if simulated.routing["confusion"] != results["routing"]["confusion"]:
        return "they route queries differently from results.json"
    return None
