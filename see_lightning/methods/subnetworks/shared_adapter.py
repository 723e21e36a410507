"""An adapter that tasks share: each uses a part of it, and the weights that earlier tasks use stay bit-identical."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from see_lightning.adapters.pool import ExpertPool
from see_lightning.methods.subnetworks.mixture import LayerMask

Pair = tuple[Tensor, Tensor]


class SharedAdapter:
    """A LoRA adapter whose used weights are protected; unused weights keep their initial values.

    Args:
        pool: gets the adapter.
        name: of the adapter.
        weights_seed: seed of A, and with ``draw_up`` of B.
        times: multiple of the configured rank.
        draw_up: whether B is drawn like a linear layer's weights, divided by the adapter's scale; otherwise it is zero.
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
        #: The initial weights; the mask of weights that any task uses; all weights at the beginning of the current task.
        self.first = self._copy()
        self.used: dict[str, LayerMask] = {}
        self.at_rest: dict[str, Pair] = {}

    def pair(self, layer: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A and B at a layer."""
        return self.pool.pair(layer, self.name)

    def begin(self) -> None:
        """Copy the weights at the beginning of a task; those in use are restored from the copy."""
        self.at_rest = self._copy()

    def spare(self) -> None:
        """Set the gradients of used weights to 0 (WSN, equation 4); before clipping, so that they are not in the norm."""
        for layer, used in self.used.items():
            for weight, mask in zip(self.pair(layer), (used.down, used.up), strict=True):
                if weight.grad is not None:
                    weight.grad.masked_fill_(mask, 0)

    def put_back(self) -> None:
        """Restore used weights, which AdamW's weight decay changes without a gradient."""
        with torch.no_grad():
            for layer, used in self.used.items():
                for weight, mask, rest in zip(self.pair(layer), (used.down, used.up), self.at_rest[layer], strict=True):
                    weight.copy_(torch.where(mask, rest.to(weight), weight))

    def take(self, masks: Sequence[LayerMask]) -> None:
        """Protect the current values of the weights that a task uses, and reset unused ones to their initial values.

        Args:
            masks: of each layer, boolean.
        """
        for layer, mask in zip(self.pool.layers, masks, strict=True):
            before = self.used.get(layer)
            used = self.used[layer] = mask if before is None else before | mask
            for weight, part, first in zip(self.pair(layer), (used.down, used.up), self.first[layer], strict=True):
                with torch.no_grad():
                    weight.copy_(torch.where(part, weight, first.to(weight)))

    def give(self, masks: Sequence[LayerMask], values: Iterable[Pair]) -> None:
        """Load the weights of a task that another process trained.

        Args:
            masks: the weights that it uses.
            values: A and B of each layer, also where the task uses weights of earlier tasks.
        """
        for layer, mask, pair in zip(self.pool.layers, masks, values, strict=True):
            for weight, part, value in zip(self.pair(layer), (mask.down, mask.up), pair, strict=True):
                with torch.no_grad():
                    weight.copy_(torch.where(part, value.to(weight), weight))
        self.take(masks)

    def nbytes(self) -> int:
        """Bytes of the weights that any task uses."""
        return sum(
            int(part.expand_as(weight).sum()) * weight.element_size()
            for layer, mask in self.used.items()
            for part, weight in zip((mask.down, mask.up), self.pair(layer), strict=True)
        )

    def _copy(self) -> dict[str, Pair]:
        return {layer: (a.detach().clone(), b.detach().clone()) for layer, (a, b) in self.pool.pairs(self.name).items()}
