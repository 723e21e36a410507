"""Rehearsal: the examples of past tasks that are part of a later task's training."""

import random
from collections.abc import Sequence

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


def even_level(wanted: Sequence[int], most: int) -> int:
    """The largest number that every task can have, or all that is wanted of it, with at most ``most`` in all.

    >>> even_level([12, 12, 3], 20), even_level([12, 12, 3], 2), even_level([12, 12, 3], 99)
    (8, 0, 12)
    """
    level = 0
    while level < max(wanted, default=0) and sum(min(number, level + 1) for number in wanted) <= most:
        level += 1
    return level


def even_shares(wanted: Sequence[int], most: int, draw: int) -> list[int]:
    """The number of examples of each task if there may be at most ``most`` in all: as even as possible.

    Every task gets one before any gets a second one, up to what is wanted of it. A draw chooses the tasks that get one more
    where the rest is too small for all; with more tasks than ``most`` these are the only tasks that get any. With the same
    draw, a further task takes examples from the others and gives them none.

    Args:
        wanted: number of examples of each task without the limit.
        most: of all tasks together.
        draw: seed of the choice.

    >>> even_shares([12, 12, 3], 20, draw=0), even_shares([12, 12, 3], 99, draw=0)
    ([8, 9, 3], [12, 12, 3])
    """
    level = even_level(wanted, most)
    shares = [min(number, level) for number in wanted]
    numbers = random.Random(draw)
    ranks = [numbers.random() for _ in wanted]  # further tasks at the end leave the order of the first ones
    more = sorted((place for place, number in enumerate(wanted) if number > level), key=ranks.__getitem__)
    for place in more[: most - sum(shares)]:
        shares[place] += 1
    return shares


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

    def rehearse(
        self, task: Task, *, ratio: float, resample: str, at_least: int = 0, at_most: int = 0
    ) -> list[Example]:
        """The past examples for a task's training: ``num_rehearsed(ratio, n, at_least)`` of each, oldest task first.

        Args:
            task: the task that is trained.
            ratio: share of each past task's training examples, 0..1.
            resample: ``per_task`` draws other examples for each later task; ``once`` the same ones for all, as a buffer that
                keeps only these would.
            at_least: least number of examples of each past task, if it has so many.
            at_most: most examples of all past tasks together, shared as by ``even_shares``; 0 is no limit. It comes before
                ``at_least``.
        """
        one_of("method.resample", resample, RESAMPLE)
        learner = "all" if resample == "once" else task.name
        wanted = [num_rehearsed(ratio, len(past.train), at_least) for past in self.past]
        shares = even_shares(wanted, at_most, seed(self.run_seed, learner, "shares")) if at_most else wanted
        # A share is the beginning of what is drawn without the limit, so a fixed buffer only loses rows as tasks come.
        return [
            example
            for past, number, share in zip(self.past, wanted, shares, strict=True)
            for example in self._drawn(past, number, learner)[:share]
        ]

    def _drawn(self, past: Task, size: int, learner: str) -> list[Example]:
        draw = seed(self.run_seed, past.name, f"rehearsal for {learner}")
        return random.Random(draw).sample(list(past.train), size)
