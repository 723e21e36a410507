r"""L2: one adapter, whose update $BA$ is held near the one that the previous task left.

Smith et al., *A Closer Look at Rehearsal-Free Continual Learning*, arXiv 2203.17269. The paper holds all weights; here the
change of each layer's weight is held, and not A and B, since many pairs of A and B give the same change.

Letters: R rank, C both ranks side by side, I and O the sizes of a layer's input and output.
"""

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def squared_distance(pair: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor]) -> Tensor:
    r"""$\lVert BA - B_0 A_0 \rVert_F^2$ without any matrix of the layer's size.

    $BA - B_0 A_0 = (B - B_0) A + B_0 (A - A_0)$ is a product $UV$ of rank $2R$, and $\lVert UV \rVert_F^2$ the sum over the
    entries of $U^\top U \odot V V^\top$. In this form a small distance is no difference of large numbers.

    Args:
        pair: $A$, (R, I), and $B$, (O, R).
        old: $A_0$ and $B_0$, of the same shapes.

    >>> a, b = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0], [1.0]])
    >>> squared_distance((a, b), (0 * a, b)), squared_distance((2 * a, b), (a, 2 * b))
    (tensor(10.), tensor(0.))
    """
    (a_RI, b_OR), (old_a_RI, old_b_OR) = pair, old
    left_OC = torch.cat([b_OR - old_b_OR, old_b_OR], dim=1)
    right_CI = torch.cat([a_RI, a_RI - old_a_RI])
    return ((left_OC.T @ left_OC) * (right_CI @ right_CI.T)).sum()


class L2(OneAdapterMethod):
    r"""Adds $\frac\lambda2 \sum_l \lVert s\, (B_l A_l - B_{0,l} A_{0,l}) \rVert_F^2$ to the loss, from the second task on.

    The sum is over the adapted layers; $s$ is the adapter's scale.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        strength: $\lambda$, at least 0.
    """

    def __init__(self, setup: Setup, *, strength: float) -> None:
        super().__init__(setup)
        within("method.strength", strength, 0)
        self.strength = strength
        #: $A_0$ and $B_0$ of each layer; empty in the first task.
        self.anchor: dict[str, tuple[Tensor, Tensor]] = {}

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Keeps the adapter that the previous task left."""
        super().begin_task(task, memory)
        if memory.past:
            pairs = self.pool.pairs(self.ADAPTER).items()
            self.anchor = {layer: (a_RI.detach().clone(), b_OR.detach().clone()) for layer, (a_RI, b_OR) in pairs}

    def penalty(self) -> Tensor | None:
        """The penalty; None in the first task."""
        if not self.anchor:
            return None
        moved = [
            self.pool.scale(layer, self.ADAPTER) ** 2 * squared_distance(self.pool.pair(layer, self.ADAPTER), old)
            for layer, old in self.anchor.items()
        ]
        return self.strength / 2 * torch.stack(moved).sum()
