"""Guaranteed thresholds against exact sums, and against draws whose distribution is known."""

import random
from fractions import Fraction
from math import comb

import pytest

from see_lightning.routing.guarantee import binomial_cdf, guaranteed_threshold


def guaranteed_recall(values: int, misses: int, confidence: float) -> float:
    """The lower bound of Clopper and Pearson for the share that reaches a threshold, found by bisection.

    Args:
        values: number of independent draws.
        misses: number of them below the threshold.
        confidence: of the bound.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if binomial_cdf(misses, values, 1 - middle) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


@pytest.mark.parametrize("trials", [1, 7, 30])
@pytest.mark.parametrize("rate", [Fraction(1, 20), Fraction(1, 3), Fraction(1)])
def test_the_distribution_is_the_exact_sum(trials, rate):
    for successes in range(trials + 1):
        exact = sum(comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(successes + 1))
        assert binomial_cdf(successes, trials, float(rate)) == pytest.approx(float(exact), abs=1e-12)


@pytest.mark.parametrize(("trials", "rate"), [(4000, 0.05), (1100, 0.5), (20_000, 0.05)])
def test_thousands_of_trials_do_not_overflow(trials, rate):
    few = int(trials * rate - 1.645 * (trials * rate * (1 - rate)) ** 0.5)  # where a normal variable has 5 % below it
    assert binomial_cdf(few, trials, rate) == pytest.approx(0.05, abs=0.005)
    assert guaranteed_threshold(range(trials), 1 - rate, 0.95) == pytest.approx(few, abs=2)


@pytest.mark.parametrize(("number", "recall"), [(59, 0.95), (60, 0.8), (200, 0.9), (58, 0.95)])
def test_the_threshold_is_the_largest_whose_bound_is_high_enough(number, recall):
    values = random.Random(number).sample(range(1000), number)
    enough = [value for misses, value in enumerate(sorted(values)) if guaranteed_recall(number, misses, 0.95) >= recall]
    assert guaranteed_threshold(values, recall, 0.95) == (max(enough) if enough else min(values))
    assert bool(enough) == (number != 58), "59 rows without a miss are the fewest that show 95 %"


def test_the_share_that_reaches_it_is_as_large_as_stated_in_most_draws():
    """Of uniform draws on 0..1 the share 1 - x reaches x."""
    order, kept = random.Random(0), 0
    for _ in range(2000):
        kept += 1 - guaranteed_threshold([order.random() for _ in range(40)], 0.9, 0.95) >= 0.9
    assert kept / 2000 >= 0.94
