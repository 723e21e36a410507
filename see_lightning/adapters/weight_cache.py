"""Tensors that are computed from weights: kept until a weight changes."""

import hashlib
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class WeightCache:
    """Values computed from weights; one is computed again when a weight that it was made of has been changed in place.

    PyTorch counts every change of a tensor in place; these counters are compared at each use.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[list[Tensor], list[int], Any]] = {}

    def get(self, key: Hashable, weights: Callable[[], Iterable[Tensor]], make: Callable[[], T]) -> T:
        """The value of a key.

        Args:
            key: of the value.
            weights: finds the weights it is made of. They are looked up once: for many experts, finding them by name at
                every layer and token would cost as much as half the product.
            make: computes it, without gradients.
        """
        found = self._entries.get(key)
        if found is not None:
            of, versions, value = found
            if versions == [weight._version for weight in of]:
                kept: T = value
                return kept
        else:
            of = list(weights())
        versions = [weight._version for weight in of]
        # Tensors made in inference mode could not be used later where gradients flow.
        with torch.inference_mode(False), torch.no_grad():
            made = make()
        self._entries[key] = of, versions, made
        return made

    def clear(self) -> None:
        """Drop all values."""
        self._entries.clear()

    def forget(self, key: Hashable) -> None:
        """Drop a value that is made of other weights from now on."""
        self._entries.pop(key, None)


def sha256(weights: Iterable[Tensor]) -> str:
    """Digest of the bytes of tensors, one after the other."""
    content = hashlib.sha256()
    for weight in weights:
        content.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
