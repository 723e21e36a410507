"""N-LoRA: a LoRA adapter for each task with a sparse update, so that updates of several tasks seldom share an entry.

Yang et al., *Is Parameter Collision Hindering Continual Learning in LLMs?*, COLING 2025, arXiv 2410.10179. The sum of all
adapters answers. PAPERS.md lists where the paper and its code differ.

Letters: R rank, I and O the sizes of a layer's input and output.
"""

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.methods.setup import Setup
from see_lightning.methods.summed import SummedMethod

SLICE = 1024  # rows of a change that are computed at a time, so that few are in memory at once


def sparsity(a_RI: Tensor, b_OR: Tensor) -> Tensor:
    r"""$\lVert B A\rVert_1$, the sum of the absolute entries of an update, which need not be square.

    Args:
        a_RI: A.
        b_OR: B.

    >>> sparsity(torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[3.0], [-1.0]]))
    tensor(12.)
    """
    return torch.stack([(part_OR @ a_RI).abs().sum() for part_OR in torch.split(b_OR, SLICE)]).sum()


class NLora(SummedMethod):
    r"""Adds $\lambda \lVert \Delta W_t\rVert_1$ to the loss, for the update $\Delta W_t = s B_t A_t$ of the new adapter.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        sparsity: $\lambda$, weight of the absolute entries, summed over all adapted layers.
    """

    def __init__(self, setup: Setup, *, sparsity: float) -> None:
        super().__init__(setup)
        within("method.sparsity", sparsity, 0)
        self.sparsity = sparsity

    def penalty(self) -> Tensor:
        """The absolute entries of the new adapter's update, in the first task too."""
        new = self.tasks[-1]
        layers = [self.pool.scale(layer, new) * sparsity(*pair) for layer, pair in self.pool.pairs(new).items()]
        return self.sparsity * torch.stack(layers).sum()
