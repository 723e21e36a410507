"""Nearest neighbours among training prompts (Cover and Hart, 1967).

Letters: P prompts, T tasks, H hidden states, M kept prompts of one task, N kept prompts of all tasks, K neighbours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from see_lightning.config.checks import one_of, within
from see_lightning.routing.features import FeatureRouter
from see_lightning.routing.router import Routed
from see_lightning.tasks.variants import AS_IS, INPUT_ONLY

METRICS = ("cosine", "euclidean")


def nearness(states_PH: Tensor, kept_MH: Tensor, metric: str) -> Tensor:
    """How near features lie to kept ones, (P, M), in 0..1: (1 + cosine) / 2, or 1 / (1 + Euclidean distance).

    >>> own, kept = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> nearness(own, kept, "cosine").tolist()
    [[1.0, 0.5, 0.0]]
    >>> nearness(own, kept[:1], "euclidean").tolist()
    [[0.5]]
    """
    if metric == "cosine":
        return (1 + normalize(states_PH, dim=1) @ normalize(kept_MH, dim=1).T) / 2
    distances_PM: Tensor = (states_PH[:, None] - kept_MH).norm(dim=2)
    return 1 / (1 + distances_PM)


class Knn(FeatureRouter):
    """The expert of the task with most of the k nearest training prompts; of equal ones that of the nearest prompt.

    A task's score is the number of its prompts among the k nearest, plus half the ``nearness`` of its nearest prompt. So the
    threshold is on the distance where all k neighbours belong to one task, and a divided vote counts as far.

    Args:
        method: whose queries are routed.
        k: number of neighbours that vote, at least 1.
        metric: ``cosine`` or ``euclidean``.
        prompts_per_task: different training prompts that are kept of each task, at most: the first ones.
        layer: as in ``FeatureRouter``.
        wordings: as in ``FeatureRouter``.
        target_recall: as in ``FeatureRouter``.
    """

    def __init__(
        self,
        method: Routed,
        *,
        k: int = 1,
        metric: str = "cosine",
        prompts_per_task: int = 200,
        layer: float | None = None,
        wordings: Sequence[str] = (AS_IS, INPUT_ONLY),
        target_recall: float = 0.0,
    ) -> None:
        super().__init__(method, layer=layer, wordings=wordings, target_recall=target_recall)
        within("router.k", k, 1)
        one_of("router.metric", metric, METRICS)
        within("router.prompts_per_task", prompts_per_task, 1)
        self.k, self.metric, self.prompts_per_task = k, metric, prompts_per_task

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Keep the features of the task's first different prompts; a prompt that comes twice has one vote."""
        super().learn(task, list(dict.fromkeys(map(tuple, prompts)))[: self.prompts_per_task])

    def fit(self, task: str, states_PH: Tensor) -> None:
        """Keep features."""
        self.kept[task] = {"states": states_PH}

    def score(self, states_PH: Tensor) -> Tensor:
        """Votes, and half the nearness of each task's nearest prompt."""
        near = [nearness(states_PH, one["states"].to(states_PH), self.metric) for one in self.kept.values()]
        owner_N = torch.arange(len(near)).repeat_interleave(torch.tensor([near_PM.shape[1] for near_PM in near]))
        near_PN = torch.cat(near, dim=1)
        # A stable sort, so that of equally near prompts those of the older task come first.
        nearest_PK = near_PN.sort(dim=1, descending=True, stable=True).indices[:, : self.k].cpu()
        votes_PT = one_hot(owner_N[nearest_PK], len(near)).sum(1)
        return votes_PT.to(near_PN) + torch.stack([near_PM.amax(1) for near_PM in near], dim=1) / 2
