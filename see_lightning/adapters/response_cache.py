"""Cache of verdicts and answers. Experts and base model are frozen, so a response is the same each time."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from see_lightning.adapters.pool import ExpertPool
from see_lightning.tasks.batches import Queries


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """The response of one adapter to one query.

    Args:
        verdict: ``pos``, ``neg`` or ``neither``; None from the base model and from experts that cannot refuse.
        log_odds: of ``pos`` against ``neg``; see ``DecodedVerdict``.
        margin: smallest difference in logits between a decoded token and the next best; see ``DecodedVerdict``.
        text: the answer; None if the query was refused, or the answer was not generated yet.
        truncated: whether the answer was cut at the limit.
    """

    verdict: str | None = None
    log_odds: float | None = None
    margin: float | None = None
    text: str | None = None
    truncated: bool | None = None


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A response as it is written to disk.

    Args:
        key: from ``ResponseCache.key``.
        id: of the query.
        expert: name of the adapter, ``base`` for the base model.
        response: of the adapter to the query.
    """

    key: str
    id: str
    expert: str
    response: CachedResponse


class ResponseCache:
    """Responses by a hash of all that determines them: the adapter's weights, the prompt, and the decoding.

    Args:
        settings: everything else that a response depends on: template, indicators, precision.
    """

    def __init__(self, *settings: str) -> None:
        self.settings = settings
        self._responses: dict[str, CachedResponse] = {}
        #: Computes responses elsewhere (``routing.remote_responses``); None computes them in this process.
        self.remote: Any = None
        #: Responses since this list was last emptied; they are still to be written to disk.
        self.new: list[CacheEntry] = []

    def key(
        self, adapter: str, prompt_ids: Sequence[int], max_new_tokens: int, forced_prefix: Sequence[int] = ()
    ) -> str:
        """The key of an adapter's response to a prompt.

        Args:
            adapter: digest of its weights.
            prompt_ids: the prompt's tokens.
            max_new_tokens: longest answer in tokens.
            forced_prefix: tokens with which the answer is forced to begin.
        """
        forced = [",".join(map(str, forced_prefix))] if forced_prefix else []
        text = "\x1e".join([*self.settings, adapter, str(max_new_tokens), ",".join(map(str, prompt_ids)), *forced])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def get(self, key: str) -> CachedResponse | None:
        """The response under a key, or None."""
        return self._responses.get(key)

    def put(self, entry: CacheEntry) -> None:
        """Store a new response and list it in ``new``. It replaces one under the same key, which was less complete."""
        self._responses[entry.key] = entry.response
        self.new.append(entry)

    def put_back(self, key: str, response: CachedResponse) -> None:
        """Store a response that was read from disk."""
        self._responses[key] = response


class BatchCache:
    """The cached responses to one batch of queries, by adapter and row.

    Args:
        response_cache: holds the responses; None caches nothing.
        pool: the base model and its experts.
        queries: the batch.
        forced_prefix: tokens with which answers are forced to begin; part of the key.
        plain: adapters that give no verdicts here. Where the same weights gave one, in the run that this one was made from,
            their response is not used.
    """

    def __init__(
        self,
        response_cache: ResponseCache | None,
        pool: ExpertPool,
        queries: Queries,
        forced_prefix: Sequence[int] = (),
        plain: Collection[str] = (),
    ) -> None:
        self.response_cache, self.queries, self.forced_prefix = response_cache, queries, forced_prefix
        self.plain = plain
        self.remote = response_cache.remote if response_cache else None
        self._digest = cache(pool.digest)

    def get(self, adapter: str | None, row: int) -> CachedResponse:
        """The response of an adapter to the query of a row; all fields None if it is not cached."""
        found = self.response_cache.get(self._key(adapter, row)) if self.response_cache else None
        return CachedResponse() if found is None or (found.verdict and adapter in self.plain) else found

    def put(self, adapter: str | None, row: int, response: CachedResponse) -> None:
        """Store the response of an adapter to the query of a row."""
        if self.response_cache:
            self.response_cache.put(
                CacheEntry(self._key(adapter, row), self.queries.ids[row], adapter or "base", response)
            )

    def _key(self, adapter: str | None, row: int) -> str:
        assert self.response_cache is not None
        return self.response_cache.key(
            self._digest(adapter), self.queries.prompts[row], self.queries.limits[row], self.forced_prefix
        )
