"""Figures of a router on one set of queries: routing right and share of the base model, over all tasks and by task."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from see_lightning.evaluation.routing import BASE

AS_IS = "as_is"  # the run's own test queries as they stand
Record = Mapping[str, Any]  # ``task`` and ``expert``, a task's name or ``base``


def routed_right(records: Sequence[Record], given: Mapping[str, str]) -> float:
    """Share of queries that reach their own task's expert, 0..1.

    Args:
        records: of queries, at least one.
        given: by task, the right expert.

    >>> routed_right([{"task": "qa", "expert": "qa"}, {"task": "qa", "expert": "base"}], {"qa": "qa"})
    0.5
    """
    right = [given[record["task"]] == record["expert"] for record in records]
    return round(right.count(True) / len(right), 6)


def reach_base(records: Sequence[Record]) -> float:
    """Share of queries that reach the base model, 0..1; at least one record.

    >>> reach_base([{"task": "qa", "expert": "qa"}, {"task": "qa", "expert": "base"}])
    0.5
    """
    reached = [record["expert"] == BASE for record in records]
    return round(reached.count(True) / len(reached), 6)


def by_task(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each task, in the order in which the tasks appear."""
    tasks = dict.fromkeys(record["task"] for record in records)
    return {task: [record for record in records if record["task"] == task] for task in tasks}


def own_figures(records: Sequence[Record], given: Mapping[str, str]) -> dict[str, Any]:
    """Routing of the run's own queries under one wording.

    Args:
        records: of the queries.
        given: by task, the right expert.

    Returns:
        ``right`` and ``base_share``, and ``per_task``, the first of these by task.
    """
    return {
        "right": routed_right(records, given),
        "base_share": reach_base(records),
        "per_task": {task: routed_right(some, given) for task, some in by_task(records).items()},
    }


def foreign_figures(records: Sequence[Record]) -> dict[str, Any]:
    """Routing of queries that belong to no expert: ``base_share``, and by task ``per_task``."""
    return {
        "base_share": reach_base(records),
        "per_task": {task: reach_base(some) for task, some in by_task(records).items()},
    }


def answered(records: Sequence[Record], tasks: Sequence[str]) -> dict[str, Any]:
    """Scores of answers to the run's own queries.

    Args:
        records: of the queries, with ``score`` in 0..100.
        tasks: of the run.

    Returns:
        ``scores`` by task, and ``AR``, their mean with equal weights.
    """
    scores = {task: mean(record["score"] for record in some) for task, some in by_task(records).items()}
    return {
        "AR": round(mean(scores[task] for task in tasks), 4),
        "scores": {task: round(scores[task], 4) for task in tasks},
    }
