"""What an ensemble is asked, and what it replies."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from see_lightning.config.checks import within
from see_lightning.data.messages import Conversation, read_messages
from see_lightning.data.reader import RowError
from see_lightning.errors import ConfigError
from see_lightning.tasks.batches import Decoding

Messages = Sequence[Mapping[str, str]]  # one chat: {"role": ..., "content": ...} each
BASE = "base"  # name of the base model among experts


class Verdicts(tuple[str, ...]):
    """The verdicts on one query, in the order of asking: ``pos``, ``neg`` or ``neither``, by position or by expert.

    Args:
        words: the verdicts.
        experts: the names of their experts.

    >>> verdicts = Verdicts(["neg", "pos"], experts=["french", "news"])
    >>> verdicts[0], verdicts["news"], dict(verdicts.items()), verdicts == ("neg", "pos")
    ('neg', 'pos', {'french': 'neg', 'news': 'pos'}, True)
    """

    experts: tuple[str, ...]

    def __new__(cls, words: Sequence[str] = (), experts: Sequence[str] = ()) -> "Verdicts":
        """Make the tuple; ``tuple`` takes its content here, not in ``__init__``."""
        verdicts = super().__new__(cls, words)
        verdicts.experts = tuple(experts)
        return verdicts

    def __getnewargs__(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return tuple(self), self.experts

    def __getitem__(self, which: Any) -> Any:
        """A verdict by its position, or by the name of its expert."""
        return super().__getitem__(self.experts.index(which) if which in self.experts else which)

    def items(self) -> Sequence[tuple[str, str]]:
        """Expert and verdict, in the order of asking."""
        return list(zip(self.experts, self, strict=True))

    def __repr__(self) -> str:
        return f"Verdicts({', '.join(f'{expert}={word!r}' for expert, word in self.items())})"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, the expert that generated it, and the verdicts that led there.

    Args:
        text: the answer, without indicator, up to the first stop text.
        expert: name of the expert's task; ``base`` for the base model; None for a method without experts.
        verdicts: of the experts that the query went through; of SEE's walk newest first.
        log_odds: of each verdict, in nats; empty if the experts give none.
        thresholds: of the experts in ``verdicts``: the log-odds below which a positive verdict counts as negative, None where
            there is none; empty if the experts give no verdicts.
        truncated: whether it has reached the limit of new tokens.
        prompt_tokens: tokens of the prompt.
    """

    text: str
    expert: str | None
    verdicts: Verdicts
    log_odds: tuple[float, ...] = ()
    thresholds: tuple[float | None, ...] = ()
    truncated: bool = False
    prompt_tokens: int = 0

    def said(self) -> list[dict[str, Any]]:
        """The verdicts as plain records: ``expert``, ``verdict``, ``log_odds`` and ``threshold``, None where unknown."""
        odds, limits = self.log_odds or [None] * len(self.verdicts), self.thresholds or [None] * len(self.verdicts)
        return [
            {"expert": expert, "verdict": str(verdict), "log_odds": log_odds, "threshold": threshold}
            for (expert, verdict), log_odds, threshold in zip(self.verdicts.items(), odds, limits, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Request:
    """One query, and how its answer is generated.

    Args:
        query: a text, the instruction included; or messages, the last one of the role ``user``. Of several turns the last
            one, with its system prompt, chooses the expert, which then reads all.
        max_new_tokens: longest answer; None is the ensemble's.
        temperature: logits are divided by it, 0..2; 0 takes the most probable token.
        top_p: tokens are drawn from the fewest most probable ones whose probabilities add up to at least this, above 0 and at
            most 1.
        seed: of the draws; the same seed gives the same answer, alone and in company. None draws one.
        stop: texts at whose beginning the answer ends.
        task: of the query, for methods that need it.
        expert: answers the query without being asked for a verdict: an expert's name, or ``base``. None lets the method
            route the query.
        only_route: whether only its route is wanted, without an answer.

    Raises:
        ConfigError: a number is out of its range, or a stop text is empty.
    """

    query: str | Messages
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    task: str | None = None
    expert: str | None = None
    only_route: bool = False

    def __post_init__(self) -> None:
        within("max_new_tokens", self.max_new_tokens, 1)
        within("temperature", self.temperature, 0, 2)
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1; got {self.top_p!r}.")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed must be a whole number of 64 bits; got {self.seed}.")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop must be a list of texts that are not empty; got {self.stop!r}.")

    def decoding(
        self, watch: Callable[[str], bool] | None = None, routed: Callable[[Any], None] | None = None
    ) -> Decoding:
        """How its answer is decoded.

        Args:
            watch: called with the answer so far, in which a stop text may occur; True ends the answer.
            routed: see ``Decoding``.
        """
        drawn = self.seed if self.seed is not None or not self.temperature else secrets.randbits(63)

        def is_over(text: str) -> bool:
            return bool(watch and watch(text)) or any(stop in text for stop in self.stop)

        return Decoding(self.temperature, self.top_p, drawn or 0, is_over if watch or self.stop else None, routed)

    def certain(self, text: str) -> str:
        """The part of an unfinished answer that no further token changes.

        What may be the beginning of a stop text is left out, and so is a character whose bytes are incomplete.

        >>> Request("?", stop=("END",)).certain("to the EN"), Request("?", stop=("END",)).certain("to the END of")
        ('to the ', 'to the ')
        """
        text, is_stopped = self.until_stop(text)
        if is_stopped:
            return text
        text = text.rstrip("\ufffd")  # stands for incomplete bytes
        held = max(
            (size for stop in self.stop for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )
        return text[: len(text) - held]

    def until_stop(self, text: str) -> tuple[str, bool]:
        """The part of an answer before the first stop text, and whether there is one.

        >>> Request("?", stop=("b", "cd")).until_stop("acdb")
        ('a', True)
        """
        ends = [text.index(stop) for stop in self.stop if stop in text]
        return text[: min(ends, default=len(text))], bool(ends)


def read_query(query: str | Messages) -> Conversation:
    """The conversation of a text or of messages; it ends with the user's query.

    Raises:
        ConfigError: messages of another form.
    """
    if isinstance(query, str):
        return Conversation(None, (), (), query, frozenset())
    try:
        found = read_messages(query)
    except RowError as error:
        raise ConfigError(f"{error}.") from error
    if found.query is None:
        raise ConfigError("messages end with one of the user's, which is answered.")
    return found
