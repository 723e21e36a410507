"""The training and test examples of one task, as returned by a reader."""

from dataclasses import dataclass

from see_lightning.data.example import Example


@dataclass(frozen=True, slots=True)
class Split:
    """One task's examples in the order of their files.

    Args:
        train: training examples; at least one, unless the task is only tested.
        test: test examples; at least one, and none with a prompt of ``train``.
        notices: one line for each fact that the user must know, such as rows that were left out.
    """

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    notices: tuple[str, ...] = ()
