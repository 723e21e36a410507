"""Cache of tensors that are computed from weights, valid until a weight changes."""

import hashlib
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class WeightCache:
    """Values computed from weights; a value is recomputed after one of its weights was changed in place.

    PyTorch counts the in-place changes of a tensor (its version); ``get`` compares these counts.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[list[Tensor], list[int], Any]] = {}

    def get(self, key: Hashable, weights: Callable[[], Iterable[Tensor]], make: Callable[[], T]) -> T:
        """The value of a key, computed if it is not cached or out of date.

        Args:
            key: of the value.
            weights: returns the weights that the value is computed from. Called once per key: with many experts, a look-up
                by name at every layer and token would take half as long as the product itself.
            make: computes the value, without gradients.
        """
        entry = self._entries.get(key)
        if entry is not None:
            sources, versions, cached = entry
            if versions == [weight._version for weight in sources]:
                value: T = cached
                return value
        else:
            sources = list(weights())
        versions = [weight._version for weight in sources]
        # Tensors created in inference mode could not be used later with gradients.
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        self._entries[key] = sources, versions, value
        return value

    def clear(self) -> None:
        """Drop all values."""
        self._entries.clear()

    def forget(self, key: Hashable) -> None:
        """Drop the value of a key, whose weights are other tensors from now on."""
        self._entries.pop(key, None)


def sha256(weights: Iterable[Tensor]) -> str:
    """sha256 of the bytes of tensors, one after the other."""
    content = hashlib.sha256()
    for weight in weights:
        content.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
