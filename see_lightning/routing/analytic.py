"""Routing by ridge regression in closed form, updated task by task (Any-SSR, ICCV 2025, arXiv 2503.13575).

Letters: P prompts, B of them at once, T tasks, H hidden states, F random features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.routing.features import FeatureRouter, symmetric, triangle
from see_lightning.routing.router import Routed
from see_lightning.seeds import seed
from see_lightning.tasks.variants import AS_IS, INPUT_ONLY

ROWS = 256  # of one update: a system of so many equations is solved, and their number changes no result
INVERSE, WEIGHTS = "inverse", "weights"  # tensors of all tasks: the lower triangle of R, row by row, and W, (F, T)


def random_features(states_PH: Tensor, map_HF: Tensor) -> Tensor:
    """Non-linear random features of hidden states, (P, F): ReLU behind a fixed linear map.

    Each row of hidden states is divided by its root mean square, so one ridge suits every model and layer.

    Args:
        states_PH: hidden states.
        map_HF: entries are normal with the variance 1 / H, so the features are of the order 1.
    """
    scale_P1 = states_PH.square().mean(1, keepdim=True).sqrt()
    return (states_PH / scale_P1 @ map_HF).relu()


def recursive_least_squares(
    inverse_FF: Tensor, weights_FT: Tensor, x_PF: Tensor, y_PT: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Add rows to a ridge regression: exactly its solution on all rows so far, whatever their order.

    $R \leftarrow R - R X^\top (I + X R X^\top)^{-1} X R$ (Woodbury), then $W \leftarrow W + R X^\top (Y - X W)$.
    Without rows, $R = I / \lambda$ and $W = 0$, for the ridge $\lambda$.

    Args:
        inverse_FF: R, the inverse of $X^\top X + \lambda I$ over the rows so far.
        weights_FT: W, the solution on them.
        x_PF: inputs of the further rows.
        y_PT: their targets.
    """
    gain_FP = inverse_FF @ x_PF.T
    lower_PP = torch.linalg.cholesky(torch.eye(len(x_PF)).to(x_PF) + x_PF @ gain_FP)
    half_PF = torch.linalg.solve_triangular(lower_PP, gain_FP.T, upper=False)
    inverse_FF = inverse_FF - half_PF.T @ half_PF  # so written it stays symmetric
    return inverse_FF, weights_FT + inverse_FF @ (x_PF.T @ (y_PT - x_PF @ weights_FT))


class Analytic(FeatureRouter):
    """The expert with the largest entry in a ridge regression of the task's one-hot index on random features.

    It keeps two matrices for all tasks together, in fp64.

    Args:
        method: whose queries are routed.
        features: number of random features, F; the paper has 10,000.
        ridge: weight of the squared norm of the solution, above 0. The paper's 100 is for features of another scale.
        layer: as in ``FeatureRouter``.
        wordings: as in ``FeatureRouter``.
        target_recall: as in ``FeatureRouter``.
    """

    def __init__(
        self,
        method: Routed,
        *,
        features: int = 2048,
        ridge: float = 10.0,
        layer: float | None = None,
        wordings: Sequence[str] = (AS_IS, INPUT_ONLY),
        target_recall: float = 0.0,
    ) -> None:
        super().__init__(method, layer=layer, wordings=wordings, target_recall=target_recall)
        within("router.features", features, 1)
        within("router.ridge", ridge, 1e-6)
        self.features, self.ridge = features, ridge
        self._map_HF: Tensor | None = None

    def fit(self, task: str, states_PH: Tensor) -> None:
        """Update both matrices with a task's prompts, whose target is a further column."""
        x_PF = self._random_features(states_PH)
        inverse_FF = torch.eye(self.features, dtype=torch.float64) / self.ridge
        weights_FT = torch.zeros(self.features, 1, dtype=torch.float64)
        if self.shared:
            inverse_FF, weights_FT = symmetric(self.shared[INVERSE].cpu()), self.shared[WEIGHTS].cpu()
            weights_FT = torch.cat([weights_FT, torch.zeros_like(weights_FT[:, :1])], dim=1)
        self.kept[task] = {}
        y_T = torch.eye(len(self.kept), dtype=torch.float64)[-1]
        for start in range(0, len(x_PF), ROWS):
            rows_BF = x_PF[start : start + ROWS]
            inverse_FF, weights_FT = recursive_least_squares(
                inverse_FF, weights_FT, rows_BF, y_T.expand(len(rows_BF), -1)
            )
        self.shared = {INVERSE: triangle(inverse_FF), WEIGHTS: weights_FT}

    def score(self, states_PH: Tensor) -> Tensor:
        """The regression's prediction for each task."""
        return self._random_features(states_PH) @ self.shared[WEIGHTS].cpu()

    def _random_features(self, states_PH: Tensor) -> Tensor:
        """In fp64 on the CPU, where one seed gives the same map everywhere."""
        states_PH = states_PH.cpu().double()
        if self._map_HF is None:
            hidden = states_PH.shape[1]
            draw = torch.Generator().manual_seed(seed(self.method.run_seed, "all tasks", "random features"))
            self._map_HF = torch.randn(hidden, self.features, generator=draw, dtype=torch.float64) / hidden**0.5
        return random_features(states_PH, self._map_HF)
