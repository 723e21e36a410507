"""Greedy decoding: rows join when there is room, and leave one by one when they end."""

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
    """What one row generated.

    Args:
        ids: generated tokens, without the end-of-sequence token.
        ended: whether it ended by itself; False if it was cut at the limit or stopped from outside.
        margin: the smallest lead of a token, the end included, over the next best, in logits; of those chosen here.
    """

    ids: list[int]
    ended: bool
    margin: float = field(default=float("inf"), compare=False)


@dataclass(slots=True)
class RowState(Generic[K]):
    """A row that is being written.

    Args:
        key: names it.
        adapter: who writes it, as ``use_adapter`` takes it.
        ids: what it generated so far; all but the last of these have been read.
        limit: most tokens it may generate.
        margin: see ``Decoded``.
    """

    key: K
    adapter: str | None
    ids: list[int]
    limit: int
    margin: float = float("inf")


class BatchDecoder(Generic[K]):
    """Rows that are written together, token by token, each by its own voice.

    Args:
        use_adapter: given a voice per row, the model that speaks with them.
        eos_ids: tokens that end a row.
        stop: asked after each new token, with the row's key and its tokens so far; True ends the row.
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
        """Take in rows whose prompts, and all but their last token, were read.

        Args:
            read: what was read.
            rows: the new rows.
            places: where each of them stands in ``read``; by default in the same order.
            mask_BK: which columns of ``read`` each of them goes on from; by default all that hold a token.
        """
        kept = [n for n, row in enumerate(rows) if not self._ends(row)]
        if kept:
            new = read.select(
                [n if places is None else places[n] for n in kept], None if mask_BK is None else mask_BK[kept]
            )
            self.read = new if self.read is None else join([self.read, new])
            self.rows += [rows[n] for n in kept]

    def start(self, logits_BV: Tensor, read: KVCache, rows: Sequence[RowState[K]]) -> None:
        """Take in rows whose prompts were read: their first tokens are the most probable ones.

        Rows that have tokens already, all of them as many, were given these, and go on from there.
        """
        if not rows[0].ids:
            _add_best(rows, logits_BV)
        elif rows[0].ids[:-1]:
            _, read = self._extend(read, rows, [row.ids[:-1] for row in rows])
        self.join(read, rows)

    def step(self) -> None:
        """Write one token on every row."""
        assert self.read is not None
        logits_BKV, self.read = self._extend(self.read, self.rows, [row.ids[-1:] for row in self.rows])
        _add_best(self.rows, logits_BKV[:, -1])
        stays = [place for place, row in enumerate(self.rows) if not self._ends(row)]
        if len(stays) < len(self.rows):
            self.rows = [self.rows[place] for place in stays]
            self.read = self.read.select(stays) if stays else None

    def _extend(self, read: KVCache, rows: Sequence[RowState[K]], ids: Sequence[list[int]]) -> tuple[Tensor, KVCache]:
        """Let each row's voice read on; where rows are read one by one, one voice at a time."""
        with self.use_adapter([row.adapter for row in rows]) as model:
            if READING not in one_by_one(model):
                return extend(model, read, ids)
        told, parts = [], []
        for place, row in enumerate(rows):
            with self.use_adapter([row.adapter]) as model:
                logits_1KV, part = extend(model, read.select([place]), ids[place : place + 1])
            told.append(logits_1KV)
            parts.append(part)
        return torch.cat(told), join(parts)

    def decode_until(self, rows: int) -> None:
        """Write on until no more than ``rows`` rows are left."""
        while len(self.rows) > rows:
            self.step()

    def _ends(self, row: RowState[K]) -> bool:
        """Whether a row ends with its latest token; if so, note what it generated."""
        ended = row.ids[-1] in self.eos_ids
        if ended:
            row.ids.pop()
        elif not self.stop(row.key, row.ids) and len(row.ids) < row.limit:
            return False
        self.done[row.key] = Decoded(row.ids, ended, row.margin)
        return True


def _add_best(rows: Sequence[RowState[K]], logits_BV: Tensor) -> None:
    """Write on every row its most probable token."""
    tokens = logits_BV.argmax(dim=-1).tolist()  # of equal ones the first, which topk does not promise
    best_B2 = logits_BV.topk(2, dim=-1).values.float()
    for row, token, lead in zip(rows, tokens, (best_B2[:, 0] - best_B2[:, 1]).tolist(), strict=True):
        row.ids.append(token)
        row.margin = min(row.margin, lead)
