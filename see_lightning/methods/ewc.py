"""Elastic weight consolidation: one adapter whose important weights are held near their values after earlier tasks.

Kirkpatrick et al., *Overcoming catastrophic forgetting in neural networks*, arXiv 1612.00796, in the online form with one
anchor. PAPERS.md gives the reasons, and compares Fisher matrices.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.data.example import Example
from see_lightning.methods.consolidation import Consolidation
from see_lightning.methods.setup import Setup
from see_lightning.tasks.batches import IGNORED


class Ewc(Consolidation):
    r"""Adds $\frac\lambda2 \sum_i F_i (\theta_i - \theta^*_i)^2$ to the loss, $F \leftarrow \gamma F + F_t$ after task $t$.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        strength: $\lambda$.
        decay: $\gamma$, 0..1: 1 adds up the Fisher matrices of all tasks, 0 keeps that of the last task alone.
    """

    def __init__(self, setup: Setup, *, strength: float, decay: float) -> None:
        within("method.strength", strength, 0)
        within("method.decay", decay, 0, 1)
        super().__init__(setup, strength=strength, decay=decay)

    def importance_of(self, examples: Sequence[Example]) -> list[Tensor]:
        r"""Diagonal of the empirical Fisher matrix: the mean over examples of $(\nabla_\theta \log p(y \mid x))^2$.

        The gradient of each example is squared by itself: a batch's mean gradient would be smaller. Ranks share the examples.

        Args:
            examples: prompts $x$ and their answers $y$.

        Returns:
            One tensor for each matrix of the adapter, the same on all ranks.
        """
        weights = self.pool.weights_of([self.ADAPTER])
        total = [torch.zeros_like(weight) for weight in weights]
        for batch in self.batches(examples, self.ranks):
            # The loss is a mean over the answer's tokens. A rank without an example computes one at the weight 0.
            tokens = (batch.labels_BS != IGNORED).sum() if batch.ids else 0
            with torch.enable_grad():
                gradients = torch.autograd.grad(tokens * self.loss(batch), weights)
            torch._foreach_addcmul_(total, gradients, gradients)
        return [self.average(one) * self.ranks / len(examples) for one in total]
