"""A finished run simulated with another asking order or another threshold, from its cached responses and without a model.

Letters: T tasks, as many as experts and stages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from see_lightning.errors import Refusal
from see_lightning.evaluation.continual import average, backward_transfer
from see_lightning.evaluation.matrix import ResultsMatrix
from see_lightning.evaluation.recorded import Opinions, Said
from see_lightning.evaluation.routing import BASE, routing_report
from see_lightning.experts.walk import walk

Range = tuple[float | None, float | None]
LAST_DIGIT = 1.001e-4  # scores are kept to 4 digits, and Pythons differ in how exactly they sum what is rounded


@dataclass(frozen=True, slots=True)
class Replay:
    """What a run would have given, had its experts been asked in another way.

    Where an answer was never generated its score is unknown, and ranges say what it could be.

    Args:
        answers: for each stage, a record for each query tested: ``id, task, expert, verdicts, score``.
        lowest: the results matrix with 0 for unknown scores; None where nothing was tested.
        highest: the same with 100.
        ar: lowest and highest AR, 0..100.
        bwt: lowest and highest BWT; None for a single task.
        routing: as in ``results.json``, after the last stage; nothing in it is unknown.
        unknown: how many answers were never generated that the matrix needs.
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


def replay(said: Said, order: Sequence[str], threshold: float | None = None) -> Replay:
    """Ask the experts of a run once more, from memory.

    Args:
        said: what they said.
        order: all experts, the first to be asked first; at every stage those not born yet are left out.
        threshold: an expert accepts a query if its log-odds reach it, else passes it on; None goes by its verdicts, of
            which ``neither`` ends the walk at the base model.

    Raises:
        Refusal: `order` does not name every expert once, or the threshold is no finite number.
    """
    if sorted(order) != sorted(said.tasks):
        raise Refusal(f"an order names every expert once: {', '.join(said.tasks)}; got {', '.join(order)}.")
    if threshold is not None and not math.isfinite(threshold):
        raise Refusal(f"a threshold is a finite number of log-odds; got {threshold}.")
    opinions = said.opinions(threshold)
    answers = tuple(_stage(said, stage, order, opinions) for stage in range(len(said.tasks)))
    lowest, highest = _matrix(said, answers, 0, 0), _matrix(said, answers, 100, 100)
    # A difference is least if what is unknown at the end is worth 0, and what is unknown before is worth 100.
    most_lost, least_lost = _matrix(said, answers, 0, 100), _matrix(said, answers, 100, 0)
    last = answers[-1]
    return Replay(
        answers,
        lowest,
        highest,
        (average(lowest), average(highest)),
        (backward_transfer(most_lost), backward_transfer(least_lost)) if len(said.tasks) > 1 else None,
        routing_report(last, said.tasks),
        len({(a["task"], a["id"], a["expert"]) for stage in answers for a in stage if a["score"] is None}),
        sum(len(answer["verdicts"]) for answer in last) / len(last),
    )


def _stage(said: Said, stage: int, order: Sequence[str], opinions: Opinions) -> list[dict[str, Any]]:
    """Who answers the queries that are tested after a stage (from 0)."""
    tested = [number for number, (task, _) in enumerate(said.queries) if task in said.tests[stage]]
    born = [expert for expert in order if expert in said.tasks[: stage + 1]]
    walked = walk(born, len(tested), lambda expert, rows: [opinions[expert][tested[row]] for row in rows])
    return [
        {
            "id": said.queries[number][1],
            "task": said.queries[number][0],
            "expert": end.expert or BASE,
            "verdicts": list(end.verdicts),
            "score": said.scores[end.expert or BASE][number],
        }
        for number, end in zip(tested, walked, strict=True)
    ]


def _matrix(
    said: Said, answers: Sequence[list[dict[str, Any]]], unknown: float, unknown_before: float
) -> list[list[float | None]]:
    """The results matrix with a score for every unknown answer, another one for those that the last stage has not."""
    at_end = {(a["task"], a["id"], a["expert"]) for a in answers[-1]}
    matrix = ResultsMatrix(said.tasks)
    for after, stage in enumerate(answers, start=1):
        scores: dict[str, list[float]] = {task: [] for task in said.tests[after - 1]}
        for a in stage:
            # The same expert's answer to the same query is the same answer at every stage.
            fill = unknown if (a["task"], a["id"], a["expert"]) in at_end else unknown_before
            scores[a["task"]].append(fill if a["score"] is None else a["score"])
        for task, values in scores.items():
            matrix.set(after, task, round(sum(values) / len(values), 4))
    return matrix.to_list()


def disagreement(replayed: Replay, results: Mapping[str, Any]) -> str | None:
    """What a replay of the run's own walk gives otherwise than ``results.json``, or None if they agree."""
    tasks = results["tasks"]
    for t, rows in enumerate(zip(replayed.lowest, replayed.highest, results["matrix"], strict=True)):
        for task, low, high, measured in zip(tasks, *rows, strict=True):
            if low is None or high is None or measured is None:
                continue
            if low != high:
                return f"answers to {task!r} after {t + 1} tasks that results.json counts are not remembered"
            if abs(low - measured) > LAST_DIGIT:
                return f"they give {low} on {task!r} after {t + 1} tasks, results.json says {measured}"
    if replayed.routing["confusion"] != results["routing"]["confusion"]:
        return "they route queries otherwise than results.json counts"
    return None
