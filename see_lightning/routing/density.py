"""Likelihood of a query's embedding under a density of each task's training prompts (SEMA, CVPR 2025, arXiv 2403.18886).

Letters: P prompts, T tasks, H hidden states.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from see_lightning.config.checks import one_of, within
from see_lightning.routing.features import HELD_OUT, FeatureRouter
from see_lightning.routing.novelty import DESCRIPTORS, FEWEST, Descriptor
from see_lightning.routing.router import Routed
from see_lightning.seeds import seed
from see_lightning.tasks.variants import AS_IS


class Density(FeatureRouter):
    """The expert of the task with the smallest z: a query's distance, in standard deviations of the task's own prompts.

    Args:
        method: whose queries are routed.
        descriptor: ``gaussian`` (Mahalanobis distance, in closed form) or ``autoencoder`` (error of reconstruction).
        reject_above: queries whose smallest z exceeds this go to the base model; 0 for none.
        layer: as in ``FeatureRouter``.
        wordings: as in ``FeatureRouter``.
        target_recall: as in ``FeatureRouter``; a query must pass this threshold and ``reject_above``.
    """

    fewest = FEWEST
    asks_few = False  # its runs have always recorded the verdicts of all experts

    def __init__(
        self,
        method: Routed,
        *,
        descriptor: str = "gaussian",
        reject_above: float = 0.0,
        layer: float | None = 0,
        wordings: Sequence[str] = (AS_IS,),
        target_recall: float = 0.0,
    ) -> None:
        super().__init__(method, layer=layer, wordings=wordings, target_recall=target_recall)
        one_of("router.descriptor", descriptor, DESCRIPTORS)
        within("router.reject_above", reject_above, 0)
        self.kind, self.reject_above = DESCRIPTORS[descriptor], reject_above
        #: Of each task, in the order of learning.
        self.descriptors: dict[str, Descriptor] = {}

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """A density of the task's different prompts; equal ones would make each other seem near."""
        super().learn(task, list(dict.fromkeys(map(tuple, prompts))))

    def fit(self, task: str, states_PH: Tensor) -> None:
        """A density of the embeddings of different prompts."""
        made = self.kind.of(states_PH, seed(self.method.run_seed, task, "descriptor"))
        self.load_state(task, made.tensors)

    def load_state(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Load a task's density."""
        super().load_state(task, tensors)
        self.descriptors[task] = self.kind({name: tensor for name, tensor in tensors.items() if name != HELD_OUT})

    def score(self, states_PH: Tensor) -> Tensor:
        """Minus the z of each task."""
        return -torch.stack([known.z(states_PH) for known in self.descriptors.values()], dim=1)

    def thresholds(self) -> Tensor:
        """The least score at which each task's expert is chosen, (T,)."""
        return super().thresholds().clamp(min=-self.reject_above if self.reject_above else -torch.inf)
