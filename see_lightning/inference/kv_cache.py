"""KV caches of batches, and trees of tokens to be processed next.

Letters: B rows, K columns of a cache, T tokens of a tree, H heads, D size of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(slots=True)
class KVCache:
    """The keys and values of a batch of token sequences.

    Args:
        layers: keys and values of every layer, (B, H, K, D) each.
        mask_BK: True where a column holds a token of the row; False on padding and on branches not continued. Columns
            are in the order of tokens.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask_BK: Tensor

    def __len__(self) -> int:
        return len(self.mask_BK)

    def cache(self) -> DynamicCache:
        """As a cache of transformers. A forward pass with it creates new tensors and does not change these."""
        cache = DynamicCache()
        for keys, values in self.layers:
            layer = DynamicLayer()
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            layer.dtype, layer.device = keys.dtype, keys.device
            cache.layers.append(layer)
        return cache

    def repeat(self, rows: int) -> "KVCache":
        """A cache of one row, expanded to ``rows`` rows without copying."""
        layers = [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self.layers]
        return KVCache(layers, self.mask_BK.expand(rows, -1))

    def select(self, rows: Sequence[int], mask_BK: Tensor | None = None) -> "KVCache":
        """Some rows, with their tokens moved to the right edge and columns without any token removed.

        Args:
            rows: row numbers.
            mask_BK: True for the columns to keep in each of these rows; by default those of ``self.mask_BK``.
        """
        index_B = torch.tensor(rows, device=self.mask_BK.device)
        mask_BK = self.mask_BK[index_B] if mask_BK is None else mask_BK
        width = int(mask_BK.sum(dim=1).max())
        if not width:
            return KVCache([(k[index_B, :, :0], v[index_B, :, :0]) for k, v in self.layers], mask_BK[:, :0])
        if bool(mask_BK[:, -width:].sum() == mask_BK.sum()):  # tokens are at the right edge already
            layers = [(k[index_B, :, -width:], v[index_B, :, -width:]) for k, v in self.layers]
            return KVCache(layers, mask_BK[:, -width:])
        column_BK = mask_BK.to(torch.int8).argsort(dim=1, stable=True)[:, -width:]
        rows_B1 = index_B[:, None]
        # Indexing rows and columns at once puts the heads last; the transpose restores the order.
        layers = [
            (k[rows_B1, :, column_BK].transpose(1, 2), v[rows_B1, :, column_BK].transpose(1, 2)) for k, v in self.layers
        ]
        return KVCache(layers, mask_BK.gather(1, column_BK))


class CommonPrefix(NamedTuple):
    """The prefix that the prompts of a batch share.

    Args:
        tokens: its length.
        cache: its KV cache, of one row, with a trained prefix (``adapters.prefix``) before it; None if both are empty.
    """

    tokens: int
    cache: KVCache | None


#: Prompts that are processed from their first token.
NO_PREFIX = CommonPrefix(0, None)


def join(reads: Sequence[KVCache]) -> KVCache:
    """Concatenate the rows of several caches into one, padded on the left."""
    if len(reads) == 1:
        return reads[0]
    width = max(read.mask_BK.shape[1] for read in reads)
    rows = sum(map(len, reads))
    mask_BK = torch.cat([pad(r.mask_BK, (width - r.mask_BK.shape[1], 0)) for r in reads])
    layers = []
    for parts in zip(*(read.layers for read in reads), strict=True):
        pair = []
        for side in (0, 1):
            first = parts[0][side]
            whole = first.new_zeros(rows, first.shape[1], width, first.shape[3])
            start = 0
            for part in parts:
                whole[start : start + len(part[side]), :, width - part[side].shape[2] :] = part[side]
                start += len(part[side])
            pair.append(whole)
        layers.append((pair[0], pair[1]))
    return KVCache(layers, mask_BK)


@dataclass(frozen=True)
class Tree:
    """Branching tokens: each continues its parent and attends to no other branch.

    Args:
        ids: tokens, parents before children.
        parents: index of each token's parent in ``ids``; -1 for a token that follows the row's last own token.

    >>> Tree((5, 6, 7), (-1, 0, 0)).sees_TT.int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """

    ids: tuple[int, ...] = ()
    parents: tuple[int, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def sees_TT(self) -> Tensor:
        """Whether a token (row) attends to another (column): to its ancestors and itself."""
        sees_TT = torch.eye(len(self.ids), dtype=torch.bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                sees_TT[place] |= sees_TT[parent]
        return sees_TT

    def times(self, copies: int) -> "Tree":
        """A tree of several copies of this one, as parallel branches."""
        size = len(self.ids)
        parents = tuple(p if p < 0 else p + size * copy for copy in range(copies) for p in self.parents)
        return Tree(self.ids * copies, parents)
