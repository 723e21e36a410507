"""The one form in which every data set reaches the rest of the code."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal


def joined(texts: Sequence[str]) -> str:
    r"""The texts of a row as one, for its digest: no other texts give the same.

    The separator may stand in a text; such rows are written as JSON, which holds no such characters.

    >>> joined(["a", "b"]), joined(["a\x1fb"])
    ('a\x1fb', '\x1c["a\\u001fb"]')
    """
    if any(re.search("[\x1c-\x1f]", text) for text in texts):
        return "\x1c" + json.dumps(list(texts))
    return "\x1f".join(texts)


@dataclass(frozen=True, slots=True)
class Body:
    """The part of a prompt that may be shortened where the whole is too long; what stands around it is kept.

    Args:
        start: its first character.
        stop: the character behind its last.
        keep: which end of it stays.
        extras: start and stop of what stands before it and is left out whole, the last first, before the body is cut.
    """

    start: int
    stop: int
    keep: Literal["head", "tail"] = "head"
    extras: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One query and its reference answers.

    Args:
        id: unique within its task.
        prompt: the query as the user would type it, without any chat template.
        target: the reference answer that is trained on.
        task: name of the task it belongs to.
        source: ``file:line`` it was read from, for error messages; no part of its identity.
        body: what may be cut of a prompt that is too long; None: nothing.
        alternatives: further answers that count as right; tested with, never trained on.
        remark: what is malformed about the row although its publisher reads it; the run tells how many rows have it.
    """

    id: str
    prompt: str
    target: str
    task: str
    source: str = field(default="", compare=False)
    body: Body | None = field(default=None, compare=False)
    alternatives: tuple[str, ...] = ()
    remark: str = field(default="", compare=False)

    @property
    def references(self) -> tuple[str, ...]:
        """All answers that count as right, the target first."""
        return self.target, *self.alternatives

    def without_last_extra(self) -> "Example":
        """The same less the last of its body's extras.

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
        """The same with ``size`` characters of its body.

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
