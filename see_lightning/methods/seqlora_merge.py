"""SLAO: one LoRA adapter is trained on each task in turn, and merged into a second one, which answers.

Qiao and Mahdavi, *Merge before Forget: A Single LoRA Continual Learning via Continual Merging*, ICLR 2026, arXiv 2512.23017.

Letters: R rank, I and O the sizes of a layer's input and output.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.tasks.batches import Batch
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def orthonormal(a_RI: Tensor) -> Tensor:
    r"""The rows of A made orthonormal one after the other, (R, I): $Q^\top$ of $Q R = A^\top$ with a positive diagonal of R.

    Args:
        a_RI: A. Of a rank above I, the last rows become zeros.

    >>> orthonormal(torch.tensor([[3.0, 0.0, 0.0], [1.0, 2.0, 0.0]]))
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """
    q_IR, r_RR = torch.linalg.qr(a_RI.T)
    signs_R = torch.where(r_RR.diagonal() < 0, -1.0, 1.0)
    rows_RI = torch.zeros_like(a_RI)
    rows_RI[: q_IR.shape[1]] = (q_IR * signs_R).T + 0.0  # no negative zeros
    return rows_RI


def merged(old_OR: Tensor, new_OR: Tensor, number: int, exponent: float) -> Tensor:
    r"""$B_{i-1} + i^{-e} (B - B_{i-1})$: the merged B after task $i$.

    Args:
        old_OR: $B_{i-1}$, merged after the previous task.
        new_OR: $B$, trained on the task.
        number: $i$, from 1.
        exponent: $e$.

    >>> merged(torch.tensor([[1.0]]), torch.tensor([[3.0]]), 4, 0.5)
    tensor([[2.]])
    """
    share = float(number**-exponent)
    return old_OR + share * (new_OR - old_OR)


class SeqLoraMerge(OneAdapterMethod):
    """A is that of the latest task, and B a running mean of all tasks' B in which a later task counts for less.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        exponent: of ``merged``, 0..1: 0 keeps the B of the latest task, 1 is the mean of all.
    """

    def __init__(self, setup: Setup, *, exponent: float) -> None:
        super().__init__(setup)
        within("method.exponent", exponent, 0, 1)
        self.exponent = exponent
        #: By layer: B as the last task has trained it, (O, R), before it was merged; empty before the first task has ended.
        self.trained: dict[str, Tensor] = {}
        #: By layer: the merged B before the present task, (O, R).
        self.merged: dict[str, Tensor] = {}
        self.number = 1  # of the present task

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Puts the merged B aside, and begins with the last task's B and an orthonormal basis of its A."""
        super().begin_task(task, memory)
        self.number = len(memory.past) + 1
        pairs = {layer: (a.detach(), b.detach()) for layer, (a, b) in self.pool.pairs(self.ADAPTER).items()}
        self.merged = {layer: b_OR.clone() for layer, (_, b_OR) in pairs.items()}
        first = {layer: (orthonormal(pairs[layer][0]), b_OR) for layer, b_OR in self.trained.items()}
        self.pool.load_weights(self.ADAPTER, first)

    def end_task(self, task: Task, memory: Memory) -> None:
        """Merges the trained B into that of the earlier tasks; the trained A stays."""
        trained = {layer: b_OR.detach().clone() for layer, (_, b_OR) in self.pool.pairs(self.ADAPTER).items()}
        self._merge(trained, len(memory.past) + 1)
        self.trained = trained

    def _merge(self, trained: Mapping[str, Tensor], number: int) -> None:
        """Puts the merged B in the place of the trained one; in the first task they are the same."""
        if self.trained:
            for layer, (_, b_OR) in self.pool.pairs(self.ADAPTER).items():
                b_OR.copy_(merged(self.merged[layer], trained[layer], number, self.exponent))

    def validation_logits(self, part: Batch) -> Tensor:
        """Logits under the merged B, which would answer if the task ended now."""
        pairs = self.pool.pairs(self.ADAPTER)
        trained = {layer: b_OR.detach().clone() for layer, (_, b_OR) in pairs.items()}
        with torch.no_grad():
            self._merge(trained, self.number)
        try:
            return super().validation_logits(part)
        finally:
            with torch.no_grad():
                for layer, (_, b_OR) in pairs.items():
                    b_OR.copy_(trained[layer])

    def state(self) -> dict[str, Tensor]:
        """B of each layer as the last task has trained it."""
        return self.trained

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The matrices of the last task replace those before it."""
        self.trained = tensors
