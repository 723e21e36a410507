"""Elastic weight consolidation: one adapter whose important weights are held near their values after earlier tasks.

Kirkpatrick et al., *Overcoming catastrophic forgetting in neural networks*, arXiv 1612.00796, in the online form with one
anchor. PAPERS.md gives the reasons, and compares Fisher matrices.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from see_lightning.config.checks import within
from see_lightning.data.example import Example
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.tasks.batches import IGNORED
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def distance(weights: Iterable[Tensor], anchor: Iterable[Tensor], fisher: Iterable[Tensor]) -> Tensor:
    r"""$\frac12 \sum_i F_i (\theta_i - \theta^*_i)^2$.

    Args:
        weights: $\theta$.
        anchor: $\theta^*$.
        fisher: $F$, the diagonal of the Fisher matrix.

    >>> distance([torch.tensor([1.0, 2.0])], [torch.tensor([0.0, 5.0])], [torch.tensor([4.0, 1.0])])
    tensor(6.5000)
    """
    moved = zip(weights, anchor, fisher, strict=True)
    return torch.stack([(f * (weight - old).square()).sum() for weight, old, f in moved]).sum() / 2


class Ewc(OneAdapterMethod):
    r"""Adds $\frac\lambda2 \sum_i F_i (\theta_i - \theta^*_i)^2$ to the loss, $F \leftarrow \gamma F + F_t$ after task $t$.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        strength: $\lambda$.
        decay: $\gamma$, 0..1: 1 adds up the Fisher matrices of all tasks, 0 keeps that of the last task alone.
    """

    def __init__(self, setup: Setup, *, strength: float, decay: float) -> None:
        super().__init__(setup)
        within("method.strength", strength, 0)
        within("method.decay", decay, 0, 1)
        self.strength, self.decay, self.ranks = strength, decay, setup.ranks
        #: By the names of the adapter's matrices; empty before the first task has ended.
        self.fisher: dict[str, Tensor] = {}

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Keeps the weights that the previous task left."""
        super().begin_task(task, memory)
        self.anchor = [weight.detach().clone() for weight in self._weights().values()]

    def penalty(self) -> Tensor | None:
        """The penalty; None in the first task."""
        return (
            self.strength * distance(self._weights().values(), self.anchor, self.fisher.values())
            if self.fisher
            else None
        )

    def end_task(self, task: Task, memory: Memory) -> None:
        """Adds the task's Fisher matrix to the decayed one."""
        for name, fisher in zip(self._weights(), self.squared_gradients(task.train), strict=True):
            self.fisher[name] = self.decay * self.fisher.get(name, 0) + fisher

    def squared_gradients(self, examples: Sequence[Example]) -> list[Tensor]:
        r"""Diagonal of the empirical Fisher matrix: the mean over examples of $(\nabla_\theta \log p(y \mid x))^2$.

        The gradient of each example is squared by itself: a batch's mean gradient would be smaller. Ranks share the examples.

        Args:
            examples: prompts $x$ and their answers $y$.

        Returns:
            One tensor for each matrix of the adapter, the same on all ranks.
        """
        weights = list(self._weights().values())
        total = [torch.zeros_like(weight) for weight in weights]
        for batch in self.batches(examples, self.ranks):
            # The loss is a mean over the answer's tokens. A rank without an example computes one at the weight 0.
            tokens = (batch.labels_BS != IGNORED).sum() if batch.ids else 0
            with torch.enable_grad():
                gradients = torch.autograd.grad(tokens * self.loss(batch), weights)
            torch._foreach_addcmul_(total, gradients, gradients)
        return [self.average(one) * self.ranks / len(examples) for one in total]

    def _weights(self) -> dict[str, nn.Parameter]:
        pairs = self.pool.pairs(self.ADAPTER).items()
        return {f"{layer}.{name}": weight for layer, pair in pairs for name, weight in zip("AB", pair, strict=True)}

    def state(self) -> dict[str, Tensor]:
        """The Fisher matrix; the anchor is the adapter itself."""
        return self.fisher

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The Fisher matrix of the last task replaces those before it."""
        self.fisher = {name: tensors[name] for name in self._weights()}
