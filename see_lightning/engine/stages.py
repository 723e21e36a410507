"""What a run does, stage by stage: what is trained, and what is tested afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass

from see_lightning.tasks.task import Task, merge


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the sequence.

    Args:
        name: of its folder, such as ``03-trans``.
        task: what is trained; None where nothing is.
        tests: the tasks evaluated afterwards.
        rows: the rows of the results matrix (from 0) that its scores fill.
    """

    name: str
    task: Task | None
    tests: tuple[Task, ...]
    rows: tuple[int, ...]


def plan_stages(schedule: str, tasks: Sequence[Task]) -> list[Stage]:
    """The stages of a run.

    Args:
        schedule: ``sequential``: after each task, every task seen so far and the next one are tested. ``joint``: all tasks
            are trained at once, so only the last row is measured. ``frozen``: the model never changes, so one evaluation
            is every row.
        tasks: in their order.
    """
    every = tuple(tasks)
    if schedule == "joint":
        return [Stage("01-all", merge(every), every, (len(every) - 1,))]
    if schedule == "frozen":
        return [Stage("00-base", None, every, tuple(range(len(every))))]
    return [Stage(f"{t + 1:02d}-{task.name}", task, every[: t + 2], (t,)) for t, task in enumerate(every)]
