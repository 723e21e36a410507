"""The one form in which every data set reaches the rest of the code."""

from dataclasses import dataclass, field

from see_lightning.config import Refusal


class DataError(Refusal):
    """The data cannot be used as they are; the message names file, line and reason."""


@dataclass(frozen=True, slots=True)
class Example:
    """One query and its reference answer.

    Args:
        id: unique within its task.
        prompt: the query as the user would type it, without any chat template.
        target: the reference answer; never empty.
        task: name of the task it belongs to.
        source: ``file:line`` it was read from, for error messages; no part of its identity.
    """

    id: str
    prompt: str
    target: str
    task: str
    source: str = field(default="", compare=False)
