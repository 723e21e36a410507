"""Likelihood of a query's embedding under a density of each task's training prompts (SEMA, CVPR 2025, arXiv 2403.18886).

Letters: P prompts, H hidden states.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from see_lightning.config.checks import one_of, within
from see_lightning.routing.novelty import DESCRIPTORS, FEWEST, Descriptor
from see_lightning.routing.router import Routed, Router
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Queries


class Density(Router):
    """The expert of the task with the smallest z: a query's distance, in standard deviations of the task's own prompts.

    Args:
        method: whose queries are routed.
        descriptor: ``gaussian`` (Mahalanobis distance, in closed form) or ``autoencoder`` (error of reconstruction).
        reject_above: queries whose smallest z exceeds this go to the base model; 0 for none.
    """

    fewest = FEWEST

    def __init__(self, method: Routed, *, descriptor: str = "gaussian", reject_above: float = 0.0) -> None:
        super().__init__(method)
        one_of("router.descriptor", descriptor, DESCRIPTORS)
        within("router.reject_above", reject_above, 0)
        self.kind, self.reject_above = DESCRIPTORS[descriptor], reject_above
        #: Of each task, in the order of learning.
        self.descriptors: dict[str, Descriptor] = {}

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """A density of the task's different prompts."""
        self.fit(task, self.embed(list(dict.fromkeys(map(tuple, prompts)))))

    def fit(self, task: str, states_PH: Tensor) -> None:
        """A density of the embeddings, (P, H), of different prompts; equal ones would make each other seem near."""
        made = self.kind.of(states_PH, seed(self.method.run_seed, task, "descriptor"))
        self.load_state(task, made.tensors)

    def load_state(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """A task's density comes back."""
        super().load_state(task, tensors)
        self.descriptors[task] = self.kind(tensors)

    def route(self, queries: Queries) -> list[str | None]:
        """The task to which each query is least new, unless it is too new to all."""
        if not self.descriptors:
            return [None] * len(queries)
        names, states_PH = list(self.descriptors), self.embed_queries(queries)
        least_P, nearest_P = torch.stack([known.z(states_PH) for known in self.descriptors.values()]).min(0)
        return [
            None if self.reject_above and least > self.reject_above else names[nearest]
            for least, nearest in zip(least_P.tolist(), nearest_P.tolist(), strict=True)
        ]
