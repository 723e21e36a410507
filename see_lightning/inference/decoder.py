"""Greedy decoding of batches: rows are added while there is room, and leave the batch when they end."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from see_lightning.inference.forward import READING, extend, one_by_one
from see_lightning.inference.kv_cache import KVCache, join

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Decoded:
    """The generated tokens of one row.

    Args:
        ids: generated tokens, without the end-of-sequence token.
        ended: True if the model generated an end-of-sequence token; False if the row was cut at the limit or by ``stop``.
        margin: the smallest difference in logits between a token that the decoder chose, the end included, and the next best.
    """

    ids: list[int]
    ended: bool
    margin: float = field(default=float("inf"), compare=False)


@dataclass(slots=True)
class RowState(Generic[K]):
    """A row that is being decoded.

    Args:
        key: identifies the row.
        adapter: name of the adapter that generates it; None is the base model.
        ids: tokens generated so far; the KV cache holds all but the last.
        limit: most tokens to generate.
        margin: smallest difference in logits between a chosen token and the next best, so far.
    """

    key: K
    adapter: str | None
    ids: list[int]
    limit: int
    margin: float = float("inf")


class BatchDecoder(Generic[K]):
    """Decodes rows together, token by token, each under its own adapter.

    Args:
        use_adapter: returns the model with one adapter for each row.
        eos_ids: tokens that end a row.
        stop: called after each new token with the row's key and its tokens so far; True ends the row.
    """

    def __init__(
        self,
        use_adapter: Callable[[Sequence[str | None]], AbstractContextManager[nn.Module]],
        eos_ids: Collection[int],
        stop: Callable[[K, list[int]], bool] = lambda key, ids: False,
    ) -> None:
        self.use_adapter, self.eos_ids, self.stop = use_adapter, eos_ids, stop
        self.rows: list[RowState[K]] = []
        self.read: KVCache | None = None
        self.done: dict[K, Decoded] = {}

    def join(
        self,
        read: KVCache,
        rows: Sequence[RowState[K]],
        places: Sequence[int] | None = None,
        mask_BK: Tensor | None = None,
    ) -> None:
        """Add rows whose prompts and tokens, except the last token, are in a KV cache. Rows that have ended go to ``done``.

        Args:
            read: the KV cache.
            rows: the new rows.
            places: the row of ``read`` that belongs to each new row; by default in the same order.
            mask_BK: True for the columns of ``read`` that a new row attends to; by default all with a token.
        """
        open_rows = [n for n, row in enumerate(rows) if not self._ends(row)]
        if open_rows:
            new = read.select(
                [n if places is None else places[n] for n in open_rows], None if mask_BK is None else mask_BK[open_rows]
            )
            self.read = new if self.read is None else join([self.read, new])
            self.rows += [rows[n] for n in open_rows]

    def start(self, logits_BV: Tensor, read: KVCache, rows: Sequence[RowState[K]]) -> None:
        """Add rows whose prompts are in a KV cache.

        Args:
            logits_BV: of the first token after each prompt.
            read: KV cache of the prompts.
            rows: the new rows. With empty ``ids`` a row gets its most probable first token; otherwise ``ids`` is a forced
                prefix, equally long in all rows, after which it goes on.
        """
        if not rows[0].ids:
            _add_best(rows, logits_BV)
        elif rows[0].ids[:-1]:
            _, read = self._extend(read, rows, [row.ids[:-1] for row in rows])
        self.join(read, rows)

    def step(self) -> None:
        """Generate one token for every row."""
        assert self.read is not None
        logits_BKV, self.read = self._extend(self.read, self.rows, [row.ids[-1:] for row in self.rows])
        _add_best(self.rows, logits_BKV[:, -1])
        open_rows = [place for place, row in enumerate(self.rows) if not self._ends(row)]
        if len(open_rows) < len(self.rows):
            self.rows = [self.rows[place] for place in open_rows]
            self.read = self.read.select(open_rows) if open_rows else None

    def _extend(self, read: KVCache, rows: Sequence[RowState[K]], ids: Sequence[list[int]]) -> tuple[Tensor, KVCache]:
        """Run each row's tokens through its adapter; row by row for a model that cannot process them together."""
        with self.use_adapter([row.adapter for row in rows]) as model:
            if READING not in one_by_one(model):
                return extend(model, read, ids)
        logits, parts = [], []
        for place, row in enumerate(rows):
            with self.use_adapter([row.adapter]) as model:
                logits_1KV, part = extend(model, read.select([place]), ids[place : place + 1])
            logits.append(logits_1KV)
            parts.append(part)
        return torch.cat(logits), join(parts)

    def decode_until(self, rows: int) -> None:
        """Decode until at most ``rows`` rows are left."""
        while len(self.rows) > rows:
            self.step()

    def _ends(self, row: RowState[K]) -> bool:
        """Whether a row ends with its latest token; if so, put its tokens into ``done``."""
        ended = row.ids[-1] in self.eos_ids
        if ended:
            row.ids.pop()
        elif not self.stop(row.key, row.ids) and len(row.ids) < row.limit:
            return False
        self.done[row.key] = Decoded(row.ids, ended, row.margin)
        return True


def _add_best(rows: Sequence[RowState[K]], logits_BV: Tensor) -> None:
    """Append the most probable token to every row."""
    tokens = logits_BV.argmax(dim=-1).tolist()  # the first of equal ones, which topk does not guarantee
    best_B2 = logits_BV.topk(2, dim=-1).values.float()
    for row, token, margin in zip(rows, tokens, (best_B2[:, 0] - best_B2[:, 1]).tolist(), strict=True):
        row.ids.append(token)
        row.margin = min(row.margin, margin)
