"""The transfer matrix: what each voice of a run would score on each task, if it answered all of the task's test queries."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self


@dataclass(frozen=True)
class Transfer:
    """The matrix of a run.

    Args:
        scores: voice -> task -> score, 0..100; the base model first, then the experts in order of birth.
        own: task -> the expert that is right for it.
        size: of each task only so many queries, the first ones, were put; None if all were.
    """

    scores: Mapping[str, Mapping[str, float]]
    own: Mapping[str, str]
    size: int | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any], tasks: Sequence[str]) -> Self:
        """What ``transfer.json`` holds.

        Args:
            content: of the file.
            tasks: of the run.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: it does not hold a whole matrix.
        """
        own = {task: content["own"][task] for task in tasks}
        scores = {adapter: {task: float(row[task]) for task in own} for adapter, row in content["transfer"].items()}
        _, *experts = scores
        if not set(own.values()) <= set(experts):
            raise ValueError("experts are missing")
        return cls(scores, own, content["size"])

    @property
    def queries(self) -> str:
        """How many of a task's queries were put, if not all."""
        return "" if self.size is None else f"first {self.size} queries of each task"

    @cached_property
    def diagonal(self) -> dict[str, float]:
        """By task, what its own expert scores."""
        return {task: self.scores[expert][task] for task, expert in self.own.items()}

    @cached_property
    def others(self) -> dict[str, float | None]:
        """By task, the mean score of all other tasks' experts; None where there is no other."""
        _, *experts = self.scores
        return {
            task: mean(self.scores[expert][task] for expert in experts if expert != own)
            for task, own in self.own.items()
        }

    def rows(self) -> dict[str, Mapping[str, float | None]]:
        """The matrix, and below it the task's own experts and the mean of the others, each with its ``mean`` over tasks."""
        rows = {**self.scores, "own expert": self.diagonal, "other experts": self.others}
        return {name: {**row, "": mean(row.values())} for name, row in rows.items()}


def mean(scores: Iterable[float | None]) -> float | None:
    """None of no scores, and where one is not known."""
    values = list(scores)
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
