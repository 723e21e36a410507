"""Lowest perplexity of the prompt: every expert reads the query, and the one to which it is least surprising answers.

Letters: S tokens, V vocabulary, L tokens that are predicted, T experts.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from see_lightning.errors import ConfigError
from see_lightning.routing.router import NEEDS_PROMPT, Routed
from see_lightning.routing.scoring import PromptRouter
from see_lightning.tasks.batches import IGNORED, Batch


class Perplexity(PromptRouter):
    r"""The expert under which the prompt has the lowest perplexity.

    The score is $\ell_0 - \ell_t$, the mean negative log-likelihood of the prompt's tokens after the first under the base
    model less that under the expert, in nats a token. So a threshold compares the expert with the base model.

    It keeps nothing but thresholds, and needs a pass of the base model and of every expert for each query.

    Args:
        method: whose queries are routed.
        target_recall: least share of a task's held-out rows that its threshold accepts; 0: the base model is never chosen.

    Raises:
        ConfigError: the experts are activated.
    """

    needs_prompt: ClassVar[bool] = True

    def __init__(self, method: Routed, *, target_recall: float = 0.0) -> None:
        super().__init__(method, target_recall=target_recall)
        if method.pool.header_ids:
            raise ConfigError(NEEDS_PROMPT.format("perplexity"))
        self._nlls: dict[tuple[str | None, tuple[int, ...]], float] = {}  # experts are frozen

    def prefills(self) -> int:
        """The base model and every expert read the prompt."""
        return 1 + len(self.method.pool.names)

    def score(self, prompt: tuple[int, ...]) -> Tensor:
        """By how much each expert predicts a prompt better than the base model, (T,), in nats a token."""
        base = self._nll(None, prompt)
        return torch.tensor([base - self._nll(name, prompt) for name in self.method.pool.names], dtype=torch.float64)

    def _nll(self, adapter: str | None, prompt: tuple[int, ...]) -> float:
        """Mean negative log-likelihood of a prompt's tokens after the first, in nats; computed once in a process."""
        place = (adapter, prompt)
        if place not in self._nlls:
            self._nlls[place] = self._compute(adapter, prompt) if len(prompt) > 1 else 0.0
        return self._nlls[place]

    def _compute(self, adapter: str | None, prompt: tuple[int, ...]) -> float:
        ids_1S = torch.tensor([prompt], device=self.method.pool.device())
        labels_1S = ids_1S.clone()
        labels_1S[:, 0] = IGNORED
        logits_LV = self.method.pool.logits(Batch(ids_1S, torch.ones_like(ids_1S), labels_1S, [""]), adapter)
        return float(cross_entropy(logits_LV.float(), ids_1S[0, 1:]))
