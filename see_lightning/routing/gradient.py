r"""Steepest descent of the answer's entropy over a mixture of all experts: the gradient id of Soft-TF.

After SupSup's one-shot inference (Wortsman et al., NeurIPS 2020): one pass with all experts at weights $\alpha_t = 1/T$, and
$\hat t = \arg\min_t \partial H / \partial \alpha_t$.

Letters: T experts, V vocabulary.
"""

import torch

from see_lightning.adapters.mixture import FixedMixture
from see_lightning.routing.router import Router, answer_logits
from see_lightning.tasks.batches import Queries


class Gradient(Router):
    """The expert that would lower the entropy of the first answer token most; it keeps nothing."""

    needs = frozenset({"has_experts", "adds_updates"})

    def route(self, queries: Queries) -> list[str | None]:
        """An expert for each query; the base model where there is none yet."""
        return [self._steepest(prompt) for prompt in queries.prompts]

    def _steepest(self, prompt: list[int]) -> str | None:
        pool = self.method.pool
        if not pool.names:
            return None
        experts = len(pool.names)
        with torch.inference_mode(False), torch.enable_grad():
            alpha_T = torch.full((experts,), 1 / experts, device=pool.device(), requires_grad=True)
            log_p_1V = answer_logits(self.method, FixedMixture(pool, pool.names, alpha_T), prompt).log_softmax(dim=-1)
            (slope_T,) = torch.autograd.grad(-(log_p_1V.exp() * log_p_1V).sum(), alpha_T)
        return pool.names[int(slope_T.argmin())]
