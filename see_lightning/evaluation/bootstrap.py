"""Intervals of a mean score and of differences between two methods, by a paired bootstrap over queries and seeds.

Letters: D draws, S seeds, Q queries of a task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Scores of one run's queries by task, in the order of the test split, each in 0..100.
Scores = Mapping[str, Sequence[float]]
DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval.

    Args:
        mean: of all values.
        low: the 2.5th percentile of the draws' means.
        high: the 97.5th.
    """

    mean: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval includes 0."""
        return self.low <= 0 <= self.high


def paired_bootstrap(
    first: Sequence[Scores], second: Sequence[Scores] | None = None, *, draws: int = DRAWS
) -> Interval:
    """The mean over tasks of the first's scores, less that of the second's, with its percentile interval.

    A draw takes as many seeds as there are, and of each task as many queries as it has, both with replacement. It takes the
    same ones of both sides, so that what makes a query hard for both does not count as a difference.

    Args:
        first: the scores of one method, of one run for each seed.
        second: those of another on the same queries, for the same seeds in the same order; None: nothing is taken off.
        draws: number of draws; they are the same in every call.

    Raises:
        ValueError: the sides have other seeds, tasks or numbers of queries.

    >>> paired_bootstrap([{"qa": [50.0, 100.0]}], [{"qa": [40.0, 90.0]}])
    Interval(mean=10.0, low=10.0, high=10.0)
    >>> paired_bootstrap([{"qa": [50.0, 100.0]}]).mean
    75.0
    """
    shapes = [{task: len(values) for task, values in run.items()} for run in (*first, *(second or ()))]
    if not first or any(shape != shapes[0] for shape in shapes) or (second and len(first) != len(second)):
        raise ValueError("a paired bootstrap needs the same seeds, tasks and queries on both sides")
    random = np.random.default_rng(0)
    seeds_DS = random.integers(len(first), size=(draws, len(first)))
    sums_D, mean = np.zeros(draws), 0.0
    for task in first[0]:
        values_SQ = np.array([run[task] for run in first])
        if second:
            values_SQ = values_SQ - np.array([run[task] for run in second])
        queries_DQ = random.integers(values_SQ.shape[1], size=(draws, values_SQ.shape[1]))
        means_SD = np.stack([values_Q[queries_DQ].mean(1) for values_Q in values_SQ])
        sums_D += np.take_along_axis(means_SD.T, seeds_DS, axis=1).mean(1)
        mean += float(values_SQ.mean())
    low, high = np.percentile(sums_D / len(first[0]), [2.5, 97.5])
    return Interval(mean / len(first[0]), float(low), float(high))
