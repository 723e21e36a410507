"""Routers by a score of each expert, and their thresholds.

Letters: Q queries, T experts.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.errors import ConfigError
from see_lightning.routing.router import Routed, Router
from see_lightning.routing.verdicts import threshold_at_recall
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.variants import WORDINGS

THRESHOLD = "threshold"  # tensor of a task's state


class ScoringRouter(Router):
    """The expert with the largest score; the base model where that score lies below the expert's threshold.

    Args:
        method: whose queries are routed.
        target_recall: least share of a task's held-out rows that its threshold accepts; 0 for no threshold, so the base
            model is never chosen.

    Raises:
        ConfigError: ``target_recall`` is no share.
    """

    def __init__(self, method: Routed, *, target_recall: float = 0.0) -> None:
        super().__init__(method)
        within("router.target_recall", target_recall, 0, 1)
        self.target_recall, self.holds_out = target_recall, target_recall > 0

    @abstractmethod
    def candidates(self) -> list[str]:
        """The experts that are scored, the oldest first."""

    @abstractmethod
    def scores(self, queries: Queries) -> Tensor:
        """The score of each query for each candidate, (Q, T); larger is better. Costs are counted."""

    @abstractmethod
    def thresholds(self) -> Tensor:
        """The least score at which each candidate is chosen, (T,); -inf for one without threshold."""

    def route(self, queries: Queries) -> list[str | None]:
        """The expert with the largest score for each query, of equal ones the oldest; None below its threshold."""
        names = self.candidates()
        if not names:
            return [None] * len(queries)
        least = self.thresholds().tolist()
        best = [(max(row), row.index(max(row))) for row in self.scores(queries).tolist()]
        return [names[place] if score >= least[place] else None for score, place in best]


def checked_wordings(wordings: Sequence[str]) -> tuple[str, ...]:
    """Wordings of a task's rows for a router.

    Raises:
        ConfigError: they are no list of words from ``WORDINGS``.
    """
    if isinstance(wordings, str) or not wordings or not set(wordings) <= set(WORDINGS):
        raise ConfigError(f"router.wordings is a list of words from {', '.join(WORDINGS)}; got {wordings!r}.")
    return tuple(wordings)


class PromptRouter(ScoringRouter):
    """Scores all experts of the pool on each prompt by itself, by what the experts make of it."""

    @abstractmethod
    def score(self, prompt: tuple[int, ...]) -> Tensor:
        """How well each candidate fits a prompt, (T,), in fp64; larger is better.

        It depends on nothing but the prompt and the experts, and is not counted as a cost.
        """

    def prefills(self) -> int:
        """Forward passes over the prompt that a score needs."""
        return 1

    def candidates(self) -> list[str]:
        """All experts."""
        return self.method.pool.names

    def scores(self, queries: Queries) -> Tensor:
        """The score of each query for each expert, (Q, T), counted as prefills."""
        self.method.counts["prefills"] += self.prefills() * len(queries)
        return torch.stack([self.score(tuple(prompt)) for prompt in queries.prompts])

    def hold_out(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Set the threshold of a task's expert."""
        if self.holds_out:
            self.kept[task] = {THRESHOLD: torch.tensor(self._threshold(task, prompts), dtype=torch.float64)}

    def thresholds(self) -> Tensor:
        """The least score at which each expert is chosen, (T,); -inf for an expert without threshold."""
        least = [float(self.kept.get(name, {}).get(THRESHOLD, -torch.inf)) for name in self.candidates()]
        return torch.tensor(least, dtype=torch.float64)

    def _threshold(self, task: str, prompts: Sequence[Sequence[int]]) -> float:
        """The highest score of its own expert that enough prompts of a task reach."""
        place = self.candidates().index(task)
        return threshold_at_recall([float(self.score(tuple(prompt))[place]) for prompt in prompts], self.target_recall)
