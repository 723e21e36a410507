r"""Sub-experts: sparse parts of a shared pool of low-rank experts, mixed token by token by a task's own router.

$$y = Wx + \frac{\alpha}{r} \sum_{e \in \text{top } k} G_t(x)_e\, (B_e \odot m^B_{t,e})(A_e \odot m^A_{t,e})\, x,
\qquad G_t(x) = \mathrm{softmax}(\mathrm{top}_k(R_t x))$$

The pool's N experts are one adapter of rank N r. A gate multiplies the activations between A and B, so the sum over experts
is one pair of matrix products. Without routers there are no gates, and a sub-expert is a supermask over one adapter (SupSup,
Wortsman et al., NeurIPS 2020; ExSSNeT): $y = Wx + s\,(B \odot m^B_t)(A \odot m^A_t)\,x$.

Letters: N experts, U = N r ranks of the pool, R of them used by a task, I and O the sizes of a layer's input and output.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot

from see_lightning.adapters.lora import dropped, update
from see_lightning.adapters.mixture import gates
from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.weight_cache import WeightCache
from see_lightning.methods.subnetworks.masks import pack, straight_through, top_share, unpack


@dataclass(frozen=True, slots=True)
class LayerMask:
    """The mask of a task over the pool at one layer: boolean, or in training floating point with a gradient.

    Args:
        down: of A, (U, I), or of whole ranks, (U, 1).
        up: of B, (O, U), or of whole ranks, (1, U).
    """

    down: Tensor
    up: Tensor

    def of(self, a_UI: Tensor, b_OU: Tensor) -> tuple[Tensor, Tensor]:
        """A and B with 0 where the mask is 0."""
        if self.down.dtype == torch.bool:  # a product would give -0
            return a_UI.where(self.down.to(a_UI.device), 0), b_OU.where(self.up.to(b_OU.device), 0)
        if self.whole_ranks:
            # The mask once: d(m b a x)/dm = b (a x) for every rank. With the mask in both factors, the gradient of a rank
            # that is not chosen would be 0, and it could never be chosen.
            return a_UI * self.down, b_OU
        return a_UI * self.down, b_OU * self.up

    def fixed(self) -> "LayerMask":
        """The boolean mask."""
        return LayerMask(self.down.detach() > 0.5, self.up.detach() > 0.5)

    def __or__(self, other: "LayerMask") -> "LayerMask":
        return LayerMask(self.down | other.down, self.up | other.up)

    @property
    def whole_ranks(self) -> bool:
        """Whether the mask chooses ranks instead of single weights."""
        return self.down.shape[1] == self.up.shape[0] == 1

    def ranks(self) -> Tensor:
        """Ranks with an entry in both matrices, boolean, (U,)."""
        ranks_U: Tensor = self.down.any(1) & self.up.any(0)
        return ranks_U

    def kept(self) -> dict[str, Tensor]:
        """The masks to store; for whole ranks, one of the two determines the other."""
        return {"down": self.down} if self.whole_ranks else {"down": self.down, "up": self.up}

    @classmethod
    def read(
        cls, tensors: Mapping[str, Tensor], prefix: str, a: torch.Size, b: torch.Size, device: torch.device
    ) -> "LayerMask":
        """The mask from the tensors of ``kept``.

        Args:
            tensors: of the file, packed as bits.
            prefix: of its names.
            a: size of A, (U, I).
            b: size of B, (O, U).
            device: of the mask.
        """
        down = tensors[f"{prefix}down"].to(device)
        if f"{prefix}up" not in tensors:
            ranks_U1 = unpack(down, torch.Size([a[0], 1]))
            return cls(ranks_U1, ranks_U1.T)
        return cls(unpack(down, a), unpack(tensors[f"{prefix}up"].to(device), b))


class MaskScores(nn.Module):
    """Trainable scores from which a task's mask at one layer is computed.

    Args:
        experts: N.
        granularity: ``weight`` scores every number of A and B, ``rank`` whole ranks.
        sizes: U, I, O.
        generator: for the initial scores, which are drawn like a linear layer's weights (WSN).
        rounding: of the number of entries that a mask chooses, see ``top_share``.
    """

    def __init__(
        self,
        experts: int,
        granularity: str,
        sizes: tuple[int, int, int],
        generator: torch.Generator,
        rounding: Callable[[float], int] = math.floor,
    ) -> None:
        super().__init__()
        self.experts, self.granularity, self.rounding = experts, granularity, rounding
        ranks, inner, outer = sizes
        shapes = [(ranks, inner), (outer, ranks)] if granularity == "weight" else [(ranks,)]
        self.values = nn.ParameterList(nn.Parameter(torch.empty(shape)) for shape in shapes)
        for value in self.values:
            bound = value.shape[-1] ** -0.5  # kaiming_uniform with a = sqrt(5)
            nn.init.uniform_(value, -bound, bound, generator=generator)

    def masks(self, share: float) -> LayerMask:
        """The mask of the highest scores, a share of each expert's A and B or of all ranks; gradients go straight through."""
        if self.granularity == "rank":
            (scores_U,) = self.values
            mask_U = straight_through(scores_U, top_share(scores_U, share, self.rounding))
            return LayerMask(mask_U[:, None], mask_U[None])
        a_UI, b_OU = self.values
        # Each expert's part of a tensor has its own threshold.
        down = top_share(a_UI.view(self.experts, -1), share, self.rounding).view_as(a_UI)
        by_expert_NX = b_OU.T.reshape(self.experts, -1)
        up = top_share(by_expert_NX, share, self.rounding).view(b_OU.T.shape).T
        return LayerMask(straight_through(a_UI, down), straight_through(b_OU, up))


class TrainableSubnetwork(nn.Module):
    """A task's sub-experts in training: the pool's weights, the scores and the router.

    Args:
        pool: whose layers are adapted.
        adapter: name of the adapter with all experts.
        scores: of each layer.
        routers: of each layer, (N, I); without routers every token uses all experts.
        k: number of experts that a token is routed to.
        density: c, the share of the pool that a task uses, 0..1.
    """

    def __init__(
        self,
        pool: ExpertPool,
        adapter: str,
        scores: Sequence[MaskScores],
        routers: Sequence[Tensor] = (),
        *,
        k: int = 1,
        density: float,
    ) -> None:
        super().__init__()
        # In a tuple, since the pool is a submodule of the method almatrices.
        self._pool, self.adapter, self.k, self.density = (pool,), adapter, k, density
        self.adapters: tuple[str, ...] = (adapter,)
        self.scores, self.routers = nn.ModuleList(scores), nn.ParameterList(routers)
        self.place = {layer: n for n, layer in enumerate(pool.layers)}

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output with the update of the masked experts, with gradients to weights, scores and routers."""
        (pool,) = self._pool
        mask = self.mask(layer)
        down_UI, up_OU = mask.of(*pool.pair(layer, self.adapter))
        if not self.routers:
            return update(y, x, down_UI, up_OU, scale=pool.scale(layer, self.adapter), drop=pool.dropout())
        router_NI = self.routers[self.place[layer]]
        x_TI, y_TO = x.flatten(0, -2), y.flatten(0, -2)
        thinned_TI, kept = dropped(x_TI, pool.dropout())
        low_TU = linear(thinned_TI, down_UI.to(x.dtype))
        gates_TN = routed(x_TI, router_NI, mask.fixed().ranks(), self.k)
        low_TU = low_TU * gates_TN.repeat_interleave(len(down_UI) // len(router_NI), dim=-1)
        scale = pool.scale(layer, self.adapter) / kept
        return torch.addmm(y_TO, low_TU, up_OU.to(x.dtype).T, alpha=scale).view_as(y)

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The current update, with dropout while the pool is in training mode."""
        nothing = x.new_zeros(*x.shape[:-1], len(self._pool[0].pair(layer, self.adapter)[1]))
        return self.learn(layer, x, nothing)

    def mask(self, layer: str) -> LayerMask:
        """The current mask at a layer."""
        scores = self.scores[self.place[layer]]
        assert isinstance(scores, MaskScores)
        return scores.masks(self.density)

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """The masked A, (U, I), and B, (O, U), without gates."""
        return self.mask(layer).fixed().of(*self._pool[0].pair(layer, self.adapter))

    def weights(self) -> Iterator[Tensor]:
        """The masked A and B of every layer, then the routers."""
        for layer in self.place:
            yield from self.pair(layer)
        yield from self.routers


def routed(x_TI: Tensor, router_NI: Tensor, ranks_U: Tensor, k: int) -> Tensor:
    """The gates (T, N) of tokens, in their dtype; 0 for an expert of which the task uses no rank.

    Args:
        x_TI: the layer's input.
        router_NI: R.
        ranks_U: ranks of the pool that the task uses; if it uses none, the gates have no effect.
        k: number of experts that a token is routed to.
    """
    experts = len(router_NI)
    if experts == 1:
        return x_TI.new_ones(len(x_TI), 1)
    logits_TN = linear(x_TI, router_NI.to(x_TI.dtype)).float()
    used_N = ranks_U.view(experts, -1).any(1)
    silent_N = ~used_N & used_N.any()
    return gates(logits_TN.masked_fill(silent_N, -torch.inf), k).to(x_TI.dtype)


@dataclass(frozen=True, slots=True)
class _Inference:
    """The matrices of a sub-expert at a layer for inference: used ranks only, B times the scale.

    Args:
        down: A, (R, I); with gates, above it the router's rows of the experts with used ranks.
        up_OR: B.
        spread_ER: 1 where a rank belongs to the expert; None without gates.
    """

    down: Tensor
    up_OR: Tensor
    spread_ER: Tensor | None


class SubExpert:
    """A trained task: masks over the pool and a router; the weights belong to the pool.

    Args:
        pool: whose layers are adapted.
        adapter: name of the adapter with all experts.
        masks: of each layer, boolean.
        routers: of each layer, (N, I), or none.
        k: number of experts that a token is routed to.
    """

    def __init__(
        self,
        pool: ExpertPool,
        adapter: str,
        masks: Sequence[LayerMask],
        routers: Sequence[Tensor] = (),
        *,
        k: int = 1,
    ) -> None:
        self.pool, self.adapter, self.k = pool, adapter, k
        self.adapters: tuple[str, ...] = (adapter,)
        layers = pool.layers
        self.masks: dict[str, LayerMask] = dict(zip(layers, masks, strict=True))
        self.routers = dict(zip(layers, (router.detach() for router in routers), strict=True)) if routers else {}
        self._cache = WeightCache()

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The update of the task's ranks alone; A and the router are one matrix product."""
        matrices = self._at(layer, x.dtype)
        low = linear(x, matrices.down)
        if matrices.spread_ER is not None:
            logits_E, low_R = low.tensor_split([len(matrices.spread_ER)], dim=-1)
            low = low_R * (gates(logits_E.float(), self.k).to(x.dtype) @ matrices.spread_ER)
        return linear(low, matrices.up_OR)

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output with the frozen update."""
        return y + self.add(layer, x)

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """The masked A, (U, I), and B, (O, U): every gate is 1."""
        a, b = self.pool.pair(layer, self.adapter)
        return self.masks[layer].of(a.detach(), b.detach())

    def weights(self) -> Iterator[Tensor]:
        """The masked A and B, and the router, of every layer."""
        for layer in self.masks:
            yield from self.pair(layer)
            if self.routers:
                yield self.routers[layer]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store in addition to the pool's weights: packed masks and routers, named by the layer's number."""
        packed = {
            f"{place}.{half}": pack(mask)
            for place, layer_mask in enumerate(self.masks.values())
            for half, mask in layer_mask.kept().items()
        }
        return packed | {f"{place}.router": router for place, router in enumerate(self.routers.values())}

    def _at(self, layer: str, dtype: torch.dtype) -> _Inference:
        return self._cache.get(
            (layer, dtype), partial(self.pool.pair, layer, self.adapter), partial(self._for_inference, layer, dtype)
        )

    def _for_inference(self, layer: str, dtype: torch.dtype) -> _Inference:
        a, b = self.pair(layer)
        (used_R,) = self.masks[layer].ranks().nonzero(as_tuple=True)
        used_R = used_R.to(a.device)
        down, spread_ER = a[used_R], None
        if layer in self.routers:
            router_NI = self.routers[layer].to(a.device)
            experts_E, expert_R = torch.unique(used_R // (len(a) // len(router_NI)), return_inverse=True)
            if len(experts_E) > 1:  # a single one has the gate 1
                down = torch.cat([router_NI[experts_E], down])
                spread_ER = one_hot(expert_R).T.to(dtype)
        up_OR = b[:, used_R] * self.pool.scale(layer, self.adapter)
        return _Inference(down.to(dtype), up_OR.to(dtype), spread_ER)
