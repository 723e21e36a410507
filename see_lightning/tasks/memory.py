"""Rehearsal: the examples of past tasks that are part of a later task's training."""

import random

from see_lightning.config.checks import one_of
from see_lightning.config.schema import RESAMPLE
from see_lightning.data.example import Example
from see_lightning.seeds import seed
from see_lightning.tasks.task import Task


def num_rehearsed(ratio: float, size: int, at_least: int = 1) -> int:
    """The number of rehearsed examples: ``ratio`` of ``size``, rounded, at least 1 and ``at_least``; 0 if the ratio is 0.

    >>> [num_rehearsed(0.1, 2000), num_rehearsed(0.01, 20), num_rehearsed(0.0, 20, at_least=12)]
    [200, 1, 0]
    >>> [num_rehearsed(0.1, 200, at_least=12), num_rehearsed(0.1, 40, at_least=12), num_rehearsed(0.1, 8, at_least=12)]
    [20, 12, 8]
    """
    return min(size, max(1, round(ratio * size), at_least)) if ratio > 0 else 0


class Memory:
    """The past tasks of a run, from which examples are drawn.

    Args:
        run_seed: the run's seed.
    """

    def __init__(self, run_seed: int) -> None:
        self.run_seed = run_seed
        self.past: list[Task] = []

    def add(self, task: Task) -> None:
        """Add a task to the past ones."""
        self.past.append(task)

    def rehearse(self, task: Task, *, ratio: float, resample: str, at_least: int = 0) -> list[Example]:
        """The past examples for a task's training: ``num_rehearsed(ratio, n, at_least)`` of each, oldest task first.

        Args:
            task: the task that is trained.
            ratio: share of each past task's training examples, 0..1.
            resample: ``per_task`` draws other examples for each later task; ``once`` the same ones for all, as a buffer that
                keeps only these would.
            at_least: least number of examples of each past task, if it has so many.
        """
        one_of("method.resample", resample, RESAMPLE)
        learner = "all" if resample == "once" else task.name
        return [
            example
            for past in self.past
            for example in self._drawn(past, num_rehearsed(ratio, len(past.train), at_least), learner)
        ]

    def _drawn(self, past: Task, size: int, learner: str) -> list[Example]:
        draw = seed(self.run_seed, past.name, f"rehearsal for {learner}")
        return random.Random(draw).sample(list(past.train), size)
