"""The results matrix keeps what was measured and nothing else."""

import json
import math
import random

import pytest

from see_lightning.evaluation.matrix import ResultsMatrix


def random_matrix(tasks: list[str], draw: random.Random) -> ResultsMatrix:
    matrix = ResultsMatrix(tasks)
    for after in range(1, len(tasks) + 1):
        for task in tasks:
            if draw.random() < 0.6:
                matrix.set(after, task, draw.uniform(0, 100))
    return matrix


def test_a_score_stands_in_the_row_of_its_stage_and_the_column_of_its_task():
    matrix = ResultsMatrix(["qa", "qg", "sa"])
    matrix.set(2, "sa", 12.5)
    matrix.set(2, "qa", 0)
    assert matrix.to_list()[1][2] == 12.5
    assert matrix.row(2) == {"qa": 0.0, "sa": 12.5}
    assert matrix.row(1) == {}
    assert sum(row.count(None) for row in matrix.to_list()) == 7


def test_a_matrix_survives_json_exactly():
    draw = random.Random(0)
    for size in (1, 2, 5, 10):
        tasks = [f"task, no. {i}" for i in range(size)]
        matrix = random_matrix(tasks, draw)
        again = ResultsMatrix.from_list(tasks, json.loads(json.dumps(matrix.to_list())))
        assert again.to_list() == matrix.to_list()


@pytest.mark.parametrize("score", [-0.1, 100.1, math.nan, math.inf])
def test_a_score_outside_0_to_100_is_refused(score):
    with pytest.raises(ValueError, match=r"0\.\.100.*'qa' after 1"):
        ResultsMatrix(["qa"]).set(1, "qa", score)


@pytest.mark.parametrize("after", [0, 3, -1])
def test_a_stage_that_does_not_exist_is_refused(after):
    with pytest.raises(ValueError, match=rf"1\.\.2; got {after}"):
        ResultsMatrix(["qa", "qg"]).set(after, "qa", 50)
    with pytest.raises(ValueError, match=rf"1\.\.2; got {after}"):
        ResultsMatrix(["qa", "qg"]).row(after)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"no task 'sum'.*qa, qg"):
        ResultsMatrix(["qa", "qg"]).set(1, "sum", 50)


@pytest.mark.parametrize("rows", [[[1.0, 2.0]], [[1.0], [2.0]], [[1.0, 2.0], [3.0]]])
def test_rows_of_another_shape_are_refused(rows):
    with pytest.raises(ValueError, match="2 rows of 2 scores"):
        ResultsMatrix.from_list(["qa", "qg"], rows)


@pytest.mark.parametrize("tasks", [[], ["qa", "qa"]])
def test_tasks_must_exist_and_differ(tasks):
    with pytest.raises(ValueError, match="different name"):
        ResultsMatrix(tasks)
