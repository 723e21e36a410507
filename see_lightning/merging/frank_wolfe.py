r"""FW-Merging: merging coefficients by the Frank-Wolfe method, on a few rows of each task.

Chen et al., *FW-Merging: Scaling Model Merging with Frank-Wolfe Optimization*, ICCV 2025, arXiv 2503.12649. The merged change
is $\sum_i c_i \tau_i$ with $c_i \ge 0$ and $\sum_i c_i = 1$; one of the $\tau_i$ is 0, the base model. So only the
derivatives $\partial L / \partial c_i = \langle \nabla L, \tau_i \rangle$ are needed, and no gradient of a matrix.

Letters: T task vectors, C = T + 1 with the base model, which is the first.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from see_lightning.config.checks import above_zero, one_of, within
from see_lightning.errors import ConfigError
from see_lightning.merging.changes import Change, weighted_sum
from see_lightning.merging.rule import Gradient, Merged, MergeRule, TaskVector

VARIANTS = ("hard", "soft")


def on_simplex(point_C: Tensor) -> Tensor:
    """The nearest point whose numbers are at least 0 and sum to 1.

    >>> on_simplex(torch.tensor([0.5, 1.5, -2.0]))
    tensor([0., 1., 0.])
    """
    falling_C, _ = point_C.sort(descending=True)
    excess_C = (falling_C.cumsum(0) - 1) / torch.arange(1, len(point_C) + 1, dtype=point_C.dtype)
    last = int((falling_C > excess_C).sum())
    return (point_C - excess_C[last - 1]).clamp(min=0)


def hard(gradient: Gradient, start_C: Tensor, iterations: int, step: float) -> Tensor:
    r"""Frank-Wolfe: $c \leftarrow c + \gamma_k (e_j - c)$, $\gamma_k = \frac{2}{k + 2}$.

    $j$ is the model with the smallest derivative.

    Args:
        gradient: of the loss by the coefficients, (C,), at given ones, (C,).
        start_C: the first coefficients.
        iterations: steps, $k$ from 0.
        step: factor of $\gamma_k$, above 0, at most 1.
    """
    coefficients_C = start_C
    for k in range(iterations):
        towards_C = torch.zeros_like(coefficients_C)
        towards_C[int(gradient(coefficients_C).argmin())] = 1
        coefficients_C = coefficients_C + step * 2 / (k + 2) * (towards_C - coefficients_C)
    return coefficients_C


def soft(gradient: Gradient, start_C: Tensor, iterations: int, step: float) -> Tensor:
    r"""Projected gradient descent: $c \leftarrow P(c - \eta_k g / \lVert g \rVert)$, $\eta_k = \frac{step}{\sqrt{k + 1}}$.

    $g$ is the gradient without its mean, and $P$ is ``on_simplex``.

    Args:
        gradient: as of ``hard``.
        start_C: the first coefficients.
        iterations: steps, $k$ from 0.
        step: length of the first step.
    """
    coefficients_C = start_C
    for k in range(iterations):
        gradient_C = gradient(coefficients_C)
        gradient_C = gradient_C - gradient_C.mean()  # what is common to all does not move a point of the simplex
        if not gradient_C.any():
            break
        coefficients_C = on_simplex(coefficients_C - step / (k + 1) ** 0.5 * gradient_C / gradient_C.norm())
    return coefficients_C


class FrankWolfe(MergeRule):
    """Merging coefficients of all models, chosen again after each task on stored rows of every task.

    Args:
        variant: ``hard`` moves towards one model in each iteration, ``soft`` changes all coefficients.
        iterations: gradients on all rows, at least 1.
        step: see ``hard`` and ``soft``.
        rows: rows of each task on which the loss is computed, at least 1.
    """

    bounded = False

    def __init__(self, *, variant: str, iterations: int, step: float, rows: int) -> None:
        one_of("rule.variant", variant, VARIANTS)
        within("rule.iterations", iterations, 1)
        within("rule.rows", rows, 1)
        above_zero("rule.step", step, 1)
        self.variant, self.iterations, self.step, self.rows = variant, iterations, step, rows

    def add(self, merged: Merged | None, vector: TaskVector, gradient: Gradient | None = None) -> Merged:
        """Chooses the coefficients, from the mean on. ``numbers``: ``coefficient 0``, of the base model, and so on."""
        if gradient is None:
            raise ConfigError("this rule chooses merging coefficients on rows of the tasks, and there are none.")
        vectors = (*(merged.kept if merged else ()), vector)
        start_C = torch.tensor([0.0] + [1 / len(vectors)] * len(vectors), dtype=torch.float64)
        search = hard if self.variant == "hard" else soft

        def with_base(coefficients_C: Tensor) -> Tensor:
            return torch.cat([torch.zeros(1, dtype=torch.float64), gradient(coefficients_C[1:]).double()])

        coefficients_C = search(with_base, start_C, self.iterations, self.step)
        numbers = {f"coefficient {place}": one for place, one in enumerate(coefficients_C.tolist())}
        return Merged(len(vectors), vectors, numbers)

    def restored(self, merged: Merged | None, vector: TaskVector, numbers: Mapping[str, float]) -> Merged:
        """Takes a vector with the coefficients that were chosen when it was added."""
        vectors = (*(merged.kept if merged else ()), vector)
        return Merged(len(vectors), vectors, numbers)

    def result(self, merged: Merged) -> dict[str, Change]:
        """The weighted sum."""
        coefficients = [merged.numbers[f"coefficient {place}"] for place in range(1, merged.number + 1)]
        return {
            layer: weighted_sum([one.changes[layer] for one in merged.kept], coefficients)
            for layer in merged.kept[0].changes
        }
