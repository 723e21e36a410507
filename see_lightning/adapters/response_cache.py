"""What frozen experts have said before. Neither they nor the base model move, so they would say the same again."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from see_lightning.adapters.pool import ExpertPool
from see_lightning.tasks.batches import Queries


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """What one voice says to one query.

    Args:
        verdict: ``pos``, ``neg`` or ``neither``; None where none is given (the base model, experts that cannot refuse).
        log_odds: see ``DecodedVerdict``.
        margin: see ``DecodedVerdict``.
        text: the answer; None where it was refused, or nobody needed it yet.
        truncated: whether the answer was cut at the limit.
    """

    verdict: str | None = None
    log_odds: float | None = None
    margin: float | None = None
    text: str | None = None
    truncated: bool | None = None


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One thing said, as it is kept: by whom, to which query, under which key."""

    key: str
    id: str
    expert: str
    response: CachedResponse


class ResponseCache:
    """Things said, by content: whose weights, which prompt, decoded how.

    Args:
        settings: all else that an answer hangs on: template, indicators, precision.
    """

    def __init__(self, *settings: str) -> None:
        self.settings = settings
        self._responses: dict[str, CachedResponse] = {}
        #: What was said since this list was last emptied, for keeping.
        self.new: list[CacheEntry] = []

    def key(
        self, adapter: str, prompt_ids: Sequence[int], max_new_tokens: int, forced_prefix: Sequence[int] = ()
    ) -> str:
        """The name of a voice's answer to a prompt.

        Args:
            adapter: digest of its weights.
            prompt_ids: the prompt.
            max_new_tokens: longest answer.
            forced_prefix: tokens that the answer was made to begin with.
        """
        forced = [",".join(map(str, forced_prefix))] if forced_prefix else []
        text = "\x1e".join([*self.settings, adapter, str(max_new_tokens), ",".join(map(str, prompt_ids)), *forced])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def get(self, key: str) -> CachedResponse | None:
        """What was said, if it was."""
        return self._responses.get(key)

    def put(self, entry: CacheEntry) -> None:
        """Remember something newly said; of two under one key the later one, which has more to it, stays."""
        self._responses[entry.key] = entry.response
        self.new.append(entry)

    def put_back(self, key: str, response: CachedResponse) -> None:
        """Take up what was remembered before."""
        self._responses[key] = response


class BatchCache:
    """What the voices of a pool are remembered to have said to one batch of queries.

    Args:
        response_cache: where it is remembered; None remembers nothing.
        pool: the voices.
        queries: what is asked.
        forced_prefix: tokens that answers are made to begin with; what a voice says of its own accord is another thing.
    """

    def __init__(
        self,
        response_cache: ResponseCache | None,
        pool: ExpertPool,
        queries: Queries,
        forced_prefix: Sequence[int] = (),
    ) -> None:
        self.response_cache, self.queries, self.forced_prefix = response_cache, queries, forced_prefix
        self._digest = {name: pool.digest(name) for name in (None, *pool.names)} if response_cache else {}

    def get(self, adapter: str | None, row: int) -> CachedResponse:
        """What a voice said to a query; empty if nothing is remembered."""
        return (self.response_cache.get(self._key(adapter, row)) if self.response_cache else None) or CachedResponse()

    def put(self, adapter: str | None, row: int, response: CachedResponse) -> None:
        """Remember it."""
        if self.response_cache:
            self.response_cache.put(
                CacheEntry(self._key(adapter, row), self.queries.ids[row], adapter or "base", response)
            )

    def _key(self, adapter: str | None, row: int) -> str:
        assert self.response_cache is not None
        return self.response_cache.key(
            self._digest[adapter], self.queries.prompts[row], self.queries.limits[row], self.forced_prefix
        )
