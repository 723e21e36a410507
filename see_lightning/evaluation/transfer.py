"""The transfer matrix: the score of each adapter of a run on each task, if it answers all of the task's test queries."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self


@dataclass(frozen=True)
class Transfer:
    """The transfer matrix of a run.

    Args:
        scores: adapter -> task -> score, 0..100; the base model first, then the experts, oldest first.
        own: task -> the right expert.
        size: number of queries of each task, the first ones; None is all.
    """

    scores: Mapping[str, Mapping[str, float]]
    own: Mapping[str, str]
    size: int | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any], tasks: Sequence[str]) -> Self:
        """The matrix in ``transfer.json``.

        Args:
            content: of the file.
            tasks: of the run.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: it has no whole matrix.
        """
        own = {task: content["own"][task] for task in tasks}
        scores = {adapter: {task: float(row[task]) for task in own} for adapter, row in content["transfer"].items()}
        if not set(own.values()) <= set(scores):  # a task without an expert has the base model
            raise ValueError("experts are missing")
        return cls(scores, own, content["size"])

    @property
    def queries(self) -> str:
        """A phrase with the number of queries of each task; empty for all."""
        return "" if self.size is None else f"first {self.size} queries of each task"

    @cached_property
    def diagonal(self) -> dict[str, float]:
        """The score of each task's own expert, by task."""
        return {task: self.scores[expert][task] for task, expert in self.own.items()}

    @cached_property
    def others(self) -> dict[str, float | None]:
        """The mean score of all other tasks' experts, by task; None if there is no other."""
        _, *experts = self.scores
        return {
            task: mean(self.scores[expert][task] for expert in experts if expert != own)
            for task, own in self.own.items()
        }

    def rows(self) -> dict[str, Mapping[str, float | None]]:
        """The rows of the matrix, then own experts and the mean of the others; each with its mean under the name ``""``."""
        rows = {**self.scores, "own expert": self.diagonal, "other experts": self.others}
        return {name: {**row, "": mean(row.values())} for name, row in rows.items()}


def mean(scores: Iterable[float | None]) -> float | None:
    """The mean; None without scores, or if one is None."""
    values = list(scores)
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
