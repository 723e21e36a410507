"""Continual metrics against their formulas written as loops, with holes in the matrix."""

import math
import random

import pytest
import torch

from see_lightning.evaluation.continual import (
    average,
    backward_transfer,
    continual_metrics,
    forgetting,
    forward_transfer,
)

NAN = math.nan


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else NAN


def naive_forgetting(a: list[list[float]]) -> float:
    last, drops = len(a) - 1, []
    for j in range(last):
        measured = [a[t][j] for t in range(j, last) if not math.isnan(a[t][j])]
        drops.append(max(measured) - a[last][j] if measured else NAN)
    return mean(drops)


NAIVE = {
    average: lambda a: mean(a[-1]),
    forward_transfer: lambda a: mean([a[t - 1][t] for t in range(1, len(a))]),
    backward_transfer: lambda a: mean([a[-1][j] - a[j][j] for j in range(len(a) - 1)]),
    forgetting: naive_forgetting,
}


@pytest.mark.parametrize("metric", NAIVE, ids=lambda metric: metric.__name__)
@pytest.mark.parametrize("holes", [0.0, 0.05, 0.4])
def test_a_metric_is_its_formula(metric, holes):
    draw = random.Random(0)
    for _ in range(200):
        size = draw.randint(1, 7)
        rows = [[NAN if draw.random() < holes else draw.uniform(0, 100) for _ in range(size)] for _ in range(size)]
        matrix_TT = torch.tensor(rows, dtype=torch.float64)
        before = matrix_TT.clone()
        assert metric(matrix_TT).item() == pytest.approx(NAIVE[metric](rows), nan_ok=True)
        assert torch.equal(matrix_TT.nan_to_num(-1), before.nan_to_num(-1))


def test_a_run_of_three_tasks_worked_out_by_hand():
    matrix_TT = torch.tensor([[80.0, 10.0, NAN], [90.0, 60.0, 20.0], [70.0, 65.0, 50.0]], dtype=torch.float64)
    metrics = continual_metrics(matrix_TT)
    assert metrics == pytest.approx({"AR": 185 / 3, "FWT": 15.0, "BWT": -2.5, "forgetting": 7.5})


def test_scores_from_before_a_task_was_learned_are_no_part_of_its_best():
    matrix_TT = torch.tensor([[50.0, 99.0, 99.0], [50.0, 40.0, 99.0], [50.0, 40.0, 10.0]])
    assert forgetting(matrix_TT).item() == 0.0


def test_one_task_has_an_average_only():
    assert continual_metrics(torch.tensor([[42.0]])) == {"AR": 42.0, "FWT": None, "BWT": None, "forgetting": None}


def test_a_run_that_was_tested_only_at_the_end_has_an_average_only():
    matrix_TT = torch.tensor([[NAN, NAN], [40.0, 60.0]])
    assert continual_metrics(matrix_TT) == {"AR": 50.0, "FWT": None, "BWT": None, "forgetting": None}


@pytest.mark.parametrize("shape", [(2, 3), (0, 0), (4,)])
def test_a_matrix_that_is_not_square_is_refused(shape):
    with pytest.raises(ValueError, match="as many rows as columns"):
        continual_metrics(torch.zeros(shape))
