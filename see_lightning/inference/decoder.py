"""Decoding of batches: rows are added while there is room, and leave the batch when they end."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from see_lightning.inference.forward import READING, extend, one_by_one
from see_lightning.inference.kv_cache import KVCache, join
from see_lightning.inference.sampling import Sampler

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Decoded:
    """The generated tokens of one row.

    Args:
        ids: generated tokens, without the end-of-sequence token.
        ended: True if the model generated an end-of-sequence token; False if the row was cut at the limit or by ``is_over``.
        margin: the smallest difference in logits between a token that the decoder chose, the end included, and the next best.
        in_company: whether another row was prefilled or decoded with it, on which the last digits of logits may depend.
    """

    ids: list[int]
    ended: bool
    margin: float = field(default=float("inf"), compare=False)
    in_company: bool = field(default=False, compare=False)


@dataclass(slots=True)
class RowState(Generic[K]):
    """A row that is being decoded.

    Args:
        key: identifies the row.
        adapter: name of the adapter that generates it; None is the base model.
        ids: tokens generated so far; the KV cache holds all but the last.
        limit: most tokens to generate.
        is_over: called after each new token with the row's tokens so far; True ends the row. None: only the limit and an
            end-of-sequence token end it.
        sampler: draws the next token; None takes the most probable one.
        margin: smallest difference in logits between a chosen token and the next best, so far.
        in_company: whether another row was prefilled or decoded with it so far.
        done: where its tokens are put when it ends; None is the decoder's own ``done``.
    """

    key: K
    adapter: str | None
    ids: list[int]
    limit: int
    is_over: Callable[[list[int]], bool] | None = None
    sampler: Sampler | None = None
    margin: float = float("inf")
    in_company: bool = False
    done: dict[K, Decoded] | None = None


class BatchDecoder(Generic[K]):
    """Decodes rows together, token by token, each under its own adapter.

    Args:
        use_adapter: returns the model with one adapter for each row.
        eos_ids: tokens that end a row.
    """

    def __init__(
        self, use_adapter: Callable[[Sequence[str | None]], AbstractContextManager[nn.Module]], eos_ids: Collection[int]
    ) -> None:
        self.use_adapter, self.eos_ids = use_adapter, eos_ids
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
            _add_next(rows, logits_BV)
        elif rows[0].ids[:-1]:
            _, read = self._extend(read, rows, [row.ids[:-1] for row in rows])
        self.join(read, rows)

    def step(self) -> None:
        """Generate one token for every row."""
        assert self.read is not None
        for row in self.rows:
            row.in_company |= len(self.rows) > 1
        logits_BKV, self.read = self._extend(self.read, self.rows, [row.ids[-1:] for row in self.rows])
        _add_next(self.rows, logits_BKV[:, -1])
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
        elif not (row.is_over and row.is_over(row.ids)) and len(row.ids) < row.limit:
            return False
        done = self.done if row.done is None else row.done
        done[row.key] = Decoded(row.ids, ended, row.margin, row.in_company)
        return True


class DecoderShare(Generic[K]):
    """The rows of one caller in a decoder that several callers share; their keys are its own.

    Args:
        decoder: shared.
    """

    def __init__(self, decoder: BatchDecoder[Any]) -> None:
        self.decoder = decoder
        self.done: dict[K, Decoded] = {}

    @property
    def rows(self) -> list[RowState[K]]:
        """The caller's rows that are being decoded."""
        return [row for row in self.decoder.rows if row.done is self.done]

    def join(
        self,
        read: KVCache,
        rows: Sequence[RowState[K]],
        places: Sequence[int] | None = None,
        mask_BK: Tensor | None = None,
    ) -> None:
        """See ``BatchDecoder.join``."""
        self.decoder.join(read, self._own(rows), places, mask_BK)

    def start(self, logits_BV: Tensor, read: KVCache, rows: Sequence[RowState[K]]) -> None:
        """See ``BatchDecoder.start``."""
        self.decoder.start(logits_BV, read, self._own(rows))

    def step(self) -> None:
        """Generate one token for every row of every caller."""
        self.decoder.step()

    def decode_until(self, rows: int) -> None:
        """Decode until at most ``rows`` rows of the caller are left."""
        while len(self.rows) > rows:
            self.step()

    def ending(self, number: int) -> Iterator[dict[K, Decoded]]:
        """What has ended since the last time, until ``number`` rows have; the decoder is stepped by others in between."""
        while number:
            ended = dict(self.done)
            self.done.clear()
            number -= len(ended)
            yield ended

    def _own(self, rows: Sequence[RowState[K]]) -> Sequence[RowState[K]]:
        for row in rows:
            row.done = self.done
        return rows


def decode_all(answering: Iterator[dict[K, V]], decoder: BatchDecoder[Any]) -> dict[K, V]:
    """Everything that a caller of a decoder yields; the decoder is stepped until then.

    Args:
        answering: yields what has been completed since the last time, as ``DecoderShare.ending`` does.
        decoder: in which it is decoded.
    """
    found: dict[K, V] = {}
    for some in answering:
        found |= some
        if not some and decoder.rows:
            decoder.step()
    return found


def side_by_side(several: Iterable[Iterator[dict[K, V]]]) -> Iterator[dict[K, V]]:
    """What several callers of a decoder yield, until all have ended.

    >>> list(side_by_side([iter([{1: "a"}]), iter([{}, {2: "b"}])]))
    [{1: 'a'}, {2: 'b'}]
    """
    open_ = list(several)
    while open_:
        found: dict[K, V] = {}
        for one in list(open_):
            some = next(one, None)
            if some is None:
                open_.remove(one)
            else:
                found |= some
        if open_ or found:
            yield found


def _add_next(rows: Sequence[RowState[K]], logits_BV: Tensor) -> None:
    """Append the next token to every row: the most probable one, or what the row's sampler draws."""
    tokens = logits_BV.argmax(dim=-1).tolist()  # the first of equal ones, which topk does not guarantee
    best_B2 = logits_BV.topk(2, dim=-1).values.float()
    for place, (row, token, margin) in enumerate(
        zip(rows, tokens, (best_B2[:, 0] - best_B2[:, 1]).tolist(), strict=True)
    ):
        if row.sampler:
            token, margin = row.sampler.choose(logits_BV[place]), 0.0  # rounding may change what top-p leaves out
        row.ids.append(token)
        row.margin = min(row.margin, margin)
