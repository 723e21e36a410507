"""Experts with thresholds, in whole runs: set on what they have not seen, kept with them, and used wherever they answer."""

import json
from dataclasses import replace

import pytest
import torch

from see_lightning.data.general import instruction_of
from see_lightning.engine.ensemble import load_ensemble
from see_lightning.engine.ledger import Ledger
from see_lightning.errors import ConfigError
from see_lightning.evaluation.recorded import gather
from see_lightning.methods.method import Method
from see_lightning.methods.see import See
from see_lightning.routing.indicator_trie import IndicatorTrie
from see_lightning.routing.sequential_router import SequentialRouter
from see_lightning.routing.verdicts import lowered_by_margin, threshold_at_recall
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.datamodule import query_batch
from see_lightning.tasks.negatives import unseen_general
from tests.nightly import all_but
from tests.runs import toy

CALIBRATED = (
    "train_size=2",
    "method.calibrate_on=2",
    "method.target_recall=0.5",
    "model.dtype=fp32",
    "optim.epochs=25",
)
KINDS = [(), toy.ACTIVATED]


def only_decided(prompts: list[str], method: Method) -> Queries:
    """Queries that experts only decide on."""
    return replace(query_batch(prompts, method.template, max_new_tokens=1), only_decide=True)


def own_log_odds(router: SequentialRouter, task: str) -> list[float]:
    """Each query's log-odds under one expert."""
    return [found for (found,) in router.log_odds([[task]] * len(router.queries))]


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
        queries = only_decided(unseen, method)
        words = IndicatorTrie(method.indicators, method.template)
        with torch.inference_mode():
            router = SequentialRouter(method.pool, words, queries, method.eos_ids(), method.counts, None)
            log_odds = own_log_odds(router, task)
        threshold = thresholds[task]
        assert any(threshold == pytest.approx(one, abs=2e-3) for one in log_odds), "one of the held-out ones'"
        if len(unseen) == 2:
            assert threshold == pytest.approx(threshold_at_recall(log_odds, 0.5), abs=2e-3)
        path = run.directory / "tasks" / f"0{list(toy.TASKS).index(task) + 1}-{task}" / "expert" / "threshold.json"
        assert json.loads(path.read_text()) == {"log_odds": threshold}


@pytest.mark.parametrize("kind", all_but([()], KINDS), ids=["ordinary", "activated"])
def test_a_threshold_that_also_looks_at_general_instructions_lies_between(base, kind):
    settings = ("method.general_negatives=2", "method.ood_examples=3", "method.margin=0.5")
    run = toy.whole(base, *kind, *CALIBRATED, *settings)
    (method,) = run.methods
    method.eval()
    trained = {id_ for step in run.steps for id_ in step}
    thresholds = toy.read_results(run.directory)["routing"]["thresholds"]
    moved = 0
    for task in toy.TASKS:
        rows = [json.loads(line) for line in (toy.data_in(base) / f"{task}.train.jsonl").read_text().splitlines()]
        # The rows to be held out are drawn; of four rows they are the two that nobody was trained on.
        own = [row["prompt"] for n, row in enumerate(rows, start=1) if f"{task}-train-{n}" not in trained]
        a, b, c = unseen_general(3, "built_in", seed(3, task, "general negatives"), refused=2)
        words = IndicatorTrie(method.indicators, method.template)
        log_odds = []
        for prompts in (own, [a.prompt, b.prompt, c.prompt]):
            queries = only_decided(prompts, method)
            with torch.inference_mode():
                router = SequentialRouter(method.pool, words, queries, method.eos_ids(), method.counts, None)
                log_odds.append(own_log_odds(router, task))
        possible = [lowered_by_margin(one, log_odds[1], 0.5) for one in log_odds[0]]
        assert any(thresholds[task] == pytest.approx(one, abs=3e-3) for one in possible)
        moved += not any(thresholds[task] == pytest.approx(one, abs=3e-3) for one in log_odds[0])
    assert moved, "general instructions made no difference"


def test_general_instructions_that_a_threshold_looks_at_are_none_that_an_expert_refused(base, tmp_path, monkeypatch):
    trained, looked_at = set(), set()
    learn, look = See.training_examples, See._unseen_general

    def note(found, examples):
        found |= {instruction_of(example.prompt) for example in examples if example.task == "general"}
        return examples

    monkeypatch.setattr(See, "training_examples", lambda *given: note(trained, learn(*given)))
    monkeypatch.setattr(See, "_unseen_general", lambda *given: note(looked_at, look(*given)))
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Do {n // 2}.\n\nWith {n}."}) + "\n" for n in range(20)))
    settings = ("method.general_negatives=4", "method.other_instructions=3", "method.ood_examples=5", "optim.epochs=1")
    for place, more in enumerate(((), (f"method.general_source={path}",))):
        toy.run(toy.compose(toy.data_in(base), tmp_path / str(place), *CALIBRATED, *settings, *more))
        assert len(trained) > 5
        assert len(looked_at) >= 4
        assert not trained & looked_at


@pytest.mark.parametrize("kind", all_but([()], KINDS), ids=["ordinary", "activated"])
def test_a_threshold_by_training_rows_lies_between_them_and_what_was_refused_and_costs_no_row(base, kind):
    plain = toy.whole(base, *kind, "model.dtype=fp32", "optim.epochs=25")
    run = toy.whole(
        base, *kind, "model.dtype=fp32", "optim.epochs=25", "method.calibrate_on=train", "method.margin=0.5"
    )
    assert run.steps == plain.steps, "trained on other rows"
    (method,) = run.methods
    method.eval()
    thresholds = toy.read_results(run.directory)["routing"]["thresholds"]
    assert list(thresholds) == list(toy.TASKS)[1:], "the first expert has refused nothing"
    for number, task in enumerate(thresholds, start=2):
        learned = run.directory / "tasks" / f"0{number}-{task}" / "examples.jsonl"
        rows = [json.loads(line) for line in learned.read_text().splitlines()]
        log_odds = []
        for word in ("++", "--"):
            prompts = [row["prompt"] for row in rows if row["target"].startswith(word)]
            queries = only_decided(prompts, method)
            words = IndicatorTrie(method.indicators, method.template)
            with torch.inference_mode():
                router = SequentialRouter(method.pool, words, queries, method.eos_ids(), method.counts, None)
                log_odds.append(own_log_odds(router, task))
        assert thresholds[task] == pytest.approx(
            lowered_by_margin(threshold_at_recall(log_odds[0], 0.98), log_odds[1], 0.5), abs=3e-3
        )


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


def test_a_router_without_thresholds_sets_none_and_the_walk_over_its_experts_sets_its_own(base, tmp_path):
    other = toy.run(toy.compose(toy.data_in(base), tmp_path, *CALIBRATED, "router=centroid"))
    assert toy.read_results(other.directory)["routing"]["thresholds"] == {}
    walk = toy.run(toy.compose(toy.data_in(base), tmp_path, *CALIBRATED))
    assert walk.fits == 0, "the experts are those of the first run"
    thresholds = toy.read_results(toy.whole(base, *CALIBRATED).directory)["routing"]["thresholds"]
    assert toy.read_results(walk.directory)["routing"]["thresholds"] == thresholds
    assert list(thresholds) == list(toy.TASKS)


def test_more_held_out_than_there_is_is_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="4 training rows of sky were to be held out, but it has 4"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, "method.calibrate_on=4"))
    with pytest.raises(ConfigError, match="method.calibrate_on must be a number of rows .* or train; got 'trian'"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, "method.calibrate_on=trian"))
    with pytest.raises(ConfigError, match="method.margin must be between"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, "method.margin=1.5"))
    with pytest.raises(ConfigError, match="method.target_recall must be between"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, "method.target_recall=1.5"))
