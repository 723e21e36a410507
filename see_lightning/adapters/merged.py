"""An adapter of merged changes: low-rank ones and dense ones, one for each layer.

Letters: R a rank, I and O the sizes of a layer's input and output.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, reduce

import torch
from torch import Tensor
from torch.nn.functional import linear

from see_lightning.adapters.weight_cache import WeightCache
from see_lightning.errors import ConfigError
from see_lightning.merging.changes import Change, Changes, LowRank, tensors


class WeightedAdapter:
    r"""Adds $\sum_t w_t B_t A_t x$ to each adapted layer's output, for gradients by the weights $w_t$.

    Args:
        vectors: low-rank changes of each of the pool's layers, by layer.
        weights_T: one for each; gradients reach them.
    """

    adapters: tuple[str, ...] = ()

    def __init__(self, vectors: Sequence[Mapping[str, LowRank]], weights_T: Tensor) -> None:
        self.vectors, self.weights_T = vectors, weights_T

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output, (..., O), with the sum added."""
        pairs = [vector[layer] for vector in self.vectors]
        ranks = torch.tensor([len(pair.a_RI) for pair in pairs], device=x.device)
        weights_R = self.weights_T.to(x).repeat_interleave(ranks)
        low = linear(x, torch.cat([pair.a_RI for pair in pairs]).to(x)) * weights_R
        return y + linear(low, torch.cat([pair.b_OR for pair in pairs], dim=1).to(x))

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The sum of a layer, (..., O)."""
        return self.learn(layer, x, torch.zeros((), dtype=x.dtype, device=x.device))

    def weights(self) -> Iterator[Tensor]:
        """The weights, and the factors of all layers."""
        yield self.weights_T
        for vector in self.vectors:
            for pair in vector.values():
                yield from tensors(pair)

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """Refuse to give A and B; it is used for gradients alone.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"the weighted sum of {layer} is not saved.")


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
