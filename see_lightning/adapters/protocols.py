"""What a voice is that is more than one adapter's update."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class AdapterDelta(Protocol):
    """What adds to layers' outputs, frozen."""

    def add(self, layer: str, x: Tensor) -> Tensor:
        """What it adds to a layer's output, (..., O), in the type of its input.

        Args:
            layer: one of the pool's.
            x: the layer's input, (..., I).
        """


class CompositeAdapter(AdapterDelta, Protocol):
    """A voice that is not simply one adapter's update: masked, gated, or of several adapters.

    Attributes:
        adapters: those of the pool whose weights it is made of, if any; its file has the settings of the first.
    """

    adapters: tuple[str, ...]

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """A layer's output with what the voice adds to it, while it is trained.

        Args:
            layer: one of the pool's.
            x: the layer's input, (..., I).
            y: what the frozen layer gives, (..., O).
        """

    def weights(self) -> Iterable[Tensor]:
        """All that its answers hang on beside the base model."""

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """What of it a plain adapter can hold: A, (R, I), and B, (O, R)."""
