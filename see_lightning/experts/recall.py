"""What frozen experts have said before. Neither they nor the base model move, so they would say the same again."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from see_lightning.experts.pool import ExpertPool
from see_lightning.tasks.batches import Queries


@dataclass(frozen=True, slots=True)
class Said:
    """What one voice says to one query.

    Args:
        verdict: ``pos``, ``neg`` or ``neither``; None where none is given (the base model, experts that cannot refuse).
        log_odds: see ``Opening``.
        margin: see ``Opening``.
        text: the answer; None where it was refused, or nobody needed it yet.
        truncated: whether the answer was cut at the limit.
    """

    verdict: str | None = None
    log_odds: float | None = None
    margin: float | None = None
    text: str | None = None
    truncated: bool | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing said, as it is kept: by whom, to which query, under which key."""

    key: str
    id: str
    expert: str
    said: Said


class Recall:
    """Things said, by content: whose weights, which prompt, decoded how.

    Args:
        settings: all else that an answer hangs on: template, indicators, precision.
    """

    def __init__(self, *settings: str) -> None:
        self.settings = settings
        self._said: dict[str, Said] = {}
        #: What was said since this list was last emptied, for keeping.
        self.new: list[Entry] = []

    def key(self, voice: str, prompt_ids: Sequence[int], max_new_tokens: int, opening: Sequence[int] = ()) -> str:
        """The name of a voice's answer to a prompt.

        Args:
            voice: digest of its weights.
            prompt_ids: the prompt.
            max_new_tokens: longest answer.
            opening: tokens that the answer was made to begin with.
        """
        forced = [",".join(map(str, opening))] if opening else []
        text = "\x1e".join([*self.settings, voice, str(max_new_tokens), ",".join(map(str, prompt_ids)), *forced])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def get(self, key: str) -> Said | None:
        """What was said, if it was."""
        return self._said.get(key)

    def put(self, entry: Entry) -> None:
        """Remember something newly said; of two under one key the later one, which has more to it, stays."""
        self._said[entry.key] = entry.said
        self.new.append(entry)

    def put_back(self, key: str, said: Said) -> None:
        """Take up what was remembered before."""
        self._said[key] = said


class Recollection:
    """What the voices of a pool are remembered to have said to one batch of queries.

    Args:
        recall: where it is remembered; None remembers nothing.
        pool: the voices.
        queries: what is asked.
        opening: tokens that answers are made to begin with; what a voice says of its own accord is another thing.
    """

    def __init__(self, recall: Recall | None, pool: ExpertPool, queries: Queries, opening: Sequence[int] = ()) -> None:
        self.recall, self.queries, self.opening = recall, queries, opening
        self._digest = {name: pool.digest(name) for name in (None, *pool.names)} if recall else {}

    def get(self, voice: str | None, row: int) -> Said:
        """What a voice said to a query; empty if nothing is remembered."""
        return (self.recall.get(self._key(voice, row)) if self.recall else None) or Said()

    def put(self, voice: str | None, row: int, said: Said) -> None:
        """Remember it."""
        if self.recall:
            self.recall.put(Entry(self._key(voice, row), self.queries.ids[row], voice or "base", said))

    def _key(self, voice: str | None, row: int) -> str:
        assert self.recall is not None
        return self.recall.key(self._digest[voice], self.queries.prompts[row], self.queries.limits[row], self.opening)
