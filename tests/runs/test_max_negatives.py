"""A run with a limit of refusals: results count them by past task and by tokens, and the report tells how they are shared."""

from collections import Counter
from pathlib import Path

import pytest

from see_lightning.reporting.report.page import render_html
from see_lightning.reporting.report.refusals import refusals
from tests.runs import toy


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("limited")
    overrides = ("ratio=1", "data.max_negatives=3", "optim.epochs=2", "test_size=1")
    return toy.run(toy.compose(toy.data_in(base), base / "runs", *overrides)).directory


def test_results_count_the_refusals_of_each_past_task_up_to_the_limit(limited):
    results = toy.read_results(limited)
    refused = results["routing"]["refused"]
    examples = toy.read_answers(limited, "examples")
    for rows, task in zip(examples.values(), results["tasks"], strict=True):
        assert refused[task] == Counter(row["task"] for row in rows if row["task"] != task)
    assert [sum(counts.values()) for counts in refused.values()] == [0, 3, 3]
    assert sorted(refused[results["tasks"][2]].values()) == [1, 2]
    assert results["counts"]["negatives"] == [0, 3, 3]
    assert refusals(results)[-1][1:2] == ["3"]
    assert "Refusals of past tasks" in render_html(results)


def test_results_count_the_tokens_of_all_rows_and_of_those_of_past_tasks(limited):
    results = toy.read_results(limited)
    counts = results["counts"]
    assert counts["past_tokens"][0] == 0
    assert counts["negative_tokens"] == counts["past_tokens"], "no general instruction is refused here"
    for stage in (1, 2):
        rows, past = counts["train_examples"][stage], counts["rehearsed"][stage]
        assert 0 < counts["past_tokens"][stage] < counts["train_tokens"][stage]
        # All prompts of the toy have nearly as many bytes, which are its tokens.
        share = counts["past_tokens"][stage] / counts["train_tokens"][stage]
        assert share == pytest.approx(past / rows, abs=0.15)
        assert counts["past_tokens"][stage] % 2 == 0, "each row is read in both epochs"
