"""Lowest entropy of the first answer token: every expert reads the query, and the surest one answers.

Letters: V vocabulary.
"""

from see_lightning.routing.router import Routed, Router, answer_logits
from see_lightning.tasks.batches import Queries


class Entropy(Router):
    r"""The expert whose distribution of the first answer token has the lowest entropy, $-\sum_v p_v \log p_v$.

    It keeps nothing, never chooses the base model, and needs a prefill for each expert and query.

    Args:
        method: whose queries are routed.
    """

    def __init__(self, method: Routed) -> None:
        super().__init__(method)
        self._entropies: dict[tuple[str, tuple[int, ...]], float] = {}  # experts are frozen

    def route(self, queries: Queries) -> list[str | None]:
        """The surest expert for each query; of equal ones the oldest."""
        names = self.method.pool.names
        return [min(names, key=lambda name: self._entropy(name, prompt), default=None) for prompt in queries.prompts]

    def _entropy(self, expert: str, prompt: list[int]) -> float:
        """In nats; computed once in a process, and counted as a prefill every time."""
        place = (expert, tuple(prompt))
        if place in self._entropies:
            self.method.counts["prefills"] += 1
        else:
            log_p_1V = answer_logits(self.method, expert, prompt).log_softmax(dim=-1)
            self._entropies[place] = float(-(log_p_1V.exp() * log_p_1V).sum())
        return self._entropies[place]
