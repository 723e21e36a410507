"""Routers that mix the experts for each token and layer, by their match with the layer's input.

Letters: T experts, R ranks, K directions, I size of a layer's input.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from see_lightning.adapters.mixture import Tally, TokenMixture
from see_lightning.adapters.spectra import expert_spectrum
from see_lightning.config.checks import within
from see_lightning.routing.router import Routed
from see_lightning.routing.scoring import PromptRouter
from see_lightning.tasks.batches import Queries, left_pad

HELD_OUT = "held_out"  # tensor of a task's state: held-out prompts, padded on the left
_PAD = -1


class MixtureRouter(PromptRouter):
    r"""Every token of the prompt and of the answer is processed by a mixture of experts, see ``TokenMixture``.

    ``route`` names the expert with the largest weight, summed over all layers and over the tokens of the prompt on which
    experts act. A score is its share of the sum of all experts' weights.

    The mixture is computed from the experts after each task, and nothing of it is saved. With a threshold the
    prompts of held-out rows are kept, since every new expert changes all shares.

    Args:
        method: whose queries are routed.
        top_k: number of experts that act on a token at a layer, at least 1.
        temperature: of the softmax over these experts, above 0.
        target_recall: least share of a task's held-out rows that its threshold accepts; 0: the base model is never chosen.

    Raises:
        ConfigError: a setting is out of range.
    """

    needs = frozenset({"has_experts", "adds_updates"})

    def __init__(self, method: Routed, *, top_k: int = 3, temperature: float = 1.0, target_recall: float = 0.0) -> None:
        super().__init__(method, target_recall=target_recall)
        within("router.top_k", top_k, 1)
        within("router.temperature", temperature, 1e-6)
        self.top_k, self.temperature = top_k, temperature
        #: Name of the mixture in the pool; no task has a name in parentheses.
        self.name = f"({type(self).__name__.lower()})"
        self._mixture: TokenMixture | None = None
        self._digests: list[str] = []
        self._scored: dict[tuple[int, ...], Tensor] = {}
        self._least_T: Tensor | None = None

    @abstractmethod
    def directions(self, sigma_R: Tensor, v_RI: Tensor) -> Tensor:
        """The rows whose products with a layer's input score an expert, (K, I), from the spectrum of its update."""

    def mixture(self) -> TokenMixture:
        """The mixture of all experts that there are, registered in the pool under ``name``."""
        pool = self.method.pool
        digests = [pool.digest(name) for name in pool.names]
        if self._mixture is None or digests != self._digests:
            with torch.inference_mode(False), torch.no_grad():
                rows = {
                    layer: torch.stack([self.directions(*expert_spectrum(pool, name, layer)) for name in pool.names])
                    for layer in pool.layers
                }
            self._mixture = TokenMixture(pool, pool.names, rows, top_k=self.top_k, temperature=self.temperature)
            self._digests, self._least_T = digests, None
            self._scored.clear()
        if pool.composites.get(self.name) is not self._mixture:  # new, or another router's of this class
            pool.register(self.name, self._mixture, is_expert=False)
        return self._mixture

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Compute the mixture with the task's expert, so that its time counts as the task's."""
        self.mixture()

    def score(self, prompt: tuple[int, ...]) -> Tensor:
        """Each expert's share of the weights, (T,), in a pass over the prompt under the mixture."""
        mixture = self.mixture()
        if prompt not in self._scored:
            tally = Tally(mixture)
            with torch.no_grad():
                self.method.pool.prefill(tally, [list(prompt)])
            self._scored[prompt] = tally.total_T / tally.total_T.sum()
        return self._scored[prompt]

    def hold_out(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Keep the prompts of held-out rows, if there is to be a threshold."""
        if self.holds_out:
            self.kept[task] = {HELD_OUT: left_pad(prompts, _PAD).int()}
            self._least_T = None

    def thresholds(self) -> Tensor:
        """The least share at which each expert is chosen, (T,), by the shares of held-out rows under today's mixture."""
        self.mixture()
        if self._least_T is None:
            least = []
            for name in self.method.pool.names:
                rows = self.kept[name][HELD_OUT].tolist() if name in self.kept else []
                prompts = [[token for token in row if token != _PAD] for row in rows]
                least.append(self._threshold(name, prompts) if prompts else -torch.inf)
            self._least_T = torch.tensor(least, dtype=torch.float64)
        return self._least_T

    def adapters(self, queries: Queries, routes: list[str | None]) -> list[str | None]:
        """The mixture, except where the base model answers."""
        if any(routes):
            self.mixture()
        return [route and self.name for route in routes]
