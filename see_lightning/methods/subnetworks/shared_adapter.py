"""An adapter that tasks share: each uses a part of it, and what earlier tasks use stays bit by bit as it is."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from see_lightning.adapters.pool import ExpertPool
from see_lightning.methods.subnetworks.mixture import LayerMask

Pair = tuple[Tensor, Tensor]


class SharedAdapter:
    """What is learned in it belongs to the tasks that use it; all that nobody uses is its first draw.

    Args:
        pool: gets the adapter.
        name: of the adapter.
        weights_seed: draws A, and B too if ``draw_up``.
        times: how often the configured rank stands side by side in it.
        draw_up: whether B is drawn as well, which otherwise is zero: as a linear layer's weights, over the adapter's scale.
    """

    def __init__(
        self, pool: ExpertPool, name: str, weights_seed: int, *, times: int = 1, draw_up: bool = False
    ) -> None:
        self.pool, self.name = pool, name
        pool.add_adapter(name, weights_seed, times)
        if draw_up:
            draw = torch.Generator().manual_seed(weights_seed)
            for layer in pool.layers:
                _, up_OU = self.pair(layer)
                bound = up_OU.shape[1] ** -0.5 / pool.scale(layer, name)
                with torch.no_grad():
                    up_OU.copy_(torch.empty(up_OU.shape).uniform_(-bound, bound, generator=draw))
        #: The first draw; what any task uses; and all of it as the latest task found it.
        self.first = self._copy()
        self.used: dict[str, LayerMask] = {}
        self.at_rest: dict[str, Pair] = {}

    def pair(self, layer: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A and B at a layer."""
        return self.pool.pair(layer, self.name)

    def begin(self) -> None:
        """A task begins: what stands here now is what must not move."""
        self.at_rest = self._copy()

    def spare(self) -> None:
        """What an earlier task uses has no gradient (WSN, equation 4); before clipping, so that it takes no room there."""
        for layer, used in self.used.items():
            for weight, mask in zip(self.pair(layer), (used.down, used.up), strict=True):
                if weight.grad is not None:
                    weight.grad.masked_fill_(mask, 0)

    def put_back(self) -> None:
        """Nor does it move: AdamW's decay needs no gradient to move a weight."""
        with torch.no_grad():
            for layer, used in self.used.items():
                for weight, mask, rest in zip(self.pair(layer), (used.down, used.up), self.at_rest[layer], strict=True):
                    weight.copy_(torch.where(mask, rest.to(weight), weight))

    def take(self, masks: Sequence[LayerMask]) -> None:
        """Let a task own what it uses, as it stands now.

        Args:
            masks: of each layer, as truth values.
        """
        for layer, mask in zip(self.pool.layers, masks, strict=True):
            before = self.used.get(layer)
            used = self.used[layer] = mask if before is None else before | mask
            for weight, part, first in zip(self.pair(layer), (used.down, used.up), self.first[layer], strict=True):
                with torch.no_grad():
                    weight.copy_(torch.where(part, weight, first.to(weight)))

    def give(self, masks: Sequence[LayerMask], values: Iterable[Pair]) -> None:
        """Take up what a task learned in another process.

        Args:
            masks: what it uses.
            values: of each layer; what earlier tasks own stands in them too where this one uses it again.
        """
        for layer, mask, pair in zip(self.pool.layers, masks, values, strict=True):
            for weight, part, value in zip(self.pair(layer), (mask.down, mask.up), pair, strict=True):
                with torch.no_grad():
                    weight.copy_(torch.where(part, value.to(weight), weight))
        self.take(masks)

    def nbytes(self) -> int:
        """Of the weights that any task uses."""
        return sum(
            int(part.expand_as(weight).sum()) * weight.element_size()
            for layer, mask in self.used.items()
            for part, weight in zip((mask.down, mask.up), self.pair(layer), strict=True)
        )

    def _copy(self) -> dict[str, Pair]:
        return {layer: (a.detach().clone(), b.detach().clone()) for layer, (a, b) in self.pool.pairs(self.name).items()}
