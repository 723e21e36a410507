"""Propose and verify: the scores of one router propose experts, whose own verdicts accept or refuse the query.

Experts trained to refuse other tasks recognise their queries by the words of the definition; features of the base model find
the task under other words, but tell foreign queries from own ones badly. Here features choose whom to ask and the expert
decides, so the number of experts asked for a query does not grow with the number of tasks.

Letters: Q queries, T tasks, P prompts, H hidden states.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.config.instantiate import instantiate
from see_lightning.errors import ConfigError
from see_lightning.routing.scoring import ScoringRouter
from see_lightning.routing.walk import Deciding, Verifying
from see_lightning.tasks.batches import Queries


class Propose(Verifying):
    """The first of the best proposed experts that accepts the query by its verdict; the base model if none does.

    Args:
        method: whose experts give verdicts; it keeps their thresholds.
        by: settings of the router whose scores propose, such as one of features. With a ``target_recall`` above 0, experts
            whose score lies below their task's threshold are not asked.
        experts: number of experts that are asked for a query, at most.

    Raises:
        ConfigError: ``by`` gives no scores, or a setting is out of range.
    """

    def __init__(self, method: Deciding, *, by: Mapping[str, Any], experts: int = 1) -> None:
        super().__init__(method)
        within("router.experts", experts, 1)
        self.by, self.experts = scoring_router(by, method), experts
        self.wordings, self.holds_out = self.by.wordings, self.by.holds_out

    def orders(self, queries: Queries) -> list[list[str]]:
        """The best experts by their scores, the best first."""
        names = self.by.candidates()
        if not names:
            return [[] for _ in queries.ids]
        best = best_tasks(self.by.scores(queries), self.by.thresholds(), self.experts)
        return [[names[task] for task in tasks] for tasks in best]

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """The router that proposes learns the task."""
        self.by.learn(task, prompts)

    def hold_out(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """The router that proposes sets a threshold, if it has one."""
        self.by.hold_out(task, prompts)

    def state(self, task: str) -> dict[str, Tensor]:
        """What the router that proposes keeps of a task."""
        return self.by.state(task)

    def load_state(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """The router that proposes takes up a task."""
        self.by.load_state(task, tensors)

    def nbytes(self) -> int:
        """Size of what the router that proposes keeps."""
        return self.by.nbytes()


def scoring_router(settings: Mapping[str, Any], method: Deciding) -> ScoringRouter:
    """The router whose scores another router uses.

    Args:
        settings: with its ``_target_``.
        method: whose queries are routed.

    Raises:
        ConfigError: it gives no scores, or does not take the settings.
    """
    router = instantiate(settings, method=method)
    if not isinstance(router, ScoringRouter):
        raise ConfigError(
            f"router.by={settings['_target_']} gives no scores; choose a router that does, such as"
            " router@router.by=analytic."
        )
    return router


def best_tasks(scores_QT: Tensor, least_T: Tensor, number: int) -> list[list[int]]:
    """For each query, the tasks with the largest scores, the largest first; of equal ones the oldest.

    Args:
        scores_QT: larger is nearer.
        least_T: tasks with a lower score are left out.
        number: of tasks for a query, at most.

    >>> from torch import tensor
    >>> best_tasks(tensor([[0.1, 0.9, 0.5], [0.2, 0.2, 0.1]]), tensor([0.0, 0.0, 0.6]), 2)
    [[1], [0, 1]]
    """
    order_QT = scores_QT.sort(dim=1, descending=True, stable=True).indices[:, :number]
    is_far_QT = (scores_QT < least_T.to(scores_QT)).tolist()
    return [
        [task for task in tasks if not far_T[task]] for tasks, far_T in zip(order_QT.tolist(), is_far_QT, strict=True)
    ]
