"""Nearest centroid of the base model's embeddings, by the cosine; the prompt id of Soft-TF.

Letters: P prompts, T tasks, H hidden states.
"""

import torch
from torch import Tensor

from see_lightning.adapters.embeddings import cosine, direction
from see_lightning.routing.features import FeatureRouter


class Centroid(FeatureRouter):
    """The expert of the task whose mean direction is nearest to a query's embedding.

    Its arguments are those of ``FeatureRouter``.
    """

    asks_few = False  # its runs have always recorded the verdicts of all experts

    def fit(self, task: str, states_PH: Tensor) -> None:
        """The mean direction of the training prompts."""
        self.kept[task] = {"key": direction(states_PH)}

    def score(self, states_PH: Tensor) -> Tensor:
        """The cosine with each mean direction, less 1."""
        keys_TH = torch.stack([one["key"].to(states_PH) for one in self.kept.values()])
        return -cosine(states_PH, keys_TH)
