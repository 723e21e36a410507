"""The part that EWC and MAS share: one adapter whose weights are held the more, the more earlier tasks need them."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from see_lightning.data.example import Example
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def distance(weights: Iterable[Tensor], anchor: Iterable[Tensor], importance: Iterable[Tensor]) -> Tensor:
    r"""$\frac12 \sum_i F_i (\theta_i - \theta^*_i)^2$.

    Args:
        weights: $\theta$.
        anchor: $\theta^*$.
        importance: $F$.

    >>> distance([torch.tensor([1.0, 2.0])], [torch.tensor([0.0, 5.0])], [torch.tensor([4.0, 1.0])])
    tensor(6.5000)
    """
    moved = zip(weights, anchor, importance, strict=True)
    return torch.stack([(f * (weight - old).square()).sum() for weight, old, f in moved]).sum() / 2


class Consolidation(OneAdapterMethod):
    r"""Adds $\frac\lambda2 \sum_i F_i (\theta_i - \theta^*_i)^2$ to the loss, $F \leftarrow \gamma F + F_t$ after task $t$.

    $\theta^*$ are the weights that the previous task left.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        strength: $\lambda$.
        decay: $\gamma$.
    """

    def __init__(self, setup: Setup, *, strength: float, decay: float) -> None:
        super().__init__(setup)
        self.strength, self.decay, self.ranks = strength, decay, setup.ranks
        #: $F$, by the names of the adapter's matrices; empty before the first task has ended.
        self.importance: dict[str, Tensor] = {}

    @abstractmethod
    def importance_of(self, examples: Sequence[Example]) -> list[Tensor]:
        """$F_t$ of a task's examples: one tensor for each matrix of the adapter, the same on all ranks."""

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Keeps the weights that the previous task left."""
        super().begin_task(task, memory)
        self.anchor = [weight.detach().clone() for weight in self.pool.weights_of([self.ADAPTER])]

    def penalty(self) -> Tensor | None:
        """The penalty; None in the first task."""
        if not self.importance:
            return None
        return self.strength * distance(self.pool.weights_of([self.ADAPTER]), self.anchor, self.importance.values())

    def end_task(self, task: Task, memory: Memory) -> None:
        """Adds the task's importance to the decayed one of earlier tasks."""
        names = self.pool.matrices(self.ADAPTER)
        for name, importance in zip(names, self.importance_of(task.train), strict=True):
            self.importance[name] = self.decay * self.importance.get(name, 0) + importance

    def state(self) -> dict[str, Tensor]:
        """The importance; the anchor is the adapter itself."""
        return self.importance

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The importance after the last task replaces those before it."""
        self.importance = {name: tensors[name] for name in self.pool.matrices(self.ADAPTER)}
