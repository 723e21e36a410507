"""The paired bootstrap against brute force, and against what is known of a normal mean."""

import numpy as np
import pytest

from see_lightning.evaluation.bootstrap import Interval, paired_bootstrap


def test_the_interval_is_that_of_plain_loops():
    random = np.random.default_rng(5)
    first = [{task: list(random.uniform(0, 100, size)) for task, size in (("qa", 7), ("sum", 4))} for _ in range(3)]
    second = [{task: list(random.uniform(0, 100, len(values))) for task, values in run.items()} for run in first]
    found = paired_bootstrap(first, second, draws=4000)
    means = []
    other = np.random.default_rng(17)
    for _ in range(4000):
        seeds = other.integers(3, size=3)
        total = 0.0
        for task, size in (("qa", 7), ("sum", 4)):
            queries = other.integers(size, size=size)
            total += np.mean([first[s][task][q] - second[s][task][q] for s in seeds for q in queries])
        means.append(total / 2)
    low, high = np.percentile(means, [2.5, 97.5])
    exact = np.mean([np.mean([np.mean(np.subtract(a[task], b[task])) for a, b in zip(first, second, strict=True)])
                     for task in ("qa", "sum")])  # fmt: skip
    assert found.mean == pytest.approx(exact)
    spread = np.std(means)
    assert found.low == pytest.approx(low, abs=spread / 8)
    assert found.high == pytest.approx(high, abs=spread / 8)


def test_of_many_queries_it_is_the_normal_interval():
    values = np.random.default_rng(1).normal(50, 10, 400)
    found = paired_bootstrap([{"qa": values.tolist()}])
    reach = 1.96 * values.std() / np.sqrt(400)
    assert (found.low, found.high) == (
        pytest.approx(values.mean() - reach, abs=0.05),
        pytest.approx(values.mean() + reach, abs=0.05),
    )


def test_pairs_take_away_what_is_hard_for_both():
    hard = np.random.default_rng(2).uniform(0, 90, 50)
    one, two = [{"qa": (hard + 5).tolist()}], [{"qa": hard.tolist()}]
    assert paired_bootstrap(one, two) == Interval(pytest.approx(5), pytest.approx(5), pytest.approx(5))
    assert not paired_bootstrap(one, two).is_noise
    assert paired_bootstrap(one, [{"qa": (hard[::-1] + 5).tolist()}]).is_noise


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([], None),
        ([{"a": [1.0]}], [{"b": [1.0]}]),
        ([{"a": [1.0]}], [{"a": [1.0, 2.0]}]),
        ([{"a": [1.0]}], [{"a": [1.0]}] * 2),
    ],
)
def test_sides_that_do_not_fit_are_refused(first, second):
    with pytest.raises(ValueError, match="the same seeds, tasks and queries"):
        paired_bootstrap(first, second)
