"""Rows that a router does not learn, for its thresholds."""

from collections.abc import Sequence

from see_lightning.data.example import Example
from see_lightning.tasks.task import Task

HELD_BACK = 5  # one different training prompt in so many is held back for thresholds


def hold_back(task: Task, *, holds_out: bool) -> tuple[Sequence[Example], Sequence[Example]]:
    """A task's training rows that a router learns, and rows that it does not learn.

    Args:
        task: its ``held_out`` rows are the latter, if it has some.
        holds_out: whether training rows are held back where the task has no others: every fifth different prompt, at
            least one.
    """
    if task.held_out or not holds_out:
        return task.train, task.held_out
    different = list(dict.fromkeys(example.whole_prompt for example in task.train))
    held_out = set(different[HELD_BACK - 1 :: HELD_BACK] or different[-1:])
    return (
        [example for example in task.train if example.whole_prompt not in held_out],
        [example for example in task.train if example.whole_prompt in held_out],
    )
