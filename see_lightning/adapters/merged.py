"""An adapter of merged changes: low-rank ones and dense ones, one for each layer.

Letters: R a rank, I and O the sizes of a layer's input and output.
"""

from collections.abc import Callable, Iterator
from functools import cached_property, reduce

import torch
from torch import Tensor
from torch.nn.functional import linear

from see_lightning.adapters.weight_cache import WeightCache
from see_lightning.errors import ConfigError
from see_lightning.merging.changes import Change, Changes, tensors


class MergedAdapter:
    r"""Adds a change of any rank to each adapted layer, $y + \Delta W x$, and is not trained.

    Args:
        make: computes the changes, of each of the pool's layers; called when the adapter is first used.
    """

    adapters: tuple[str, ...] = ()

    def __init__(self, make: Callable[[], Changes]) -> None:
        self._make, self._cache = make, WeightCache()

    @cached_property
    def changes(self) -> dict[str, Change]:
        """The changes by layer."""
        with torch.inference_mode(False), torch.no_grad():
            return dict(self._make())

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The update of a layer's output, (..., O), in the dtype of its input ``x``, (..., I)."""
        own, like = tensors(self.changes[layer]), x
        weights = self._cache.get((layer, x.dtype, x.device), lambda: own, lambda: [one.to(like) for one in own])
        return reduce(linear, weights, x)

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output with the change added, without gradients for it."""
        return y + self.add(layer, x)

    def weights(self) -> Iterator[Tensor]:
        """The tensors of all changes, in the order of the layers."""
        for change in self.changes.values():
            yield from tensors(change)

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """Refuse to give A and B: ranks differ between layers, and some changes have full rank.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"the merged change of {layer} is no LoRA adapter of the run's rank.")
