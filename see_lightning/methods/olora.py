"""O-LoRA: a LoRA adapter for each task, trained orthogonal to the frozen ones before it; the sum of all answers.

Wang et al., *Orthogonal Subspace Learning for Language Model Continual Learning*, arXiv 2310.14152. PAPERS.md lists where the
paper and its code differ. Not PEFT's ``init_lora_weights="olora"``, which is another method.

Letters: R rank, I and O the sizes of a layer's input and output.
"""

import torch
from torch import Tensor

from see_lightning.config.checks import one_of, within
from see_lightning.methods.setup import Setup
from see_lightning.methods.summed import SummedMethod


def overlap(old_RI: Tensor, new_RI: Tensor, entries: str) -> Tensor:
    r"""How far two adapters read the same directions: the sum over the entries of $A_i A_t^\top$.

    Args:
        old_RI: $A_i$.
        new_RI: $A_t$.
        entries: ``absolute`` adds up their absolute values, ``squared`` their squares.

    >>> old, new = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    >>> overlap(old, new, "absolute"), overlap(old, new, "squared")
    (tensor(3.), tensor(9.))
    """
    product = old_RI @ new_RI.T
    return (product.abs() if entries == "absolute" else product.square()).sum()


class OLora(SummedMethod):
    r"""Adds $\lambda_1 \sum_{i<t} \lVert A_i A_t^\top\rVert + \lambda_2 (\lVert A_t\rVert + \lVert B_t\rVert)$ to the loss.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        orthogonality: $\lambda_1$, weight of the overlap with earlier tasks' adapters, summed over them and all layers.
        l2: $\lambda_2$, weight of the new matrices' Frobenius norms, which are not squared.
        entries: ``absolute`` or ``squared``, see ``overlap``.
    """

    def __init__(self, setup: Setup, *, orthogonality: float, l2: float, entries: str) -> None:
        super().__init__(setup)
        within("method.orthogonality", orthogonality, 0)
        within("method.l2", l2, 0)
        one_of("method.entries", entries, ("absolute", "squared"))
        self.orthogonality, self.l2, self.entries = orthogonality, l2, entries

    def penalty(self) -> Tensor:
        """The overlap with every earlier adapter, and the norms of the new one's matrices."""
        *old, new = self.tasks
        total = torch.zeros((), device=self.pool.device())
        for layer, (a_RI, b_OR) in self.pool.pairs(new).items():
            for task in old:
                total = total + self.orthogonality * overlap(self.pool.pair(layer, task)[0], a_RI, self.entries)
            total = total + self.l2 * (torch.linalg.vector_norm(a_RI) + torch.linalg.vector_norm(b_OR))
        return total
