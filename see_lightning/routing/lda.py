"""Linear discriminant analysis of features, updated task by task (Deep SLDA: Hayes and Kanan, CVPR Workshops 2020).

arXiv 1909.01520; the distance from the nearest class as a sign of unknown inputs is that of Lee et al., NeurIPS 2018, arXiv
1807.03888.

Letters: P prompts, T tasks, H hidden states.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from see_lightning.adapters.embeddings import shrunk
from see_lightning.config.checks import within
from see_lightning.routing.features import FeatureRouter, symmetric, triangle
from see_lightning.routing.router import Routed
from see_lightning.tasks.variants import AS_IS, INPUT_ONLY

SCATTER, ROWS = "scatter", "rows"  # tensors of all tasks: the lower triangle of the sum of squares, and their number


class Lda(FeatureRouter):
    """The expert of the task whose mean is nearest, by the Mahalanobis distance under one covariance of all tasks.

    The covariance is that of features around the mean of their own task. Tasks count alike, whatever their size.

    Args:
        method: whose queries are routed.
        shrinkage: weight of a multiple of the identity in the covariance, above 0 and at most 1.
        layer: as in ``FeatureRouter``.
        wordings: as in ``FeatureRouter``.
        target_recall: as in ``FeatureRouter``.
    """

    fewest = 2

    def __init__(
        self,
        method: Routed,
        *,
        shrinkage: float = 0.1,
        layer: int | None = None,
        wordings: Sequence[str] = (AS_IS, INPUT_ONLY),
        target_recall: float = 0.0,
    ) -> None:
        super().__init__(method, layer=layer, wordings=wordings, target_recall=target_recall)
        within("router.shrinkage", shrinkage, 1e-6, 1)
        self.shrinkage = shrinkage
        self._factor: tuple[Tensor, Tensor] | None = (
            None  # of a covariance, and the sum of squares that it was made from
        )

    def fit(self, task: str, states_PH: Tensor) -> None:
        """The task's mean, and the sum of squares around it, added to that of earlier tasks; all in fp64 on the CPU."""
        states_PH = states_PH.cpu().double()
        mean_H = states_PH.mean(0)
        scatter_HH = (states_PH - mean_H).T @ (states_PH - mean_H)
        rows = torch.tensor(len(states_PH))
        if self.shared:
            scatter_HH, rows = scatter_HH + symmetric(self.shared[SCATTER].cpu()), rows + self.shared[ROWS].cpu()
        self.kept[task] = {"mean": mean_H}
        self.shared = {SCATTER: triangle(scatter_HH), ROWS: rows}

    def score(self, states_PH: Tensor) -> Tensor:
        """Minus the Mahalanobis distance from each task's mean."""
        means_TH = torch.stack([one["mean"].cpu() for one in self.kept.values()])
        apart_PTH = states_PH.cpu().double()[:, None] - means_TH
        white_HN = torch.linalg.solve_triangular(self._lower_HH(), apart_PTH.flatten(0, 1).T, upper=False)  # N = P T
        distances_PT: Tensor = white_HN.norm(dim=0).view(len(states_PH), len(means_TH))
        return -distances_PT

    def _lower_HH(self) -> Tensor:
        """The Cholesky factor of the covariance, computed once for the tasks so far."""
        scatter = self.shared[SCATTER]
        if self._factor is None or self._factor[1] is not scatter:
            covariance_HH = symmetric(scatter.cpu()) / self.shared[ROWS].cpu()
            self._factor = torch.linalg.cholesky(shrunk(covariance_HH, self.shrinkage)), scatter
        return self._factor[0]
