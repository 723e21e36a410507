"""Composite adapters: weighted sums of LoRA adapters, and dense changes of the base model's weights.

Letters: R ranks, I and O the sizes of a layer's input and output.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial, reduce

import torch
from torch import Tensor
from torch.nn.functional import linear

from see_lightning.adapters.adapted_model import AdaptedModel
from see_lightning.adapters.lora import update
from see_lightning.adapters.weight_cache import WeightCache
from see_lightning.errors import ConfigError
from see_lightning.merging.changes import Change, Changes, tensors


class Sum:
    r"""A weighted sum of LoRA adapters, $\Delta W = \sum_t w_t\, s_t B_t A_t$ (task arithmetic, Ilharco et al., ICLR 2023).

    The A and B of all adapters are concatenated, so the sum is one LoRA adapter whose rank is the sum of their ranks, and it
    costs a single pair of products.

    Args:
        pool: holds the adapters. When their weights change, so does the sum.
        adapters: names of the adapters.
        weights: $w_t$, one for each adapter.

    Raises:
        ValueError: there is no adapter, or not one weight for each.
    """

    def __init__(self, pool: AdaptedModel, adapters: Sequence[str], weights: Sequence[float]) -> None:
        if not adapters or len(adapters) != len(weights):
            raise ValueError(
                f"{len(adapters)} adapters and {len(weights)} weights; a sum needs a weight for each adapter."
            )
        self.pool, self.adapters, self.factors = pool, tuple(adapters), tuple(weights)
        self._cache = WeightCache()

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The update of a layer's output, (..., O), in the dtype of its input ``x``, (..., I)."""

        def make() -> tuple[Tensor, Tensor]:
            a_RI, b_OR = self.pair(layer)
            return a_RI.to(x.dtype), (self.pool.scale(layer, self.adapters[0]) * b_OR).to(x.dtype)

        down_RI, up_OR = self._cache.get((layer, x.dtype), partial(self.pool.weights_of, self.adapters, [layer]), make)
        return linear(linear(x, down_RI), up_OR)

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output with the sum added, without gradients for the adapters: a sum is not trained."""
        return y + self.add(layer, x)

    def weights(self) -> Iterator[Tensor]:
        """The concatenated A, (R, I), and B, (O, R), of every layer."""
        for layer in self.pool.layers:
            yield from self.pair(layer)

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """A, (R, I), and B, (O, R), of the sum as one LoRA adapter that has the scale of the first."""
        pairs = [self.pool.pair(layer, adapter) for adapter in self.adapters]
        first, *_ = scales = [self.pool.scale(layer, adapter) for adapter in self.adapters]
        ups = [w * scale / first * b.detach() for w, scale, (_, b) in zip(self.factors, scales, pairs, strict=True)]
        return torch.cat([a.detach() for a, _ in pairs]), torch.cat(ups, dim=1)


class GrowingSum(Sum):
    """A sum of LoRA adapters with weights 1, of which only the last is trained.

    Args:
        pool: holds the adapters.
        adapters: names of the adapters, the oldest first.
    """

    def __init__(self, pool: AdaptedModel, adapters: Sequence[str]) -> None:
        *old, new = adapters
        super().__init__(pool, (*old, new), [1.0] * (len(old) + 1))
        self.frozen = Sum(pool, old, [1.0] * len(old)) if old else None

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output, (..., O), with the sum added; dropout acts on the input of the last adapter only."""
        y = y + self.frozen.add(layer, x) if self.frozen else y
        new = self.adapters[-1]
        return update(y, x, *self.pool.pair(layer, new), scale=self.pool.scale(layer, new), drop=self.pool.dropout())


class Dense:
    r"""A weight change of any rank, $y + \Delta W x$, at the adapted layers.

    Args:
        deltas: $\Delta W$, (O, I), or its factors, of each of the pool's layers, by the layers' names. They are not copied: a
            change in place takes effect in the next forward pass.
    """

    adapters: tuple[str, ...] = ()

    def __init__(self, deltas: Changes) -> None:
        self.deltas = dict(deltas)
        self._cache = WeightCache()

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The update of a layer's output, (..., O), in the dtype of its input ``x``, (..., I)."""
        own = tensors(self.deltas[layer])
        key = (layer, x.dtype, x.device)
        return reduce(linear, self._cache.get(key, lambda: own, lambda: [one.detach().to(x) for one in own]), x)

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output, (..., O), with the change added; gradients reach the deltas that require them."""
        return y + reduce(linear, [one.to(x) for one in tensors(self.deltas[layer])], x)

    def weights(self) -> Iterator[Tensor]:
        """The tensors of the deltas, in the order of the layers."""
        for delta in self.deltas.values():
            yield from tensors(delta)

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """Refuse to give A and B, which a dense change does not have.

        Raises:
            ConfigError: always; PEFT's LoRA files hold no matrix of full rank.
        """
        raise ConfigError(
            f"the change of {layer} has full rank, which no LoRA file holds; write its tensors by themselves."
        )


class LazyDense(Dense):
    """A weight change that is computed when it is first used.

    Args:
        make: computes the deltas, without gradients.
    """

    def __init__(self, make: Callable[[], Changes]) -> None:
        self._make, self._cache = make, WeightCache()

    @cached_property
    def deltas(self) -> dict[str, Change]:  # type: ignore[override]
        """The changes by layer."""
        with torch.inference_mode(False), torch.no_grad():
            return dict(self._make())

    def compute(self) -> None:
        """Compute the change now, if it was not used yet."""
        _ = self.deltas
