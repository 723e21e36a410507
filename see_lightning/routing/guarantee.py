"""Thresholds that most queries of a task reach, with a stated confidence (Clopper and Pearson, Biometrika 26, 1934)."""

import math
from collections.abc import Sequence


def binomial_cdf(successes: int, trials: int, rate: float) -> float:
    """Probability of at most so many successes in independent trials.

    Args:
        successes: k.
        trials: n.
        rate: probability of a success in one trial, 0..1.

    >>> round(binomial_cdf(1, 2, 0.5), 12)
    0.75
    """
    if not 0 < rate < 1:
        return float(rate <= 0 or successes >= trials)
    yes, no, every = math.log(rate), math.log1p(-rate), math.lgamma(trials + 1)
    return math.fsum(  # of logarithms: the number of choices overflows from about a thousand trials on
        math.exp(every - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * yes + (trials - k) * no)
        for k in range(successes + 1)
    )


def guaranteed_threshold(values: Sequence[float], recall: float, confidence: float) -> float:
    """The largest of the values that a share of all values like them reaches, with a confidence.

    The values are independent draws. If the threshold lies above m of n of them, the lower bound of Clopper and Pearson for
    the share that reaches it is at least the recall where P(Binomial(n, 1 - recall) <= m) <= 1 - confidence. If there are
    too few values for that (without a miss, n must be at least log(1 - confidence) / log(recall)), it is the lowest value.

    Args:
        values: at least one.
        recall: least share that reaches the threshold, above 0 and below 1.
        confidence: probability, over draws of the values, that it does; below 1.

    >>> guaranteed_threshold(range(100), 0.9, 0.95), guaranteed_threshold(range(20), 0.9, 0.95)
    (4, 0)
    """
    lowest = sorted(values)
    misses = -1
    while misses + 1 < len(lowest) and binomial_cdf(misses + 1, len(lowest), 1 - recall) <= 1 - confidence:
        misses += 1
    return lowest[max(misses, 0)]
