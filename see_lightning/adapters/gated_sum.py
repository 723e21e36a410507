r"""A sum of LoRA adapters with a weight of each for each row: $\Delta W_b x = \sum_t w_{b,t}\, s\, B_t A_t x$.

Letters: B rows, S tokens, T adapters, R ranks of all adapters, I and O the sizes of a layer's input and output.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from see_lightning.adapters.lora import dropped
from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.weight_cache import WeightCache
from see_lightning.errors import ConfigError


@dataclass(frozen=True)
class Weights:
    """The weights of a batch.

    Args:
        rows_BT: one row for each row of the batch.
        labels_B: positions of each row that the vocabulary head gets in training, where it gets no others; None otherwise.
    """

    rows_BT: Tensor
    labels_B: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """The weights of each token of a layer's input, broadcast over it: (B, 1, T), or (1, S, T) at the vocabulary head.

        Args:
            x: of a layer, (B, S, I), or at the head the positions of all rows, one row after the other, (1, S, I).

        Raises:
            ConfigError: the model does not process the rows of a batch together.
        """
        if x.dim() == 3 and len(x) == len(self.rows_BT):
            return self.rows_BT[:, None]
        if x.dim() == 3 and len(x) == 1 and self.labels_B is not None and x.shape[1] == int(self.labels_B.sum()):
            return self.rows_BT.repeat_interleave(self.labels_B, dim=0)[None]
        raise ConfigError(
            f"an adapted layer got an input of the sizes {tuple(x.shape)} for {len(self.rows_BT)} rows; a method that weighs"
            f" adapters for each row needs a base model that keeps the rows of a batch together."
        )


class GatedSum:
    """The adapters of several tasks, of which one may be trained; the weights of a batch are given by the method.

    Args:
        pool: holds the adapters.
        adapters: names; the first is the one that is or was trained last, the others are frozen.
        rule: returns the tensors from which the weights are computed.
    """

    def __init__(self, pool: ExpertPool, adapters: Sequence[str], rule: Callable[[], Iterable[Tensor]]) -> None:
        self.pool, self.adapters, self.rule = pool, tuple(adapters), rule
        #: The weights of training passes inside ``weighted``.
        self.of_pass: Weights | None = None
        self._cache = WeightCache()

    @contextmanager
    def weighted(self, weights: Weights) -> Iterator[None]:
        """Sets the weights of training passes inside the context."""
        self.of_pass = weights
        try:
            yield
        finally:
            self.of_pass = None

    def of(self, rows_BT: Tensor) -> "Weighted":
        """The sum with fixed weights for the rows of a batch, as an adapter for generation."""
        return Weighted(self, Weights(rows_BT))

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """A layer's output, (B, S, O), with the sum added; dropout acts on the input of the first adapter only."""
        weights = self._given()
        input_, kept = dropped(x, self.pool.dropout())
        a_RI, b_OR = (weight.to(x.dtype) for weight in self.pool.pair(layer, self.adapters[0]))
        frozen_RI, frozen_OR = self._stack(layer, x.dtype, first=1)
        low_BSR = torch.cat([linear(input_, a_RI) / kept, linear(x, frozen_RI)], dim=-1)
        return y + self._up(layer, low_BSR, weights.of(x), torch.cat([b_OR, frozen_OR], dim=1))

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The sum of ``weighted``, without gradients for the adapters."""
        return self.update(layer, x, self._given())

    def update(self, layer: str, x: Tensor, weights: Weights) -> Tensor:
        """The update of a layer's output, (B, S, O), in the dtype of its input ``x``, (B, S, I)."""
        a_RI, b_OR = self._stack(layer, x.dtype)
        return self._up(layer, linear(x, a_RI), weights.of(x), b_OR)

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """A, (R, I), and B, (O, R), of the first adapter, without its weight."""
        a, b = self.pool.pair(layer, self.adapters[0])
        return a.detach(), b.detach()

    def weights(self) -> Iterator[Tensor]:
        """A and B of every adapter, and the tensors of the rule."""
        yield from self.pool.weights_of(self.adapters)
        yield from self.rule()

    def _given(self) -> Weights:
        if self.of_pass is None:
            raise ConfigError(
                "the adapters of this method are weighted by the prompt, so a pass needs a prompt's weights: ask the method,"
                " by Method.answer or Method.logits."
            )
        return self.of_pass

    def _up(self, layer: str, low_BSR: Tensor, each_BST: Tensor, b_OR: Tensor) -> Tensor:
        ranks = low_BSR.shape[-1] // len(self.adapters)
        gated_BSR = low_BSR * each_BST.to(low_BSR.dtype).repeat_interleave(ranks, dim=-1)
        return self.pool.scale(layer, self.adapters[0]) * linear(gated_BSR, b_OR)

    def _stack(self, layer: str, dtype: torch.dtype, first: int = 0) -> tuple[Tensor, Tensor]:
        """Concatenated A and B of ``adapters[first:]``."""

        def make() -> tuple[Tensor, Tensor]:
            a, b = self.pair(layer)
            pairs = [self.pool.pair(layer, adapter) for adapter in self.adapters[first:]]
            a_RI, b_OR = (
                torch.cat([a[:0], *(a for a, _ in pairs)]),
                torch.cat([b[:, :0], *(b for _, b in pairs)], dim=1),
            )
            return a_RI.to(dtype), b_OR.to(dtype)

        weights = partial(self.pool.weights_of, self.adapters[first:], [layer])
        return self._cache.get((layer, dtype, first), weights, make)


@dataclass(frozen=True)
class Weighted:
    """A gated sum with the weights of a batch.

    Args:
        whole: the sum.
        given: the weights.
    """

    whole: GatedSum
    given: Weights

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The update of a layer's output, (B, S, O), in the dtype of its input ``x``, (B, S, I)."""
        return self.whole.update(layer, x, self.given)
