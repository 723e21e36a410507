r"""A mixture of ranks: each rank of each task's adapter is an expert that is gated by its own match with the input.

$$\Delta W x = \frac{\alpha}{r} \sum_i w_i(x)\, b_i\, (a_i^\top x)$$

over the ranks of all tasks, after Lu et al., *Little By Little* (arXiv 2506.21035): MoRA, later MoRAM. The weight of a rank
grows with the component of the input along its direction $a_i$, so no router is needed. The sum over tasks and ranks is a
single pair of products.

Letters: R ranks of all tasks at a layer, I and O the sizes of its input and output.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from see_lightning.adapters.lora import dropped
from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.weight_cache import WeightCache


def activations(low_R: Tensor, budget: int, temperature: float | None, threshold: float = 0.0) -> Tensor:
    r"""The gate of each rank, $w_i$, in fp32; (..., R) to (..., R).

    $s_i = a_i^\top x / \sqrt{\sum_j (a_j^\top x)^2}$ over all ranks; $w = \mathrm{softmax}(s / \tau)$ over the k largest s,
    0 for the others, and 0 where $s_i < \delta$. Without a temperature, s is replaced by |s|, and $w = |s|$. The weights are
    not normalised again after the threshold.

    Args:
        low_R: $a_i^\top x$.
        budget: k.
        temperature: $\tau$, or None.
        threshold: $\delta$, 0..1; 0 sets no weight to zero.

    >>> low = torch.tensor([3.0, 0.0, -4.0])
    >>> [round(weight, 3) for weight in activations(low, 2, 0.2).tolist()]
    [0.953, 0.047, 0.0]
    >>> [round(weight, 3) for weight in activations(low, 2, None).tolist()]
    [0.6, 0.0, 0.8]
    """
    low_R = low_R.float()
    scores_R = low_R / low_R.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    if temperature is None:
        scores_R = scores_R.abs()
    weights_R: Tensor = scores_R if temperature is None else scores_R / temperature
    if budget < low_R.shape[-1]:
        places = scores_R.detach().topk(budget, dim=-1, sorted=False).indices
        gone_R = torch.ones_like(scores_R, dtype=torch.bool).scatter(-1, places, False)
        weights_R = weights_R.masked_fill(gone_R, 0.0 if temperature is None else -torch.inf)
    if temperature is not None:
        weights_R = weights_R.softmax(dim=-1)
    return weights_R.masked_fill(scores_R < threshold, 0.0) if threshold else weights_R


def living(a_RI: Tensor) -> Tensor:
    """True for each rank of an adapter that was not pruned, (R,): the A of a pruned rank is all zeros."""
    living_R: Tensor = a_RI.detach().any(dim=1)
    return living_R


class MixtureOfRanks:
    """The ranks of several adapters as one composite adapter.

    Args:
        pool: holds the adapters.
        adapters: names; the first is the one that is or was trained last, the others are frozen.
        budget: k, the number of ranks that are active for a token at a layer.
        temperature: of the softmax over ranks; None weighs each rank by |s|, see ``activations``.
        threshold: least score of an active rank, 0..1; not applied in training.
    """

    def __init__(
        self,
        pool: ExpertPool,
        adapters: Sequence[str],
        *,
        budget: int,
        temperature: float | None,
        threshold: float,
    ) -> None:
        self.pool, self.adapters = pool, tuple(adapters)
        self.budget, self.temperature, self.threshold = budget, temperature, threshold
        self._cache = WeightCache()

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """A layer's output, (..., O), with the update added; dropout acts on the input of ranks and of their gates."""
        x, kept = dropped(x.flatten(0, -2), self.pool.dropout())
        a_RI, b_OR = (weight.to(x.dtype) for weight in self.pool.pair(layer, self.adapters[0]))
        frozen_RI, frozen_OR = self._stack(layer, x.dtype, first=1)
        low_R = linear(x, torch.cat([a_RI, frozen_RI]))
        threshold = 0.0 if self.pool.training else self.threshold
        low_R = low_R * activations(low_R, self.budget, self.temperature, threshold).to(x.dtype)
        scale = self.pool.scale(layer, self.adapters[0]) / kept
        return torch.addmm(y.flatten(0, -2), low_R, torch.cat([b_OR, frozen_OR], dim=1).T, alpha=scale).view_as(y)

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The update of a layer's output, (..., O), in the dtype of its input ``x``, (..., I)."""
        a_RI, b_OR = self._stack(layer, x.dtype)
        low_R = linear(x, a_RI)
        return linear(low_R * (self._acts(low_R) * self.pool.scale(layer, self.adapters[0])).to(x.dtype), b_OR)

    def acts(self, layer: str, x: Tensor) -> Tensor:
        """The gate of each rank for a layer's input in generation, (..., R); the first adapter's ranks come first."""
        return self._acts(linear(x, self._stack(layer, x.dtype)[0]))

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """A, (R, I), and B, (O, R), of the first adapter, without gates."""
        a, b = self.pool.pair(layer, self.adapters[0])
        return a.detach(), b.detach()

    def weights(self) -> Iterator[Tensor]:
        """A and B of every adapter, layer by layer."""
        for layer in self.pool.layers:
            for adapter in self.adapters:
                yield from self.pool.pair(layer, adapter)

    def _acts(self, low_R: Tensor) -> Tensor:
        return activations(low_R, self.budget, self.temperature, self.threshold)

    def _stack(self, layer: str, dtype: torch.dtype, first: int = 0) -> tuple[Tensor, Tensor]:
        """Concatenated A and B of ``adapters[first:]``, without pruned ranks."""

        def make() -> tuple[Tensor, Tensor]:
            a, b = self.pair(layer)
            pairs = [self.pool.pair(layer, adapter) for adapter in self.adapters[first:]]
            return (
                torch.cat([a[:0], *(a[living(a)] for a, _ in pairs)]).to(dtype),
                torch.cat([b[:, :0], *(b[:, living(a)] for a, b in pairs)], dim=1).to(dtype),
            )

        weights = partial(self.pool.weights_of, self.adapters[first:], [layer])
        return self._cache.get((layer, dtype, first), weights, make)


class Activity:
    """A mixture of ranks that also sums the gates of each rank over all tokens that it processes.

    Args:
        mixture: computes the update and the gates.
    """

    def __init__(self, mixture: MixtureOfRanks) -> None:
        self.mixture = mixture
        #: By layer: gates summed over tokens, (R,).
        self.sums: dict[str, Tensor] = {}

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The mixture's update of a layer's output, (..., O); adds the gates to ``sums``."""
        gates_R = self.mixture.acts(layer, x).flatten(0, -2).sum(0)
        self.sums[layer] = self.sums.get(layer, 0) + gates_R
        return self.mixture.add(layer, x)
