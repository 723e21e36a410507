"""Protocols against published tables, each paper's formula written as a loop, and numbers worked out by hand."""

import random

import pytest

from see_lightning.config import schema
from see_lightning.evaluation.continual import continual_metrics
from see_lightning.evaluation.last_row import last_row
from see_lightning.evaluation.protocols import PROTOCOLS, summaries

# TRACE (arXiv 2310.06762), LLaMA-2-7B-Chat, order 1: scores after the last task, scores right after learning, OP and BWT.
TRACE = {
    "SeqFT": (
        [45.4, 60.9, 45.7, 51.2, 63.7, 27.2, 54.8, 40.8],
        [50.0, 73.5, 52.3, 58.0, 76.4, 38.3, 58.2, 40.8],
        48.7,
        -8.3,
    ),
    "LoraSeqFT": (
        [27.7, 24.0, 12.1, 0.4, 0.0, 0.0, 0.0, 37.0],
        [51.1, 71.3, 51.0, 57.8, 68.0, 37.0, 48.6, 37.0],
        12.7,
        -45.8,  # printed as −45.7
    ),
    "Replay": (
        [50.0, 80.0, 51.0, 55.0, 78.5, 37.0, 52.0, 40.6],
        [47.1, 73.4, 49.9, 54.3, 76.3, 35.8, 48.6, 40.6],
        55.5,
        2.6,
    ),
}
TRACE_TASKS = ["C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten"]

# O-LoRA's logs, T5-large, order 1: exact match after the last task and their average.
OLORA = {
    "seqft": ([79.53, 52.67, 48.84, 90.03], 67.77),
    "seqlora": ([59.05, 39.71, 62.54, 90.20], 62.88),
    "olora": ([97.74, 56.07, 71.04, 88.62], 78.37),
}


def row(matches, sizes):
    return {
        task: {"n": n, "exact_match_olora": match} for task, match, n in zip(TRACE_TASKS, matches, sizes, strict=False)
    }


def run(matrix, **fields):
    return {"tasks": TRACE_TASKS[: len(matrix)], "matrix": matrix, **fields}


@pytest.mark.parametrize("method", TRACE)
def test_op_and_bwt_are_those_that_trace_prints(method):
    final, diagonal, op, bwt = TRACE[method]
    matrix = [[score if t == j else None for j, score in enumerate(diagonal)] for t in range(8)]
    matrix[-1] = final
    metrics = summaries(run(matrix))["trace"]["metrics"]
    assert {name: round(value, 1) for name, value in metrics.items()} == {"OP": op, "BWT": bwt}


def test_with_another_divisor_bwt_is_not_what_trace_prints():
    final, diagonal, _, bwt = TRACE["SeqFT"]
    matrix = [[score if t == j else None for j, score in enumerate(diagonal)] for t in range(8)]
    matrix[-1] = final
    assert round(summaries(run(matrix))["sapt"]["metrics"]["BWT"], 1) == -7.2 != bwt


@pytest.mark.parametrize("method", OLORA)
def test_pooled_exact_match_is_the_printed_average_where_test_sets_are_of_one_size(method):
    matches, average = OLORA[method]
    found = summaries(run([[0.0] * 4] * 4, last_row=row(matches, [7600] * 4)))["olora"]["metrics"]
    assert found["predict_exact_match"] == pytest.approx(found["mean_exact_match"])
    assert found["mean_exact_match"] == pytest.approx(average, abs=0.006)


def test_pooled_exact_match_is_that_of_all_queries_thrown_together():
    right = {"agnews": (7600, 6840), "RTE": (277, 138), "CB": (56, 14), "COPA": (100, 50)}
    answers = [
        {"task": task, "text": "Yes." if number < hits else "no", "target": "yes", "score": 0.0}
        for task, (size, hits) in right.items()
        for number in range(size)
    ]
    results = {
        "tasks": list(right),
        "matrix": [[0.0] * 4] * 4,
        "last_row": last_row(answers, dict.fromkeys(right, "accuracy_trace")),
    }
    found = summaries(results)["olora"]["metrics"]
    assert found["predict_exact_match"] == pytest.approx(100 * (6840 + 138 + 14 + 50) / 8033, abs=1e-3)
    assert found["mean_exact_match"] == pytest.approx((90 + 100 * 138 / 277 + 25 + 50) / 4, abs=1e-3)


def sapt(a):
    """What SAPT's score.py computes, but for its constant; it has 0 where a task was not learned yet."""
    a = [[score if j <= t else 0 for j, score in enumerate(scores)] for t, scores in enumerate(a)]
    count = len(a)
    drops = [max(a[t][j] for t in range(count - 1)) - a[-1][j] for j in range(count - 1)]
    return {
        "AP": sum(a[-1]) / count,
        "F.Ra": sum(drops) / len(drops),
        "FWT + STL": sum(a[j][j] for j in range(count)) / count,
        "BWT": sum(a[-1][j] - a[j][j] for j in range(count)) / count,
    }


def test_sapt_is_what_its_score_py_computes_without_its_constant():
    draw = random.Random(0)
    for _ in range(100):
        size = draw.randint(2, 8)
        matrix = [[draw.uniform(0, 100) for _ in range(size)] for _ in range(size)]
        assert summaries(run(matrix))["sapt"]["metrics"] == pytest.approx(sapt(matrix))


def test_ssr_is_what_results_json_has_always_held():
    matrix = [[80.0, 10.0, None], [90.0, 60.0, 20.0], [70.0, 65.0, 50.0]]
    metrics = continual_metrics(matrix)
    assert summaries(run(matrix))["ssr"] == {"metrics": metrics, "formulas": PROTOCOLS["ssr"]}


def test_what_was_not_measured_is_none():
    found = summaries(run([[None, None], [40.0, 60.0]]))
    assert found["trace"]["metrics"] == {"OP": 50.0, "BWT": None}
    assert found["sapt"]["metrics"] == {"AP": 50.0, "F.Ra": None, "FWT + STL": None, "BWT": None}
    assert found["olora"]["metrics"] == {"predict_exact_match": None, "mean_exact_match": None}


def test_every_protocol_that_can_be_chosen_has_a_formula_for_each_of_its_metrics():
    assert tuple(PROTOCOLS) == schema.PROTOCOLS
    for protocol, found in summaries(run([[50.0]], last_row=row([50.0], [1]))).items():
        assert list(found["metrics"]) == list(found["formulas"]) == list(PROTOCOLS[protocol])


def test_the_last_row_compares_with_the_reference_that_is_matched_best():
    answer = {"task": "fomc", "text": "b.", "target": "A", "references": ["A", "B", "C"], "score": 0.0}
    found = last_row([answer], {"fomc": "accuracy_trace"})["fomc"]
    assert (found["exact_match_olora"], found["strict"], found["normalised"]) == (100.0, 0.0, 100.0)


def test_the_last_row_counts_queries_their_spread_and_their_form():
    texts = ["B", "b.", "A", "B"]
    scores = [100.0, 0.0, 0.0, 100.0]
    answers = [
        *(
            {"task": "fomc", "text": text, "target": "B", "score": score}
            for text, score in zip(texts, scores, strict=True)
        ),
        {"task": "sum", "text": "A short one.", "target": "a short one", "score": 70.0},
    ]
    assert last_row(answers, {"fomc": "accuracy_trace", "sum": "rouge_l"}) == {
        "fomc": {
            "n": 4,
            "scores": [100.0, 0.0, 0.0, 100.0],
            "score": 50.0,
            "stderr": pytest.approx(100 * (1 / 3) ** 0.5 / 2, abs=1e-4),  # sample variance 1/3 of a share of one half
            "exact_match_olora": 75.0,
            "strict": 50.0,
            "normalised": 75.0,
        },
        "sum": {"n": 1, "scores": [70.0], "score": 70.0, "stderr": None, "exact_match_olora": 100.0},
    }
