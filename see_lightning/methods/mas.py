"""Memory aware synapses: one adapter whose weights are held the more, the more the model's outputs depend on them.

Aljundi et al., *Memory Aware Synapses: Learning what (not) to forget*, ECCV 2018, arXiv 1711.09601. The outputs of a language
model are taken to be the logits of the first answer token: those that depend on the prompt alone.

Letters: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from see_lightning.config.checks import within
from see_lightning.data.example import Example
from see_lightning.methods.ewc import distance
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def sensitivity(output_BV: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    r"""Importance of each weight: $\lvert \partial \frac1V \lVert F(x)\rVert_2^2 / \partial \theta_i \rvert$.

    Args:
        output_BV: $F(x)$ of one example, with a graph that reaches the weights.
        weights: $\theta$.

    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> sensitivity(torch.tensor([[1.0, -2.0]]) @ weight, [weight])  # F(x) is [3, -2]
    [tensor([[3., 2.],
            [6., 4.]])]
    """
    # The mean over V instead of the sum, so that the penalty does not grow with the vocabulary.
    gradients = torch.autograd.grad(output_BV.float().square().mean(), weights, materialize_grads=True)
    return [gradient.abs() for gradient in gradients]


class Mas(OneAdapterMethod):
    r"""Adds $\lambda \sum_i \Omega_i (\theta_i - \theta^*_i)^2$ to the loss.

    After each task $\Omega$ grows by the mean ``sensitivity`` over the task's prompts. Their answers have no part in it.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        strength: $\lambda$, at least 0.
    """

    def __init__(self, setup: Setup, *, strength: float) -> None:
        super().__init__(setup)
        within("method.strength", strength, 0)
        self.strength, self.ranks = strength, setup.ranks
        #: By the names of the adapter's matrices; empty before the first task has ended.
        self.importance: dict[str, Tensor] = {}

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Keeps the weights that the previous task left."""
        super().begin_task(task, memory)
        self.anchor = [weight.detach().clone() for weight in self._weights().values()]

    def penalty(self) -> Tensor | None:
        """The penalty; None in the first task."""
        if not self.importance:
            return None
        return 2 * self.strength * distance(self._weights().values(), self.anchor, self.importance.values())

    def end_task(self, task: Task, memory: Memory) -> None:
        """Adds the task's importance to that of the earlier tasks."""
        for name, importance in zip(self._weights(), self.mean_sensitivity(task.train), strict=True):
            self.importance[name] = self.importance.get(name, 0) + importance

    def mean_sensitivity(self, examples: Sequence[Example]) -> list[Tensor]:
        """The mean over examples of the sensitivity of the first answer token's logits.

        Each example is measured by itself: in a batch's sum, gradients would cancel before their absolute value is taken.
        Ranks share the examples.

        Args:
            examples: their prompts are used alone.

        Returns:
            One tensor for each matrix of the adapter, the same on all ranks.
        """
        weights = list(self._weights().values())
        total = [torch.zeros_like(weight) for weight in weights]
        # An empty answer is one label, the end of the sequence, which the last token of the prompt predicts.
        prompts = [replace(example, target="") for example in examples]
        for batch in self.batches(prompts, self.ranks):
            with torch.enable_grad():
                logits_BV = self.pool(batch.input_ids_BS, batch.attention_mask_BS, batch.labels_BS)
                own = sensitivity(logits_BV, weights)
            # A rank without an example measures one that counts for nothing.
            torch._foreach_add_(total, own, alpha=float(bool(batch.ids)))
        return [self.average(one) * self.ranks / len(examples) for one in total]

    def _weights(self) -> dict[str, nn.Parameter]:
        pairs = self.pool.pairs(self.ADAPTER).items()
        return {f"{layer}.{name}": weight for layer, pair in pairs for name, weight in zip("AB", pair, strict=True)}

    def state(self) -> dict[str, Tensor]:
        """The importance; the anchor is the adapter itself."""
        return self.importance

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The importance of the last task replaces those before it."""
        self.importance = {name: tensors[name] for name in self._weights()}
