"""The two halves of one task's data, as a reader hands them on."""

from dataclasses import dataclass

from see_lightning.data.example import Example


@dataclass(frozen=True, slots=True)
class Split:
    """One task's examples in the order of their files.

    Args:
        train: what a method may learn from; at least one, unless the task is only tested.
        test: what it is scored on; at least one, and none of their prompts stands in ``train``.
        notices: one line for each thing the user must know, such as rows that were left out.
    """

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    notices: tuple[str, ...] = ()
