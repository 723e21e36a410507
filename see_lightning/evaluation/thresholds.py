"""Routing accuracy as a function of the threshold of log-odds, and the default thresholds of a study."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from see_lightning.evaluation.recorded import RecordedDecisions


@dataclass(frozen=True, slots=True)
class Sweep:
    """Routing after the last stage as a function of the threshold.

    The own expert answers a query if the threshold is above the log-odds of all experts before it, and not above its own;
    above the log-odds of all experts the base model answers.

    Args:
        opens: sorted, the thresholds above which a query reaches its own expert, of the queries that it can answer at some
            threshold.
        closes: sorted, the thresholds above which the own expert no longer accepts the query.
        highest: sorted, each query's highest log-odds.
    """

    opens: Sequence[float]
    closes: Sequence[float]
    highest: Sequence[float]

    def accuracy(self, threshold: float) -> float:
        """Share of queries that their own expert answers, 0..1."""
        return (bisect_left(self.opens, threshold) - bisect_left(self.closes, threshold)) / len(self.highest)

    def fallback_rate(self, threshold: float) -> float:
        """Share of queries that the base model answers, 0..1."""
        return bisect_left(self.highest, threshold) / len(self.highest)

    def best(self) -> tuple[float, float, float]:
        """The widest interval of thresholds with the best accuracy: its ends, the lower one excluded; and a value in it."""
        ends = sorted(filter(math.isfinite, {*self.opens, *self.closes, self.highest[-1]}))
        intervals = list(zip([-math.inf, *ends], ends, strict=False))
        low, high = max(intervals, key=lambda interval: (self.accuracy(interval[1]), interval[1] - interval[0]))
        middle = (low + high) / 2 if math.isfinite(low) else math.floor(high)
        return low, high, shortest_between(low, high, middle)


def sweep(recorded: RecordedDecisions, order: Sequence[str]) -> Sweep:
    """Compute the sweep of a run.

    Args:
        recorded: verdicts and log-odds of the run.
        order: all experts in the order of routing.
    """
    reached = []
    for number, (task, _) in enumerate(recorded.queries):
        before = [recorded.log_odds[expert][number] for expert in order[: order.index(task)]]
        reached.append((max(before, default=-math.inf), recorded.log_odds[task][number]))
    possible = [(before, own) for before, own in reached if before < own]
    return Sweep(
        sorted(before for before, _ in possible),
        sorted(own for _, own in possible),
        sorted(max(values) for values in zip(*recorded.log_odds.values(), strict=True)),
    )


def shortest_between(low: float, high: float, near: float) -> float:
    """The number with the fewest decimals above `low` and not above `high`, found by rounding `near`, which lies there.

    >>> shortest_between(0.24, 0.33, 0.285), shortest_between(-7.2, 3.1, -2.05)
    (0.3, -2.0)
    """
    rounded = (round(near, digits) + 0.0 for digits in range(17))  # adding 0 makes 0 of -0
    return next((value for value in rounded if low < value <= high), high)


def own_and_other(recorded: RecordedDecisions, experts: Iterable[str]) -> tuple[list[float], list[float]]:
    """Sorted log-odds of experts on queries of their own task, and on all others."""
    own: list[float] = []
    other: list[float] = []
    for expert in experts:
        for (task, _), value in zip(recorded.queries, recorded.log_odds[expert], strict=True):
            (own if task == expert else other).append(value)
    return sorted(own), sorted(other)


def default_thresholds(recorded: RecordedDecisions) -> list[float]:
    """Thresholds for a study: 0, one that 1 % of other tasks' queries reach, and one that 1 % of own queries miss."""
    own, other = own_and_other(recorded, recorded.tasks)
    chosen = {0.0, own[len(own) // 100]} | ({other[-1 - len(other) // 100]} if other else set())
    return sorted({round(value, 2) + 0.0 for value in chosen})
