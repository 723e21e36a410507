"""Continual metrics against their formulas written as loops, with holes in the matrix."""

import random

import pytest

from see_lightning.evaluation.continual import (
    average,
    backward_transfer,
    continual_metrics,
    forgetting,
    forward_transfer,
)


def mean(values):
    return None if not values or None in values else sum(values) / len(values)


def minus(first, second):
    return None if None in (first, second) else first - second


def naive_forgetting(a):
    last, drops = len(a) - 1, []
    for j in range(last):
        measured = [a[t][j] for t in range(j, last) if a[t][j] is not None]
        drops.append(minus(max(measured), a[last][j]) if measured else None)
    return mean(drops)


NAIVE = {
    average: lambda a: mean(a[-1]),
    forward_transfer: lambda a: mean([a[t - 1][t] for t in range(1, len(a))]),
    backward_transfer: lambda a: mean([minus(a[-1][j], a[j][j]) for j in range(len(a) - 1)]),
    forgetting: naive_forgetting,
}


@pytest.mark.parametrize("metric", NAIVE, ids=lambda metric: metric.__name__)
@pytest.mark.parametrize("holes", [0.0, 0.05, 0.4])
def test_a_metric_is_its_formula(metric, holes):
    draw = random.Random(0)
    for _ in range(200):
        size = draw.randint(1, 7)
        rows = [[None if draw.random() < holes else draw.uniform(0, 100) for _ in range(size)] for _ in range(size)]
        assert metric(rows) == pytest.approx(NAIVE[metric](rows))


def test_a_run_of_three_tasks_worked_out_by_hand():
    matrix_TT = [[80.0, 10.0, None], [90.0, 60.0, 20.0], [70.0, 65.0, 50.0]]
    metrics = continual_metrics(matrix_TT)
    assert metrics == pytest.approx({"AR": 185 / 3, "FWT": 15.0, "BWT": -2.5, "forgetting": 7.5})


def test_scores_from_before_a_task_was_learned_are_no_part_of_its_best():
    matrix_TT = [[50.0, 99.0, 99.0], [50.0, 40.0, 99.0], [50.0, 40.0, 10.0]]
    assert forgetting(matrix_TT) == 0.0


def test_one_task_has_an_average_only():
    assert continual_metrics([[42.0]]) == {"AR": 42.0, "FWT": None, "BWT": None, "forgetting": None}


def test_a_run_that_was_tested_only_at_the_end_has_an_average_only():
    matrix_TT = [[None, None], [40.0, 60.0]]
    assert continual_metrics(matrix_TT) == {"AR": 50.0, "FWT": None, "BWT": None, "forgetting": None}


@pytest.mark.parametrize("rows", [[[1.0, 2.0, 3.0]] * 2, [], [[1.0], [1.0, 2.0]]])
def test_a_matrix_that_is_not_square_is_refused(rows):
    with pytest.raises(ValueError, match="as many rows as columns"):
        continual_metrics(rows)
