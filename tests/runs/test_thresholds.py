"""Experts with thresholds, in whole runs: set on what they have not seen, kept with them, and used wherever they answer."""

import json

import pytest
import torch

from see_lightning.config import ConfigError
from see_lightning.engine.ensemble import load_ensemble
from see_lightning.engine.ledger import Ledger
from see_lightning.evaluation.study import gather
from see_lightning.experts.hearing import Hearing
from see_lightning.experts.opening import IndicatorTree
from see_lightning.experts.walk import keeping
from see_lightning.methods.method import Method
from see_lightning.tasks.datamodule import query_batch
from tests.runs import toy

CALIBRATED = ("train_size=2", "method.calibrate_on=2", "method.keep=0.5", "model.dtype=fp32", "optim.epochs=25")
KINDS = [(), toy.ACTIVATED]


@pytest.mark.parametrize("kind", KINDS, ids=["ordinary", "activated"])
def test_each_threshold_keeps_the_share_of_examples_that_its_expert_was_not_trained_on(base, kind):
    run = toy.whole(base, *kind, *CALIBRATED)
    (method,) = run.methods
    trained = {id_ for step in run.steps for id_ in step}
    thresholds = toy.read_results(run.directory)["routing"]["thresholds"]
    assert list(thresholds) == list(toy.TASKS)
    method.eval()
    for task in toy.TASKS:
        rows = [json.loads(line) for line in (toy.data_in(base) / f"{task}.train.jsonl").read_text().splitlines()]
        unseen = [row["prompt"] for n, row in enumerate(rows, start=1) if f"{task}-train-{n}" not in trained]
        assert len(unseen) == len(rows) - 2
        queries = query_batch(unseen, method.template, max_new_tokens=1)
        words = IndicatorTree(method.indicators, method.template)
        with torch.inference_mode():
            leanings = Hearing(method.pool, words, queries, method.eos_ids(), method.counts, None).leanings(task)
        threshold = thresholds[task]
        assert any(threshold == pytest.approx(one, abs=2e-3) for one in leanings), "one of the held-out ones'"
        if len(unseen) == 2:
            assert threshold == pytest.approx(keeping(leanings, 0.5), abs=2e-3)
        path = run.directory / "tasks" / f"0{list(toy.TASKS).index(task) + 1}-{task}" / "expert" / "threshold.json"
        assert json.loads(path.read_text()) == {"log_odds": threshold}


@pytest.mark.parametrize("kind", KINDS, ids=["ordinary", "activated"])
def test_an_answer_is_a_yes_that_leans_far_enough(base, kind):
    run = toy.whole(base, *kind, *CALIBRATED)
    results = toy.read_results(run.directory)
    thresholds = results["routing"]["thresholds"]
    heard = {}
    for records in toy.read_answers(run.directory, "remembered").values():
        for record in records:
            if record["expert"] != "base":
                heard[record["expert"], record["task"], record["id"]] = record
    timid = 0
    *_, last = toy.read_answers(run.directory).values()
    for answer in last:
        for expert, verdict in zip(reversed(list(toy.TASKS)), answer["verdicts"], strict=False):
            said = heard[expert, answer["task"], answer["id"]]
            low = said["verdict"] == "pos" and said["log_odds"] < thresholds[expert]
            timid += low
            assert verdict == ("neg" if low else said["verdict"])
    assert timid or kind, "no threshold made a difference"
    said = gather([r for some in toy.read_answers(run.directory, "remembered").values() for r in some], results, last)
    for place, answer in enumerate(last):
        for expert, verdict in zip(reversed(list(toy.TASKS)), answer["verdicts"], strict=False):
            assert said.verdicts[expert][place] == verdict, "a study of the run sees other verdicts"


def test_thresholds_come_back_with_their_experts_and_are_guarded_like_them(base, tmp_path):
    run = toy.whole(base, *CALIBRATED)
    method = load_ensemble(run.directory).method
    assert method.thresholds == toy.read_results(run.directory)["routing"]["thresholds"]
    noted = Ledger(run.directory).read().stage("02-sea")["trained"]["files"]
    assert "expert/threshold.json" in noted


def test_a_run_that_goes_on_uses_the_thresholds_that_were_set_before(base, tmp_path, monkeypatch):
    data, whole = toy.data_in(base), toy.whole(base, *CALIBRATED)
    cfg = toy.compose(data, tmp_path, *CALIBRATED)
    end_task, ended = Method.training_step, []

    def stopped(method, batch, batch_idx):
        ended.append(batch_idx)
        if len(method.pool.names) == 3:
            raise InterruptedError
        return end_task(method, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "training_step", stopped)
        with pytest.raises(InterruptedError):
            toy.run(cfg)
    again = toy.run(cfg)
    assert again.fits == 1
    assert toy.kept(again.directory) == toy.kept(whole.directory)


def test_more_held_out_than_there_is_is_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="4 training rows of sky were to be held out, but it has 4"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, "method.calibrate_on=4"))
    with pytest.raises(ConfigError, match="method.keep must be between"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, "method.keep=1.5"))
