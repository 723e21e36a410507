"""Reading prompts into a cache of keys and values, from which any number of continuations go on.

Nothing is read twice: what prompts have in common at their beginning is read once, and tokens that branch (the words an
expert may begin with, or several experts' first words) are read beside each other, each seeing its own past alone.

Letters: B rows, K columns of a cache, R columns read now, T tokens of a tree, H heads, D size of a head, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from see_lightning.tasks.batches import left_pad

# Tokens that a common beginning must save before reading it apart pays for one more pass through the model.
WORTH_SHARING = 128


@dataclass(slots=True)
class Read:
    """Rows of tokens that a model has read.

    Args:
        layers: keys and values of every layer, (B, H, K, D) each.
        mask_BK: True where a column holds a token of the row; the order of columns is the order of tokens.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask_BK: Tensor

    def __len__(self) -> int:
        return len(self.mask_BK)

    def cache(self) -> DynamicCache:
        """As the model takes it. Reading on makes new tensors and leaves these as they are."""
        cache = DynamicCache()
        for keys, values in self.layers:
            layer = DynamicLayer()
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            layer.dtype, layer.device = keys.dtype, keys.device
            cache.layers.append(layer)
        return cache

    def repeat(self, rows: int) -> "Read":
        """One row, as many rows; no copy is made."""
        layers = [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self.layers]
        return Read(layers, self.mask_BK.expand(rows, -1))

    def select(self, rows: Sequence[int], mask_BK: Tensor | None = None) -> "Read":
        """Some rows, with their tokens moved to the right edge and no column without a token.

        Args:
            rows: numbers of rows.
            mask_BK: which of their columns count; by default those of ``self.mask_BK``.
        """
        index_B = torch.tensor(rows, device=self.mask_BK.device)
        mask_BK = self.mask_BK[index_B] if mask_BK is None else mask_BK
        width = int(mask_BK.sum(dim=1).max())
        if bool(mask_BK[:, -width:].sum() == mask_BK.sum()):  # they stand at the right edge already
            layers = [(k[index_B, :, -width:], v[index_B, :, -width:]) for k, v in self.layers]
            return Read(layers, mask_BK[:, -width:])
        column_BK = mask_BK.to(torch.int8).argsort(dim=1, stable=True)[:, -width:]
        rows_B1 = index_B[:, None]
        # Indexed by rows and columns at once, heads come last; they go back to their place.
        layers = [
            (k[rows_B1, :, column_BK].transpose(1, 2), v[rows_B1, :, column_BK].transpose(1, 2)) for k, v in self.layers
        ]
        return Read(layers, mask_BK.gather(1, column_BK))


def join(reads: Sequence[Read]) -> Read:
    """Rows that were read apart as one, padded on the left."""
    if len(reads) == 1:
        return reads[0]
    width = max(read.mask_BK.shape[1] for read in reads)
    rows = sum(map(len, reads))
    mask_BK = torch.cat([nn.functional.pad(r.mask_BK, (width - r.mask_BK.shape[1], 0)) for r in reads])
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
    return Read(layers, mask_BK)


@dataclass(frozen=True)
class Tree:
    """Tokens that branch; each goes on from its parent and sees no other branch.

    Args:
        ids: tokens, parents before children.
        parents: place of each token's parent in ``ids``; -1 hangs a token on the last one of the row.

    >>> Tree((5, 6, 7), (-1, 0, 0)).sees_TT.int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """

    ids: tuple[int, ...] = ()
    parents: tuple[int, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def sees_TT(self) -> Tensor:
        """Whether a token (row) sees another (column): its forebears and itself."""
        sees_TT = torch.eye(len(self.ids), dtype=torch.bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                sees_TT[place] |= sees_TT[parent]
        return sees_TT

    def times(self, copies: int) -> "Tree":
        """The tree ``copies`` times, side by side."""
        size = len(self.ids)
        parents = tuple(p if p < 0 else p + size * copy for copy in range(copies) for p in self.parents)
        return Tree(self.ids * copies, parents)


def read_on(
    model: nn.Module,
    read: Read | None,
    prompts: Sequence[Sequence[int]],
    *,
    tree: Tree | None = None,
    keep: Sequence[int] = (-1,),
) -> tuple[Tensor, Read]:
    """Let a model read on: first each row's own tokens, then a tree that all rows share.

    Args:
        model: a causal language model of Hugging Face's interface.
        read: what the rows have read before; None begins anew.
        prompts: a row's own tokens; all may be empty if there is a tree.
        tree: tokens that hang on the end of every row.
        keep: columns, counted from the end, whose logits are wanted.

    Returns:
        Logits (B, len(keep), V), and all that was read; the tree's tokens count as none's until a mask says so.
    """
    device = next(model.parameters()).device
    rows, tree = len(prompts), tree or Tree()
    width = max(map(len, prompts))
    ids_BR = left_pad(prompts, 0, width).to(device) if width else torch.zeros(rows, 0, dtype=torch.long, device=device)
    own_BR = left_pad([[1] * len(p) for p in prompts], 0, width).to(device).bool() if width else ids_BR.bool()
    past_BK = own_BR.new_zeros(rows, 0) if read is None else read.mask_BK
    before_B1 = past_BK.sum(dim=1, keepdim=True)
    position_BR = (before_B1 + own_BR.cumsum(dim=1) - 1).clamp(min=0)
    mask_BK = torch.cat([past_BK, own_BR], dim=1)
    attention = mask_BK.long()
    if tree.ids:
        sees_TT = tree.sees_TT.to(device)
        ids_BR = torch.cat([ids_BR, torch.tensor(tree.ids, device=device).expand(rows, -1)], dim=1)
        depth_T = sees_TT.sum(dim=1) - 1
        position_BR = torch.cat([position_BR, mask_BK.sum(dim=1, keepdim=True) + depth_T], dim=1)
        attention = _mask(past_BK, own_BR, sees_TT, next(model.parameters()).dtype)
    out = model(
        input_ids=ids_BR,
        attention_mask=attention,
        position_ids=position_BR,
        past_key_values=None if read is None else read.cache(),
        use_cache=True,
        logits_to_keep=torch.tensor([ids_BR.shape[1] + k for k in keep], device=device),
    )
    layers = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
    return out.logits, Read(layers, nn.functional.pad(mask_BK, (0, len(tree))))


def _mask(past_BK: Tensor, own_BR: Tensor, sees_TT: Tensor, dtype: torch.dtype) -> Tensor:
    """What each new token sees, as a mask (B, 1, R + T, K + R + T) that is added to the scores."""
    rows, own, branches = *own_BR.shape, len(sees_TT)
    causal_RR = torch.ones(own, own, dtype=torch.bool, device=own_BR.device).tril()
    text_BRK = torch.cat(
        [
            past_BK[:, None].expand(-1, own, -1),
            causal_RR & own_BR[:, None],
            own_BR.new_zeros(rows, own, branches),
        ],
        dim=2,
    )
    tree_BTK = torch.cat(
        [torch.cat([past_BK, own_BR], dim=1)[:, None].expand(-1, branches, -1), sees_TT.expand(rows, -1, -1)], dim=2
    )
    seen = torch.cat([text_BRK, tree_BTK], dim=1)[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, at least one left to each.

    >>> common_start([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3]])
    2
    """
    first, last = (
        min(map(tuple, prompts)),
        max(map(tuple, prompts)),
    )  # in alphabetical order, all others share what these two share
    longest = min(map(len, prompts)) - 1
    return next((n for n in range(longest) if first[n] != last[n]), max(0, longest))


def read_start(model: nn.Module, prompts: Sequence[Sequence[int]]) -> tuple[int, Read | None]:
    """Read what all prompts begin with, if that saves more than it costs.

    Returns:
        How many tokens that are, and what was read, a single row; (0, None) where it does not pay.
    """
    tokens = common_start(prompts)
    if tokens * (len(prompts) - 1) < WORTH_SHARING:
        return 0, None
    return tokens, read_on(model, None, [prompts[0][:tokens]])[1]
