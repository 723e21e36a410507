"""SEE with a task that comes back: the expert that accepts and answers it is reused, and everything says so."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from see_lightning import load_ensemble
from see_lightning.cli import calibrate, study
from see_lightning.config.effects import check_effects
from see_lightning.config.identity import run_key
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError, Refusal
from see_lightning.methods.reuse import LOOKED_AT
from see_lightning.routing.walk import log_odds
from see_lightning.tasks.task import Task
from tests.runs import toy

ON = "method.reuse=accept"
LEARNED = ("optim.epochs=20",)  # with fewer, experts of so few rows answer nothing
IN_ORDER = "order.tasks=[sky,ice,dew,sea]"
EXPERTS = {"sky": "sky", "ice": "ice", "dew": "ice", "sea": "sea"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The toy's data, and dew, which is ice with other numbers."""
    folder = toy.write_tasks(tmp_path_factory.mktemp("reuse") / "data")
    for half, numbers in (("train", range(300, 308)), ("test", range(400, 404))):
        rows = [{"prompt": f"iceice{number}?", "answer": "zz"} for number in numbers]
        (folder / f"dew.{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def whole(data):
    """An undisturbed run."""
    return toy.run(toy.compose(data, data.parent / "whole", *LEARNED, IN_ORDER, ON))


def test_a_task_that_comes_back_is_not_trained_and_another_one_is(whole):
    assert whole.fits == 3
    (method,) = whole.methods
    assert method.pool.names == ["sky", "ice", "sea"]
    results = toy.read_results(whole.directory)
    assert results["given"] == EXPERTS
    assert results["expanded"] == [True, True, False, True]
    assert [steps > 0 for steps in results["counts"]["steps"]] == [True, True, False, True]
    one, *more = results["storage"]["weights"]
    assert more == [2 * one, 2 * one, 3 * one]
    assert results["storage"]["state"] == [8, 16, 16, 24], "one number for each expert"


def test_the_results_tell_what_was_found_and_what_it_cost(whole):
    results = toy.read_results(whole.directory)
    report = results["method_report"]
    assert report["reuse_rows"] == [0, 12, 8, 8]
    assert max(report["reuse_rows"]) <= LOOKED_AT
    assert [list(shares) for shares in report["reuse_accepted"]] == [[], ["sky"], ["sky", "ice"], ["sky", "ice"]]
    assert report["reuse_accepted"][2]["ice"] >= 0.9
    assert report["reuse_gain"][2]["ice"] >= 0.5
    for shares, gains in zip(report["reuse_accepted"], report["reuse_gain"], strict=True):
        assert [*gains] == [name for name, share in shares.items() if share >= 0.9], "only they are asked for losses"
    first, *tokens = results["counts"]["method_tokens"]["assign"]
    assert first == 0 < min(tokens)
    assert "dew has no expert of its own: that of ice explains it." in results["notices"]


def test_its_queries_count_as_routed_right_with_the_expert_that_it_got(whole):
    *_, last = toy.read_answers(whole.directory).values()
    routing = toy.read_results(whole.directory)["routing"]
    assert routing["accuracy"] == sum(EXPERTS[one["task"]] == one["expert"] for one in last) / len(last)
    assert {one["text"] for one in last if one["task"] == "dew" and one["expert"] == "ice"} == {"zz"}
    assert not any("dew" in line and "takes" in line for line in toy.read_results(whole.directory)["notices"])
    folder = whole.directory / "tasks" / "03-dew"
    assert (folder / "examples.jsonl").read_bytes() == b""
    assert {path.name for path in (folder / "expert").iterdir()} == {"expert.json", "given.json"}


def test_a_run_interrupted_after_every_commit_ends_the_same(data, whole, tmp_path):
    resumed, interruptions = toy.broken_off(toy.compose(data, tmp_path, *LEARNED, IN_ORDER, ON))
    assert interruptions > 4
    assert toy.kept(resumed.directory) == toy.kept(whole.directory)


def test_a_run_grows_behind_a_reused_task_and_a_loaded_one_answers(data, whole, tmp_path):
    shorter = toy.run(toy.compose(data, tmp_path, *LEARNED, "order.tasks=[sky,ice,dew]", ON))
    grown = toy.run(toy.compose(data, tmp_path, *LEARNED, IN_ORDER, ON))
    assert (shorter.fits, grown.fits) == (2, 1)
    assert toy.kept(grown.directory) == toy.kept(whole.directory)
    (reply,) = load_ensemble(shorter.directory, max_new_tokens=4).answer(["iceice401?"])
    assert (reply.expert, reply.text) == ("ice", "zz")


def test_with_a_higher_bar_the_task_is_trained(data, whole, tmp_path):
    run = toy.run(toy.compose(data, tmp_path, *LEARNED, "order.tasks=[sky,ice,dew]", ON, "method.reuse_gain=1.5"))
    results, before = (toy.read_results(one.directory)["method_report"] for one in (run, whole))
    assert run.fits == 3
    assert toy.read_results(run.directory)["given"]["dew"] == "dew"
    assert results["reuse_gain"][2] == before["reuse_gain"][2]


def test_an_expert_accepts_as_its_verdicts_and_its_threshold_say(data, whole):
    method = load_ensemble(whole.directory, max_new_tokens=4).method
    rows = [json.loads(line) for line in (data / "dew.train.jsonl").read_text().splitlines()]
    task = Task("new", tuple(Example(row["prompt"], row["prompt"], row["answer"], "new") for row in rows), (), "", 4)
    prompts = [method.template.prompt_ids(row["prompt"]) for row in rows]
    with torch.no_grad():
        odds = sorted(one for (one,) in log_odds(method, prompts, [["ice"]] * len(prompts)))
        for threshold in (odds[0], odds[2], odds[-1], odds[-1] + 1):
            method.thresholds = {"ice": threshold}
            share = sum(one >= threshold for one in odds) / len(odds)
            assert method.assign(task).expert == ("ice" if share >= 0.9 else "new")
            assert method.report()["reuse_accepted"] == {"sky": 0.0, "ice": share, "sea": 0.0}


def test_off_is_the_default_and_moves_no_key_and_no_number(data, tmp_path):
    keys = [
        run_key(toy.compose(data, tmp_path, *some))
        for some in ((), ("method.reuse=off",), ("method.reuse_share=0.5",), (ON,), (ON, "method.reuse_share=0.5"))
    ]
    assert keys[0] == keys[1] == keys[2]
    assert len({*keys}) == 3
    plain = toy.run(toy.compose(data, tmp_path, "order.tasks=[ice,dew]"))
    assert plain.fits == 2
    assert not {"given", "expanded", "z", "method_report"} & toy.read_results(plain.directory).keys()
    weights = [
        load_file(directory / "tasks" / "01-ice" / "expert" / "adapter_model.safetensors")
        for directory in (plain.directory, toy.run(toy.compose(data, tmp_path, "order.tasks=[ice,dew]", ON)).directory)
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_thresholds_that_decide_are_no_settings_to_try_afterwards(data, whole, tmp_path):
    shutil.copytree(data.parent / "whole", tmp_path, dirs_exist_ok=True)
    other = toy.run(
        toy.compose(data, tmp_path, *LEARNED, IN_ORDER, ON, "method.calibrate_on=train", "method.ood_examples=9")
    )
    assert other.fits >= 3, "the experts are not taken over"
    found = toy.run(toy.compose(data, tmp_path, *LEARNED, IN_ORDER, ON, "method.second_chance=on"))
    assert found.fits == 0
    assert toy.read_results(found.directory)["given"] == EXPERTS
    with pytest.raises(ConfigError, match="so other thresholds need another training"):
        calibrate.calibrate(whole.directory, on="train", target_recall=0.9)
    with pytest.raises(Refusal, match="trained no expert for dew"):
        study.run_study(whole.directory, None, ["newest"])


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["method.reuse=yes"], "method.reuse must be one of off, accept"),
        ([ON, "method.reuse_share=1.5"], "method.reuse_share must be between 0 and 1"),
        ([ON, "method.reuse_gain=-1"], "method.reuse_gain must be at least 0"),
    ],
)
def test_an_unusable_setting_is_refused(data, tmp_path, typed, told):
    with pytest.raises(ConfigError, match=told):
        toy.run(toy.compose(data, tmp_path, *typed))


def test_bars_without_reuse_are_refused_where_they_are_typed(data, tmp_path):
    for setting in ("method.reuse_share=0.8", "method.reuse_gain=0.8"):
        with pytest.raises(ConfigError, match="has no effect here: a new expert is trained for every task"):
            check_effects(toy.compose(data, tmp_path, setting), [setting], several=False)
        assert check_effects(toy.compose(data, tmp_path, setting, ON), [setting, ON], several=False)[1] == []
