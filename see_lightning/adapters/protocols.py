"""Protocols of adapters that are more than one LoRA update."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class AdapterDelta(Protocol):
    """An update of layers' outputs, computed with frozen weights."""

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The update of a layer's output, (..., O), in the dtype of its input.

        Args:
            layer: name of an adapted layer.
            x: the layer's input, (..., I).
        """


class CompositeAdapter(AdapterDelta, Protocol):
    """An adapter that is more than one LoRA update: masked, gated, or composed of several adapters.

    Attributes:
        adapters: the pool's adapters that it is composed of, if any. Its file has the settings of the first.
    """

    adapters: tuple[str, ...]

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """A layer's output with the update added, in training: with dropout, and with gradients for trainable weights.

        Args:
            layer: name of an adapted layer.
            x: the layer's input, (..., I).
            y: the frozen layer's output, (..., O).
        """

    def weights(self) -> Iterable[Tensor]:
        """All tensors that determine the update; their digest identifies the adapter."""

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """A, (R, I), and B, (O, R), of the LoRA adapter that is saved for it at a layer."""
