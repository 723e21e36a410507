"""What a run says of the weights it trained, and of the rows of past tasks that it had to store."""

import json

import pytest

from see_lightning.methods.seqft import SeqFt
from tests.runs import toy


def rows_of(directory, stage, past):
    lines = (directory / "tasks" / stage / "examples.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["task"] in past]


def test_the_stored_rows_are_the_different_past_ones_that_a_training_read(base):
    replay = toy.whole(base, "method=replay").directory
    counts = toy.read_results(replay)["counts"]
    assert counts["stored_rows"] == [0, 2, 6], "half of 4, and half of 8"
    past = rows_of(replay, "03-ice", ("sky", "sea"))
    assert counts["stored_bytes"][2] == sum(len(row["prompt"]) + len(row["target"]) for row in past)
    seqft = toy.read_results(toy.whole(base, "method=seqft").directory)["counts"]
    assert seqft["stored_rows"] == seqft["stored_bytes"] == [0, 0, 0]


def test_rows_that_a_method_draws_itself_are_stored_ones_however_often_they_are_drawn(base):
    agem = toy.read_results(toy.whole(base, "method=agem").directory)["counts"]
    replay = toy.read_results(toy.whole(base, "method=replay", "data.resample=once").directory)["counts"]
    assert agem["stored_rows"] == replay["stored_rows"] == [0, 2, 6]
    assert agem["stored_bytes"] == replay["stored_bytes"]
    assert agem["rehearsed"][2] > 6


def test_a_joint_method_has_all_rows_at_hand_and_the_base_model_none(base):
    joint = toy.read_results(toy.whole(base, "method=mtl").directory)["counts"]
    assert joint["stored_rows"] == [sum(toy.TASKS.values())]
    plain = toy.read_results(toy.whole(base, "method=base").directory)["counts"]
    assert plain["stored_rows"] == plain["trained_weights"] == []


@pytest.mark.parametrize("method", ["seqft", "stl"])
def test_the_trained_weights_are_those_of_one_adapter(base, method):
    run = toy.whole(base, f"method={method}")
    results = toy.read_results(run.directory)
    assert results["counts"]["trained_weights"] == [results["storage"]["pool"][0] // 4] * 3, "fp32"


def test_rows_in_a_methods_state_are_stored_ones_without_bytes_beside_it(base, tmp_path, monkeypatch):
    monkeypatch.setattr(SeqFt, "kept_rows", lambda method: 5)
    cfg = toy.compose(toy.data_in(base), tmp_path / "runs", "method=seqft", "order.tasks=[sky]", "optim.epochs=1")
    counts = toy.read_results(toy.run(cfg).directory)["counts"]
    assert (counts["stored_rows"], counts["stored_bytes"]) == ([5], [0])


def test_rows_that_stand_in_a_state_are_counted_there_alone(base):
    results = toy.read_results(toy.whole(base, "method=icl_replay").directory)
    counts = results["counts"]
    assert counts["stored_rows"] == [2, 6, 12], "half of 4, 8 and 12"
    assert counts["stored_bytes"] == counts["trained_weights"] == [0, 0, 0]
    assert results["storage"]["state"][2] > 0
