"""How long answers may become: by which rule, what a long prompt leaves of it, and what of it is told."""

import pytest

from see_lightning.errors import ConfigError
from tests.runs import toy

RULE = ("method=base", "benchmark.default.max_new_tokens=null")  # the toy sets a number for all of its tasks


def run(base, tmp_path, *overrides):
    directory = toy.run(toy.compose(toy.data_in(base), tmp_path, *RULE, *overrides)).directory
    (answers, *_) = toy.read_answers(directory).values()
    return toy.read_results(directory), answers


def test_results_say_the_rule_the_tokens_and_how_many_answers_were_cut(base, tmp_path):
    results, answers = run(base, tmp_path, "benchmark.max_new_tokens=2", "+benchmark.tasks.sea.max_new_tokens=training")
    cut = {task: sum(a["truncated"] for a in answers if a["task"] == task) for task in toy.TASKS}
    assert sum(cut.values()) > 0
    assert results["lengths"] == {
        "sky": {"rule": "number", "max_new_tokens": 2, "cut": cut["sky"]},
        "sea": {"rule": "training", "max_new_tokens": 8, "cut": cut["sea"]},
        "ice": {"rule": "number", "max_new_tokens": 2, "cut": cut["ice"]},
    }


def test_a_reference_longer_than_that_is_told_before_anything_is_asked(base, tmp_path, capsys):
    results, _ = run(base, tmp_path, "benchmark.max_new_tokens=1")
    told = "sea: 4 of 4 test references are longer than the 1 tokens that an answer may have, the longest has 2"
    assert any(notice.startswith(told) for notice in results["notices"])
    assert capsys.readouterr().err.index(told) < 500


def test_where_a_prompt_leaves_less_room_less_is_generated(base, tmp_path):
    results, answers = run(base, tmp_path, "benchmark.max_new_tokens=300", "model.max_length=30")
    room = 30 - len("<skysky100?") - len("++>")  # a token a letter, one that begins and one that ends
    assert results["counts"]["new_tokens"] == room * len(answers)
    assert all(answer["truncated"] for answer in answers)
    assert {facts["max_new_tokens"] for facts in results["lengths"].values()} == {300}
    assert sum("leave room for fewer than the 300 tokens" in notice for notice in results["notices"]) == len(toy.TASKS)


def test_a_benchmark_without_a_protocol_has_none_to_go_by(base, tmp_path):
    with pytest.raises(ConfigError, match="benchmark jsonl has no published protocol; use training, or a number"):
        run(base, tmp_path, "benchmark.max_new_tokens=protocol")
