"""Nearest centroid of the base model's embeddings, by the cosine; the prompt id of Soft-TF.

Letters: T tasks, H hidden states.
"""

from collections.abc import Sequence

import torch

from see_lightning.adapters.embeddings import cosine, direction
from see_lightning.routing.router import Router
from see_lightning.tasks.batches import Queries


class Centroid(Router):
    """The expert of the task whose mean direction is nearest to a query's embedding; the base model is never chosen."""

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """The mean direction of the training prompts."""
        self.kept[task] = {"key": direction(self.embed(prompts))}

    def route(self, queries: Queries) -> list[str | None]:
        """The task with the largest cosine."""
        if not self.kept:
            return [None] * len(queries)
        names = list(self.kept)
        states_PH = self.embed_queries(queries)
        keys_TH = torch.stack([one["key"].to(states_PH) for one in self.kept.values()])
        # Row by row: a product of several rows may differ in its last digits with their number.
        return [names[int(cosine(state_H[None], keys_TH).argmin())] for state_H in states_PH]
