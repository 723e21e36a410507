"""The largest log-odds: all experts decide on a query, and the surest of them answers.

Letters: Q queries, T tasks, P held-out prompts.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from see_lightning.routing.scoring import ScoringRouter, checked_wordings
from see_lightning.routing.verdicts import threshold_at_recall
from see_lightning.routing.walk import Deciding, log_odds
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.variants import AS_IS

LOG_ODDS = "log_odds"  # tensor of a task's state: its expert's log-odds on the task's held-out rows
LEAST_STD = 0.1  # nats; rows that are all alike would make any other query infinitely far


def standardised(log_odds_QT: Tensor, own: Sequence[Tensor]) -> Tensor:
    """Log-odds of several experts on one measure, (Q, T): distances from an expert's own rows in their standard deviations.

    Args:
        log_odds_QT: of accepting each query, in nats.
        own: for each expert, its log-odds on rows of its own task, (P,).
    """
    mean_T = torch.stack([one.mean() for one in own])
    std_T = torch.stack([one.std(correction=0) for one in own]).clamp(min=LEAST_STD)
    return (log_odds_QT - mean_T) / std_T


class Argmax(ScoringRouter):
    """The expert whose log-odds of accepting the query are the largest, measured by its log-odds on its own task.

    The score is the log-odds less their mean over held-out rows of the expert's task, in standard deviations of these. All
    experts prefill every query; the verdicts themselves and the method's thresholds do not count.

    Args:
        method: whose experts give verdicts.
        target_recall: least share of a task's held-out rows that its threshold accepts; 0: the base model is never chosen.
        wordings: of held-out rows: ``as_is``, ``input_only`` (without the definition), or both.
    """

    needs = frozenset({"has_experts", "learns_refusals"})
    holds_out = True

    def __init__(self, method: Deciding, *, target_recall: float = 0.98, wordings: Sequence[str] = (AS_IS,)) -> None:
        super().__init__(method, target_recall=target_recall)
        self._deciding = method
        self.holds_out, self.wordings = True, checked_wordings(wordings)

    def hold_out(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Keep the log-odds of the task's expert on its held-out rows."""
        own = [found for (found,) in log_odds(self._deciding, prompts, [[task]] * len(prompts))]
        self.kept[task] = {LOG_ODDS: torch.tensor(own, dtype=torch.float64)}

    def candidates(self) -> list[str]:
        """The experts with held-out rows."""
        return list(self.kept)

    def scores(self, queries: Queries) -> Tensor:
        """The standardised log-odds of every expert, (Q, T)."""
        router = self._deciding.sequential_router(replace(queries, only_decide=True))
        log_odds_QT = torch.tensor(router.log_odds([list(self.kept)] * len(queries)), dtype=torch.float64)
        return standardised(log_odds_QT, self._own)

    def thresholds(self) -> Tensor:
        """The least standardised log-odds with which an expert answers, (T,)."""
        if not self.target_recall:
            return torch.full((len(self.kept),), -torch.inf, dtype=torch.float64)
        own = [standardised(one[:, None], [one])[:, 0].tolist() for one in self._own]
        return torch.tensor([threshold_at_recall(one, self.target_recall) for one in own], dtype=torch.float64)

    @property
    def _own(self) -> list[Tensor]:
        return [kept[LOG_ODDS].cpu() for kept in self.kept.values()]
