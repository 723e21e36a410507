"""Static ConPET: experience replay whose cost does not grow with the number of tasks (Song et al., arXiv 2309.14763).

PAPERS.md lists where this differs from the authors' code.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

from see_lightning.config.checks import check_ratio, within
from see_lightning.data.example import Example
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.seeds import seed
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

T = TypeVar("T")


def drawn(stored: Sequence[Sequence[T]], size: int, draw: int) -> list[T]:
    r"""Stored rows, each drawn by itself: a past task at random, then one of its rows, so a row may come twice.

    A row of task $i$ is expected $\frac{size}{t \, n_i}$ times with $t$ tasks of $n_i$ stored rows: tasks weigh the same,
    whatever their sizes.

    Args:
        stored: rows of each past task, at least one each.
        size: rows to draw; none if nothing is stored.
        draw: seed.

    >>> drawn([["a"], ["b"]], 4, draw=0), drawn([], 4, draw=0)
    (['b', 'a', 'b', 'b'], [])
    """
    numbers = random.Random(draw)
    return [numbers.choice(numbers.choice(stored)) for _ in range(size if stored else 0)]


class ConPet(OneAdapterMethod):
    """One adapter, trained on the new task and on a number of past rows that depends on the new task's size alone.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of each past task's examples that is stored, 0..1.
        resample: ``per_task`` stores others for every task, ``once`` the same ones for all.
        old_per_new: past rows for each new row, at least 0. They are drawn from the stored ones, see ``drawn``.
    """

    def __init__(self, setup: Setup, *, ratio: float, resample: str, old_per_new: float) -> None:
        super().__init__(setup)
        check_ratio("method.ratio", ratio)
        within("method.old_per_new", old_per_new, 0)
        self.ratio, self.resample, self.old_per_new = ratio, resample, old_per_new

    def training_examples(self, task: Task, memory: Memory) -> list[Example]:
        """All rows of the new task, and past ones in proportion to them."""
        kept = memory.rehearse(task, ratio=self.ratio, resample=self.resample)
        by_task = [[row for row in kept if row.task == past.name] for past in memory.past]
        size = round(self.old_per_new * len(task.train))
        return [*task.train, *drawn([rows for rows in by_task if rows], size, seed(self.run_seed, task.name, "ConPET"))]
