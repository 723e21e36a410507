r"""OSFT: whole layers are trained on one task after the other, outside of their leading singular directions.

Nayak et al., *Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning*, ICLR 2026, arXiv 2504.07097.
Before each task, every layer's matrix is decomposed again, so a direction that a task has made large is protected from the
next one.

Letters: T tokens, I and O the sizes of a layer's input and output.
"""

from collections.abc import Mapping
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from see_lightning.adapters.factored_layers import FactoredLayers
from see_lightning.adapters.whole_layers import WholeLayers
from see_lightning.config.checks import within
from see_lightning.errors import ConfigError
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.seeds import seed
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def similarity(x: Tensor, y: Tensor) -> Tensor:
    r"""Cosine of each token's input and output of a layer, $\cos(x, W x)$, as a sum over tokens, in fp32.

    Of a layer whose sizes differ, the larger vector is cut to the size of the smaller, as in the authors' code.

    Args:
        x: inputs, (..., I).
        y: outputs, (..., O).

    >>> similarity(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0, 9.0], [1.0, 0.0, 9.0]]))
    tensor(1.)
    """
    size = min(x.shape[-1], y.shape[-1])
    return cosine_similarity(x[..., :size].float(), y[..., :size].float(), dim=-1).sum()


def shares(similarities: Mapping[str, float], least: float, target: float) -> dict[str, float]:
    r"""The share of each layer's singular directions that is protected: $r = r_{min} + I\,(r_{target} - r_{min})$, at most 1.

    The importance $I$ is the similarity divided by the mean of all layers'. Negative similarities count as 0, so that no
    share is below $r_{min}$; if all are 0, every layer has the importance 1.

    Args:
        similarities: mean cosine of each layer's inputs and outputs, by the layers' names, -1..1.
        least: $r_{min}$, 0..1.
        target: $r_{target}$, the share at the mean importance.

    >>> shares({"q": 0.3, "k": 0.1, "v": -0.2}, 0.1, 0.4)
    {'q': 0.775, 'k': 0.325, 'v': 0.1}
    """
    positive = {layer: max(0.0, one) for layer, one in similarities.items()}
    mean = sum(positive.values()) / len(positive)
    importance = {layer: one / mean if mean else 1.0 for layer, one in positive.items()}
    return {layer: round(min(1.0, least + one * (target - least)), 12) for layer, one in importance.items()}


class Osft(OneAdapterMethod):
    r"""Trains the factors $U_l, \Sigma_l, V_l$ of each layer's smallest singular values; the leading directions stay.

    Gradients of $U_l$ and $V_l$ are projected, and after each step the factors themselves: with Adam's scaling of entries,
    and with weight decay, a step has not the direction of its projected gradient.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        min_retained: $r_{min}$, the least share of a layer's singular directions that is protected, 0..1.
        target_retained: $r_{target}$, the share at the mean importance, $r_{min}$..1.
        rows: most training rows of a task on which layers' importance is measured, before its training.
    """

    traits = Traits(shardable=False, takes_activated=False, weights="full")
    FACTORS = "factors"  # name of the adapter that is trained; its product replaces the copies when a task ends

    def __init__(self, setup: Setup, *, min_retained: float, target_retained: float, rows: int) -> None:
        super().__init__(setup)
        within("method.min_retained", min_retained, 0, 1)
        within("method.target_retained", target_retained, min_retained, 1)
        within("method.rows", rows, 1)
        if not setup.pool.adapter.full:
            raise ConfigError("method=osft trains whole layers; write adapter=full.")
        self.min_retained, self.target_retained, self.rows = min_retained, target_retained, rows
        self.ranks = setup.ranks
        self.learning: FactoredLayers | None = None
        #: By layer: directions that the latest task must not change, as a share of all; empty before the first task.
        self.protected: dict[str, float] = {}

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Decomposes each layer as the previous task left it; only the factors of its small singular values are trained."""
        super().begin_task(task, memory)
        wanted = shares(self._similarities(task), self.min_retained, self.target_retained)
        sizes = {layer: min(matrix.shape) for layer, matrix in self._copies().matrices().items()}
        counts = {layer: min(round(wanted[layer] * size), size - 1) for layer, size in sizes.items()}
        self.protected = {layer: counts[layer] / size for layer, size in sizes.items()}
        self.learning = FactoredLayers(self._copies(), counts)
        self.pool.register(self.FACTORS, self.learning, is_expert=False)
        self.pool.train_only(self.FACTORS)

    def edit_gradients(self) -> None:
        """Removes the components of the factors' gradients in protected directions."""
        assert self.learning is not None
        self.learning.project_gradients()

    def after_step(self) -> None:
        """Removes the components of the factors in protected directions."""
        assert self.learning is not None
        self.learning.project()

    @torch.no_grad()
    def end_task(self, task: Task, memory: Memory) -> None:
        """Replaces each copy by the product of its factors; the next task decomposes it again."""
        if self.learning is None:
            return  # the copies come from another run, which ended the task
        for layer, matrix in self._copies().matrices().items():
            matrix.copy_(self.learning.matrix(layer))
        self.pool.train_only(self.ADAPTER)
        del self.pool.composites[self.FACTORS]
        self.learning = None

    def report(self) -> dict[str, float]:
        """``protected_share``: protected singular directions as a share of all, 0..1, the mean of the layers."""
        if not self.protected:
            return {}
        return {"protected_share": round(sum(self.protected.values()) / len(self.protected), 4)}

    def _copies(self) -> WholeLayers:
        copies = self.pool.composites[self.ADAPTER]
        assert isinstance(copies, WholeLayers)
        return copies

    def _similarities(self, task: Task) -> dict[str, float]:
        """The mean cosine of each layer's inputs and outputs on a task's rows, read one by one, so without padding."""
        rows = list(task.train)
        if self.rows < len(rows):
            rows = Random(seed(self.run_seed, task.name, "rows that tell importance")).sample(rows, self.rows)
        sums = {
            layer: torch.zeros(2, device=self.pool.device()) for layer in self.pool.layers
        }  # of cosines, and of ones

        def add(layer: str, x: Tensor, y: Tensor) -> None:
            sums[layer] += torch.stack([similarity(x, y), y.new_tensor(y[..., 0].numel(), dtype=torch.float32)])

        for batch in self.batches(rows, self.ranks):
            if batch.ids:
                with self.pool.observe(add, outputs=True):
                    self.pool.logits(batch, self.ADAPTER)
        averages = {layer: self.average(both) for layer, both in sums.items()}
        return {layer: float(cosines / tokens) for layer, (cosines, tokens) in averages.items()}
