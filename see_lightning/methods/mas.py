"""Memory aware synapses: one adapter whose weights are held the more, the more the model's outputs depend on them.

Aljundi et al., *Memory Aware Synapses: Learning what (not) to forget*, ECCV 2018, arXiv 1711.09601. The outputs of a language
model are taken to be the logits of the first answer token, those that depend on the prompt alone, less their mean: a shift of
all logits changes no prediction, and the mean square of raw logits is nearly the shift alone.

Letters: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.data.example import Example
from see_lightning.methods.consolidation import Consolidation
from see_lightning.methods.setup import Setup


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


def outputs(logits_BV: Tensor) -> Tensor:
    """The logits less the mean over the vocabulary of each row, in fp32.

    >>> outputs(torch.tensor([[3.0, 1.0]]))
    tensor([[ 1., -1.]])
    """
    logits_BV = logits_BV.float()
    return logits_BV - logits_BV.mean(-1, keepdim=True)


class Mas(Consolidation):
    r"""Adds $\lambda \sum_i \Omega_i (\theta_i - \theta^*_i)^2$ to the loss.

    After each task $\Omega$ grows by the mean ``sensitivity`` over the task's prompts. Their answers have no part in it.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        strength: $\lambda$, at least 0.
    """

    def __init__(self, setup: Setup, *, strength: float) -> None:
        within("method.strength", strength, 0)
        super().__init__(setup, strength=2 * strength, decay=1.0)  # that penalty has a factor of one half

    def importance_of(self, examples: Sequence[Example]) -> list[Tensor]:
        """The mean over examples of the sensitivity of the first answer token's logits, less their mean.

        Each example is measured by itself: in a batch's sum, gradients would cancel before their absolute value is taken.
        Ranks share the examples.

        Args:
            examples: their prompts are used alone.

        Returns:
            One tensor for each matrix of the adapter, the same on all ranks.
        """
        weights = self.pool.weights_of([self.ADAPTER])
        total = [torch.zeros_like(weight) for weight in weights]
        # An empty answer is one label, the end of the sequence, which the last token of the prompt predicts.
        prompts = [replace(example, target="") for example in examples]
        for batch in self.batches(prompts, self.ranks):
            with torch.enable_grad():
                logits_BV = self.pool(batch.input_ids_BS, batch.attention_mask_BS, batch.labels_BS)
                own = sensitivity(outputs(logits_BV), weights)
            # A rank without an example measures one that counts for nothing.
            torch._foreach_add_(total, own, alpha=float(bool(batch.ids)))
        return [self.average(one) * self.ranks / len(examples) for one in total]
