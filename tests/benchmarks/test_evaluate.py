"""The evaluation benchmark: its counts against those of a walk on paper."""

import json

import pytest

from benchmarks import evaluate
from see_lightning.errors import ConfigError
from tests.benchmarks import tiny
from tests.nightly import all_but


def record(stage, id_, expert, text="x"):
    return {"stage": stage, "task": "sea", "id": id_, "expert": expert, "text": text}


def test_a_pair_of_query_and_answerer_is_answered_once_in_whatever_stages_it_appears():
    answers = [record("1", "a", "base"), record("2", "a", "sea"), record("3", "a", "sea"), record("3", "b", "sea")]
    assert evaluate.expected_answers(answers) == 3


def test_answers_are_the_same_only_from_the_same_expert_at_the_same_stage():
    ours = [record("1", "a", "base"), record("2", "a", "sea"), record("2", "b", "sea")]
    theirs = [record("1", "a", "sea"), record("2", "a", "sea"), record("2", "b", "sea", text="y")]
    assert evaluate.same_texts(ours, theirs) == 1
    assert evaluate.same_texts(ours, ours) == 3


@pytest.mark.nightly
@pytest.mark.parametrize("adapter", all_but(["activated_lora"], ["lora", "activated_lora"]))
def test_a_run_decides_and_answers_once_and_a_second_evaluation_computes_nothing(adapter, tmp_path, capsys, one_round):
    options = ["--repeats", "1", "--force", "--adapter", adapter]
    settings = [*tiny.settings(tmp_path / "data"), "order.tasks=[sky,sea,ice]"]
    evaluate.main([*options, *settings, f"paths.cache={tmp_path}"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["decisions"] == told["expected_decisions"] == 3 * 6  # three experts, three tasks of two queries
    assert told["answers"] == told["expected_answers"]
    assert told["second_run_answers"] == told["second_run_decisions"] == 0
    assert told["naive_answers"] == 2 * (2 + 3 + 3)  # after each task, the tasks seen and the next one
    assert told["same_answers"] == [16, 16]
    assert told["over_naive"] > 0
    assert told["busy"] is True  # one sample concludes nothing


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no finished run"):
        evaluate.main(["--run", str(tmp_path), "--repeats", "1", "--force"])
