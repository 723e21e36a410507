"""Statistics of the last row of the results matrix: queries, standard errors, and scores of labels with and without form."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from see_lightning.evaluation.labels import LABELS, strict_and_normalised
from see_lightning.evaluation.scores import best_score, references_of


def last_row(answers: Iterable[Mapping[str, Any]], scores: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Statistics of the answers after the last task.

    Args:
        answers: records with ``task, text, target, score``, and ``references`` if there are several; at least one
            record for every task.
        scores: the name of each task's score.

    Returns:
        For each task ``n`` answers, their ``scores`` in the order of the records, the mean ``score`` and its standard error
        ``stderr`` (sample standard deviation over the root of n; None for one answer), ``exact_match_olora``, and for scores
        of labels ``strict`` and ``normalised`` (see `strict_and_normalised`). All but ``n`` are in 0..100.

    >>> answers = [{"task": "qa", "text": text, "target": "B", "score": score} for text, score in (("B", 100.0), ("b.", 0.0))]
    >>> for name, value in last_row(answers, {"qa": "accuracy_trace"})["qa"].items():
    ...     print(name, value)
    n 2
    scores [100.0, 0.0]
    score 50.0
    stderr 50.0
    exact_match_olora 100.0
    strict 50.0
    normalised 100.0
    """
    of_task: dict[str, list[Mapping[str, Any]]] = {task: [] for task in scores}
    for answer in answers:
        of_task[answer["task"]].append(answer)
    return {task: _facts(of_task[task], score) for task, score in scores.items()}


def _facts(answers: list[Mapping[str, Any]], score: str) -> dict[str, Any]:
    values = [answer["score"] for answer in answers]
    facts: dict[str, Any] = {
        "n": len(values),
        "scores": [round(value, 2) for value in values],
        "score": _mean(values),
        "stderr": round(statistics.stdev(values) / math.sqrt(len(values)), 4) if len(values) > 1 else None,
        "exact_match_olora": _mean(
            [best_score("exact_match_olora", answer["text"], references_of(answer)) for answer in answers]
        ),
    }
    if score in LABELS:
        best = [_best_of(score, answer) for answer in answers]
        facts["strict"], facts["normalised"] = map(_mean, zip(*best, strict=True))
    return facts


def _best_of(score: str, answer: Mapping[str, Any]) -> list[float]:
    """The better of each comparison over the references of an answer."""
    pairs = [strict_and_normalised(score, answer["text"], reference) for reference in references_of(answer)]
    return [max(values) for values in zip(*pairs, strict=True)]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return round(sum(values) / len(values), 4)
