"""A-GEM: one adapter, whose gradients are projected so that the loss on a memory of past rows does not increase.

Chaudhry et al., *Efficient Lifelong Learning with A-GEM*, ICLR 2019, arXiv 1812.00420.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from see_lightning.config.checks import check_ratio, within
from see_lightning.data.example import Example
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.seeds import seed
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def project(gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Tensor]:
    r"""$g - \frac{\min(0,\, g^\top r)}{r^\top r} r$, the gradient nearest to $g$ that does not point against $r$.

    Args:
        gradients: $g$, in parts.
        reference: $r$, in parts of the same shapes.

    >>> project([torch.tensor([1.0, 2.0])], [torch.tensor([-2.0, 0.0])])
    [tensor([0., 2.])]
    >>> project([torch.tensor([1.0, 2.0])], [torch.tensor([2.0, 0.0])])
    [tensor([1., 2.])]
    """
    product = torch.stack([(g * r).sum() for g, r in zip(gradients, reference, strict=True)]).sum()
    norm = torch.stack([r.square().sum() for r in reference]).sum()
    # Without a branch on the value, a GPU need not wait for it.
    factor = product.clamp_max(0) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return [g - factor * r for g, r in zip(gradients, reference, strict=True)]


class AGem(OneAdapterMethod):
    """Projects the gradient of each step by that of a batch drawn from the memory, at the current weights.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of each past task's examples in the memory, 0..1; they are drawn once.
        reference_batch: rows of the memory drawn for each step, of all ranks together.
    """

    def __init__(self, setup: Setup, *, ratio: float, reference_batch: int) -> None:
        super().__init__(setup)
        check_ratio("method.ratio", ratio)
        within("method.reference_batch", reference_batch, 1)
        self.ratio, self.reference_batch = ratio, reference_batch
        self.past: list[Example] = []

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Takes the memory of past tasks, and seeds the draws from it."""
        super().begin_task(task, memory)
        self.past = memory.rehearse(task, ratio=self.ratio, resample="once")
        self.draw = random.Random(seed(self.run_seed, task.name, "reference batches"))

    def edit_gradients(self) -> None:
        """Projects where the step would increase the loss on the drawn rows; nothing in the first task."""
        rows = self.draw.sample(self.past, min(self.reference_batch, len(self.past)))
        weights = self.trained_weights()
        for batch in self.batches(rows, self.reference_batch):
            gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
            for weight, projected in zip(weights, project(gradients, self.gradients(batch)), strict=True):
                weight.grad = projected
