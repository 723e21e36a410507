"""Streams in which tasks come back or run into one another, as pure functions from task sizes to row numbers."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from see_lightning.config.checks import within
from see_lightning.seeds import seed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stage:
    """What is trained on between two evaluations.

    Args:
        task: that the stage belongs to.
        rows: numbers of training rows by the task that they come from, each from 0.
    """

    task: str
    rows: dict[str, tuple[int, ...]]


def recurring(sizes: Mapping[str, int], order: Sequence[str], run_seed: int) -> list[Stage]:
    """A task that comes back does so with other rows: its rows are dealt to its visits, as evenly as can be.

    Which rows a visit gets depends on the task's own visits alone, so more of other tasks change nothing.

    Args:
        sizes: training rows of each task.
        order: tasks in the order of their visits, such as ``["qa", "qg", "qa"]``.
        run_seed: the run's seed.

    Raises:
        ValueError: a task of ``order`` has no size, or fewer rows than visits.

    >>> [stage.rows for stage in recurring({"qa": 3, "qg": 2}, ["qa", "qg", "qa"], run_seed=0)]
    [{'qa': (1, 2)}, {'qg': (0, 1)}, {'qa': (0,)}]
    """
    dealt = {}
    for task in dict.fromkeys(order):
        visits, size = order.count(task), sizes.get(task, 0)
        if size < visits:
            raise ValueError(f"{task} has {size} training rows, and {visits} visits need at least one each.")
        rows = _shuffled(range(size), run_seed, task, "visits")
        dealt[task] = iter([rows[visit::visits] for visit in range(visits)])
    return [Stage(task, {task: tuple(sorted(next(dealt[task])))}) for task in order]


def blurry(sizes: Mapping[str, int], order: Sequence[str], share: float, run_seed: int) -> list[Stage]:
    """Every task has one stage, and a ``share`` of its rows is dealt to the stages of the others, as evenly as can be.

    Every row is trained on once. This is i-Blurry (Koh et al., ICLR 2022) with no disjoint tasks.

    Args:
        sizes: training rows of each task.
        order: the tasks, each once.
        share: of a task's rows that other stages get, rounded to whole rows; 0 gives the plain order.
        run_seed: the run's seed.

    Raises:
        ConfigError: ``share`` is not between 0 and 1.
        ValueError: a task of ``order`` is there twice, or has no size.
    """
    within("share", share, 0, 1)
    if len(set(order)) < len(order):
        raise ValueError("every task has one stage; order names one of them twice.")
    absent = [task for task in order if task not in sizes]
    if absent:
        raise ValueError(f"{absent[0]} has no size.")
    stages: dict[str, dict[str, tuple[int, ...]]] = {task: {} for task in order}
    for task in order:
        others = _shuffled([name for name in order if name != task], run_seed, task, "stages")
        rows = _shuffled(range(sizes[task]), run_seed, task, "blurry")
        away = round(share * len(rows)) if others else 0
        for number, other in enumerate(others):
            if dealt := rows[:away][number :: len(others)]:
                stages[other][task] = tuple(sorted(dealt))
        stages[task][task] = tuple(sorted(rows[away:]))
    return [Stage(task, rows) for task, rows in stages.items()]


def _shuffled(items: Sequence[T], run_seed: int, task: str, purpose: str) -> list[T]:
    return random.Random(seed(run_seed, task, purpose)).sample(list(items), len(items))
