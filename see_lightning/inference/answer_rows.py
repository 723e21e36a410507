"""The row of a decoder in which the answer to a query is generated, as the query wants it decoded."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from see_lightning.inference.decoder import RowState
from see_lightning.inference.sampling import Sampler
from see_lightning.tasks.batches import Queries

K = TypeVar("K")


def answer_row(
    queries: Queries,
    row: int,
    key: K,
    adapter: str | None,
    text: Callable[[list[int]], str],
    forced_prefix: Sequence[int] = (),
) -> RowState[K]:
    """A new row of a decoder.

    Args:
        queries: the batch.
        row: the query's number in it.
        key: identifies the row in the decoder.
        adapter: name of the adapter that generates the answer; None is the base model.
        text: the text of tokens.
        forced_prefix: tokens with which the answer is forced to begin; they take no part in its length and its text.
    """
    decoding, begun = queries.decoding_of(row), len(forced_prefix)
    watch = decoding.watch

    def is_over(ids: list[int]) -> bool:
        assert watch is not None
        return watch(text(ids[begun:]))

    return RowState(
        key,
        adapter,
        list(forced_prefix),
        begun + queries.limits[row],
        is_over if watch else None,
        make_sampler(queries, row),
        in_company=len(queries) > 1,  # they were prefilled together
    )


def make_sampler(queries: Queries, row: int) -> Sampler | None:
    """What draws the tokens of an answer; None if they are the most probable ones."""
    decoding = queries.decoding_of(row)
    return Sampler(decoding.temperature, decoding.top_p, decoding.seed) if decoding.temperature else None
