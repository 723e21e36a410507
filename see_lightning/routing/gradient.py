r"""Steepest descent of the answer's entropy over a mixture of all experts: the gradient id of Soft-TF.

After SupSup's one-shot inference (Wortsman et al., NeurIPS 2020): one pass with all experts at weights $\alpha_t = 1/T$, and
$\hat t = \arg\min_t \partial H / \partial \alpha_t$.

Letters: T experts, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from see_lightning.adapters.composites import Sum
from see_lightning.adapters.protocols import AdapterDelta
from see_lightning.routing.router import Router, answer_logits
from see_lightning.tasks.batches import Queries


class Superposition:
    r"""All experts at once, $\sum_t \alpha_t E_t(x)$.

    Args:
        parts: the experts' updates.
        alpha_T: their weights.
    """

    def __init__(self, parts: Sequence[AdapterDelta], alpha_T: Tensor) -> None:
        self.parts, self.alpha_T = parts, alpha_T

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The weighted sum of the updates at a layer."""
        parts = [alpha * part.add(layer, x) for alpha, part in zip(self.alpha_T.to(x.dtype), self.parts, strict=True)]
        return torch.stack(parts).sum(0)


class Gradient(Router):
    """The expert that would lower the entropy of the first answer token most; it keeps nothing."""

    def route(self, queries: Queries) -> list[str | None]:
        """An expert for each query; the base model where there is none yet."""
        return [self._steepest(prompt) for prompt in queries.prompts]

    def _steepest(self, prompt: list[int]) -> str | None:
        pool = self.method.pool
        if not pool.names:
            return None
        parts = [pool.composites.get(name) or Sum(pool, [name], [1.0]) for name in pool.names]
        with torch.inference_mode(False), torch.enable_grad():
            alpha_T = torch.full((len(parts),), 1 / len(parts), device=pool.device(), requires_grad=True)
            log_p_1V = answer_logits(self.method, Superposition(parts, alpha_T), prompt).log_softmax(dim=-1)
            (slope_T,) = torch.autograd.grad(-(log_p_1V.exp() * log_p_1V).sum(), alpha_T)
        return pool.names[int(slope_T.argmin())]
