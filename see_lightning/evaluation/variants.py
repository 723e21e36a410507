"""Scores and routing of a run on variants of its test queries, as in the run's own last row."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from see_lightning.evaluation.routing import routing_report


def variant_report(
    answers: Sequence[Mapping[str, Any]], tasks: Sequence[str], *, routed: bool, given: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The section of ``results.json`` on one variant.

    Args:
        answers: to the variant's queries: ``id, task, expert, verdicts, score``; at least one of each task.
        tasks: in their order.
        routed: whether the method routes queries without their task.
        given: by task, the right expert; by default that of its name.

    Returns:
        ``scores`` by task, in 0..100, and ``AR``, their mean; ``routing_accuracy`` and ``base_share``, the shares of queries
        that their own task's expert and the base model answered, and ``confusion``, all None unless ``routed``.

    >>> answer = {"id": "1", "task": "qa", "expert": "base", "verdicts": ["neg"], "score": 40.0}
    >>> variant_report([answer], ["qa"], routed=False)["AR"]
    40.0
    """
    scores = {task: mean(answer["score"] for answer in answers if answer["task"] == task) for task in tasks}
    routing = routing_report(answers, tasks, given) if routed else {}
    return {
        "AR": round(mean(scores.values()), 4),
        "scores": {task: round(score, 4) for task, score in scores.items()},
        "routing_accuracy": routing.get("accuracy"),
        "base_share": routing.get("base_share"),
        "confusion": routing.get("confusion"),
    }
