"""The common form of a row of every data set."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal


def joined(texts: Sequence[str]) -> str:
    r"""Join the texts of a row into one, for a digest; different texts give different results.

    If a text contains the separator, the row is written as JSON, which escapes it.

    >>> joined(["a", "b"]), joined(["a\x1fb"])
    ('a\x1fb', '\x1c["a\\u001fb"]')
    """
    if any(re.search("[\x1c-\x1f]", text) for text in texts):
        return "\x1c" + json.dumps(list(texts))
    return "\x1f".join(texts)


@dataclass(frozen=True, slots=True)
class Body:
    """The part of a prompt that may be cut if the prompt is too long; the text around it is kept.

    Args:
        start: position of its first character.
        stop: position after its last character.
        keep: the end that is kept.
        extras: start and stop of optional parts before the body, such as examples. They are removed whole, the last first,
            before the body is cut.
    """

    start: int
    stop: int
    keep: Literal["head", "tail"] = "head"
    extras: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier turn of a conversation.

    Args:
        query: of the user.
        answer: of the assistant.
    """

    query: str
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """One query and its reference answers.

    Args:
        id: unique within its task.
        prompt: the query as the user would type it, without any chat template; in a conversation the user's last message.
        target: the reference answer that is trained on.
        task: name of its task.
        source: ``file:line`` that it was read from, for error messages; not part of its identity.
        body: the part of the prompt that may be cut; None if the prompt must stay whole.
        alternatives: further answers that count as right in a test; not trained on.
        remark: a fault of the row that its publisher accepts; a notice counts the rows with it.
        system: a system prompt of the row's own, in place of the run's; None if it has none.
        turns: of the conversation before ``prompt``, the oldest first. Their answers are read, not trained on.
    """

    id: str
    prompt: str
    target: str
    task: str
    source: str = field(default="", compare=False)
    body: Body | None = field(default=None, compare=False)
    alternatives: tuple[str, ...] = ()
    remark: str = field(default="", compare=False)
    system: str | None = None
    turns: tuple[Turn, ...] = ()

    @property
    def context(self) -> tuple[str, ...]:
        """The texts before the prompt: the row's own system prompt, and queries and answers of earlier turns."""
        system = () if self.system is None else (self.system,)
        return *system, *(text for turn in self.turns for text in (turn.query, turn.answer))

    @property
    def whole_prompt(self) -> str:
        r"""The conversation up to the answer as one text, by which repeated prompts are found; without a context the prompt.

        >>> Example("1", "And 2?", "3", "sums", turns=(Turn("1 + 1?", "2"),)).whole_prompt
        'user: 1 + 1?\n\nassistant: 2\n\nuser: And 2?'
        """
        if not self.context:
            return self.prompt
        system = () if self.system is None else (f"system: {self.system}",)
        turns = (f"user: {turn.query}\n\nassistant: {turn.answer}" for turn in self.turns)
        return "\n\n".join((*system, *turns, f"user: {self.prompt}"))

    def identity(self) -> str:
        """Id, prompt, references and context as one text for digests; different examples have different texts."""
        text = joined((self.id, self.prompt, *self.references))
        return f"{text}\x1d{joined((self.system or '', *self.context))}" if self.context else text

    @property
    def references(self) -> tuple[str, ...]:
        """All answers that count as right, the target first."""
        return self.target, *self.alternatives

    def without_last_extra(self) -> "Example":
        """The example without the last of its body's extras.

        >>> Example("1", "Sum up: (so) a text.", "", "sum", body=Body(13, 19, extras=((8, 13),))).without_last_extra().prompt
        'Sum up: a text.'
        """
        if self.body is None or not self.body.extras:
            raise ValueError(f"example {self.id} has nothing that may be left out.")
        *others, (start, stop) = self.body.extras
        body = replace(
            self.body,
            start=self.body.start - (stop - start),
            stop=self.body.stop - (stop - start),
            extras=tuple(others),
        )
        return replace(self, prompt=self.prompt[:start] + self.prompt[stop:], body=body)

    def shortened(self, size: int) -> "Example":
        """The example with its body cut to ``size`` characters.

        >>> Example("1", "Sum up: a long text. Summary:", "", "sum", body=Body(8, 19)).shortened(6).prompt
        'Sum up: a long. Summary:'
        """
        if self.body is None:
            raise ValueError(f"example {self.id} has no body that may be cut.")
        start, stop = self.body.start, self.body.stop
        body = self.prompt[start:stop]
        kept = body[:size] if self.body.keep == "head" else body[len(body) - size :]
        return replace(
            self,
            prompt=self.prompt[:start] + kept + self.prompt[stop:],
            body=replace(self.body, stop=start + len(kept)),
        )
