"""``method=merge``: one model of the experts of ``stl``, whatever the rule, and however the run came about."""

import pytest
import torch

from see_lightning.adapters.composites import Dense
from see_lightning.config.search_path import CONF
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.merging.changes import dense, weighted_sum
from see_lightning.methods.loss import answer_loss
from see_lightning.methods.merge import Merge, changes_of
from tests.nightly import all_but
from tests.runs import toy
from tests.runs.test_growing import grown_from

RULES = sorted(path.stem for path in (CONF / "rule").glob("*.yaml"))
LEARNS = ("optim.epochs=25", "model.dtype=fp32")


def merged(base, runs, *settings):
    return toy.run(toy.compose(toy.data_in(base), runs, "method=merge", *LEARNS, *settings))


@pytest.fixture(scope="module")
def shared(base, tmp_path_factory):
    """Where a run of stl lies, and that run."""
    runs = tmp_path_factory.mktemp("merging")
    return runs, toy.run(toy.compose(toy.data_in(base), runs, "method=stl", *LEARNS))


def test_every_rule_merges_the_experts_of_stl_and_trains_none(base, shared):
    runs, stl = shared
    answers = {}
    for rule in RULES:
        run = merged(base, runs, f"rule={rule}")
        results = toy.read_results(run.directory)
        assert run.fits == 0, rule
        assert grown_from(run.directory) == str(stl.directory) or "merge" in grown_from(run.directory)
        assert "routing" not in results
        for stage in ("01-sky", "02-sea", "03-ice"):
            one, other = (
                (place / "tasks" / stage / "expert/adapter_model.safetensors").read_bytes()
                for place in (run.directory, stl.directory)
            )
            assert one == other
        answers[rule] = results["matrix"]
    assert len({str(matrix) for matrix in answers.values()}) > 1


def test_merging_trains_the_same_experts_where_there_is_no_run_of_stl(base, shared, tmp_path):
    run = merged(base, tmp_path, "rule=opcm")
    assert run.fits == 3
    beside = merged(base, shared[0], "rule=opcm")
    ours, theirs = (toy.read_results(one.directory) for one in (run, beside))
    assert (ours["matrix"], ours["method_report"]) == (theirs["matrix"], theirs["method_report"])


def test_the_merged_model_is_the_base_model_with_changed_weights(base, tmp_path):
    (method,) = merged(base, tmp_path, "rule=task_arithmetic").methods
    pool, ids = method.pool, torch.tensor([[1, 85, 77, 91, 20, 21]])
    with torch.inference_mode():
        with pool.use_adapter(method.ADAPTER) as model:
            ours = model(ids).logits
        for layer in pool.layers:
            change = sum(dense(changes_of(pool, task)[layer]) for task in ("sky", "sea", "ice"))
            pool.layers[layer].weight += 0.4 * change
        with pool.use_adapter(None) as model:
            theirs = model(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", all_but(["opcm"], RULES))
def test_a_run_that_is_broken_off_anywhere_merges_the_same(base, tmp_path, rule):
    whole = merged(base, tmp_path / "a", f"rule={rule}", "optim.epochs=3").directory
    settings = ("method=merge", *LEARNS, f"rule={rule}", "optim.epochs=3")
    again, interruptions = toy.broken_off(toy.compose(toy.data_in(base), tmp_path / "b", *settings))
    assert interruptions
    assert toy.read_answers(again.directory) == toy.read_answers(whole)
    ours, theirs = (toy.read_results(one) for one in (again.directory, whole))
    assert ours["matrix"] == theirs["matrix"]
    assert ours.get("method_report") == theirs.get("method_report")
    assert ours["storage"] == theirs["storage"]


def test_the_coefficient_gradient_is_that_of_the_loss(base, tmp_path):
    """Against differences of losses, under sums of the experts with coefficients near each other."""
    (method,) = merged(base, tmp_path, "rule=average").methods
    vectors = [method._vector(task) for task in ("sky", "sea", "ice")]
    rows = [
        Example(f"{task}-{n}", f"{task}{n}?", task, task, source="toy")
        for task in ("sky", "sea", "ice")
        for n in (3, 4)
    ]
    weights_T = torch.tensor([0.5, 0.2, 0.1], dtype=torch.float64)

    def loss(weights_T):
        adapter = Dense(
            {
                layer: weighted_sum([one.changes[layer] for one in vectors], weights_T.tolist())
                for layer in method.pool.layers
            }
        )
        (batch,) = method.batches(rows, len(rows))
        return float(answer_loss(method.pool.logits(batch, adapter), batch.labels_BS, method.optim.loss_reduction))

    found = method.coefficient_gradient(rows, ["sky", "sea", "ice"], weights_T)
    for place in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[place] = 1e-2
        expected = (loss(weights_T + step) - loss(weights_T - step)) / 2e-2
        assert float(found[place]) == pytest.approx(expected, rel=0.02, abs=1e-3)


def test_frank_wolfe_chooses_coefficients_on_stored_rows_of_past_tasks(base, shared):
    runs, _ = shared
    results = toy.read_results(merged(base, runs, "rule=frank_wolfe", "rule.rows=2", "rule.iterations=30").directory)
    assert results["counts"]["stored_rows"] == [0, 2, 4]
    coefficients = results["method_report"]["numbers"][-1]
    assert sum(coefficients.values()) == pytest.approx(1)
    assert min(coefficients.values()) >= 0
    assert len({*coefficients.values()}) == 4, "the mean is where it began"


def test_what_is_stored_is_the_merged_model_and_what_the_rule_keeps(base, shared):
    runs, _ = shared
    average, ties, opcm = (
        toy.read_results(merged(base, runs, f"rule={rule}").directory) for rule in ("average", "ties", "opcm")
    )
    one = average["storage"]["pool"][0]
    assert set(average["storage"]) == {"pool", "weights"}
    sizes = average["storage"]["weights"]
    assert sizes[0] == one < sizes[1] < 2 * one, "ranks add up, and become dense where that is smaller"
    assert ties["storage"]["state"] == [one, 2 * one, 3 * one]
    assert len({*ties["storage"]["weights"]}) == 1
    assert ties["storage"]["weights"][0] > max(sizes), "dense at every layer"
    scales = [numbers["scale"] for numbers in opcm["method_report"]["numbers"]]
    assert scales[0] == 1 < scales[1] < scales[2]


def test_results_and_report_name_the_rule(base, shared):
    runs, stl = shared
    for settings, name in (
        ((), "average"),
        (("rule=ties",), "ties"),
        (("rule=ties", "rule.density=0.4"), "arithmetic"),
    ):
        run = merged(base, runs, *settings).directory
        assert toy.read_results(run)["rule"] == name
        assert (run / "report.html").read_text().count(f"merge by {name} on jsonl") == 2, "title and heading"
        assert f"merge by {name} on jsonl" in (run / "answers" / "index.html").read_text()
    assert "rule" not in toy.read_results(stl.directory)


def test_a_rank_truncates_the_model_that_answers(base, shared):
    runs, _ = shared
    run = merged(base, runs, "rule=opcm", "method.rank=2")
    storage = toy.read_results(run.directory)["storage"]
    assert run.fits == 0
    assert len({*storage["weights"]}) == 1
    assert storage["weights"][0] < storage["pool"][0]


def test_the_mean_is_the_rule_of_runs_that_name_none(base, shared):
    runs, _ = shared
    assert merged(base, runs, "rule=average").directory == merged(base, runs).directory
    assert merged(base, runs, "rule=wise_ft").directory != merged(base, runs).directory


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("method=seqft", "rule=ties"), "method=seqft merges nothing; rule=arithmetic is for method=merge"),
        (("method=merge", "rule=ties", "rule.density=2"), "rule.density must be between 0 and 1; got 2"),
        (("method=merge", "rule=opcm", "+rule.beta=2"), "takes no 'beta'"),
        (("method=merge", "method.rank=0"), "method.rank must be at least 1; got 0"),
        (("method=merge", "adapter=full"), "is made of LoRA adapters, and adapter.full=true trains whole layers"),
        (("method=merge", "order.experts={sea:none}"), "order.experts changes single experts"),
    ],
)
def test_what_has_no_effect_or_meaning_is_refused(base, tmp_path, settings, told):
    with pytest.raises(ConfigError) as error:
        toy.run(toy.compose(toy.data_in(base), tmp_path, *settings))
    assert told in str(error.value)
    assert not list(tmp_path.glob("*/*/*")), "a run directory was made"


def test_the_merge_is_a_part_of_the_methods_time(base, tmp_path, monkeypatch):
    ended, computed = Merge.end_task, []

    def end_task(method, task, memory):
        ended(method, task, memory)
        computed.append("deltas" in vars(method.pool.composites[Merge.ADAPTER]))

    monkeypatch.setattr(Merge, "end_task", end_task)
    merged(base, tmp_path, "rule=ties")
    assert computed == [True] * 3
