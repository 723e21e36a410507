"""Results hold the fields of the contract, and each number follows from the files of the run."""

import inspect
from unittest.mock import patch

import pytest

from see_lightning.engine import build
from see_lightning.evaluation.scores import score_fn
from tests.runs import toy

NAMES = list(toy.TASKS)


def test_a_finished_run_is_reported_without_loading_a_model(whole, base, method, capsys):
    before = toy.kept(whole.directory)
    with patch.object(build, "load_model", side_effect=AssertionError("a model was loaded")):
        toy.run(toy.compose(toy.data_in(base), whole.directory.parents[3], *method))
    *_, last = capsys.readouterr().out.splitlines()
    assert last == str(whole.directory / "results.json")
    assert toy.kept(whole.directory) == before


def test_the_matrix_is_measured_where_the_schedule_says(whole):
    measured = [[score is not None for score in row] for row in toy.read_results(whole.directory)["matrix"]]
    yes, no = True, False
    assert (
        measured
        == {
            "sequential": [[yes, yes, no], [yes, yes, yes], [yes, yes, yes]],
            "joint": [[no, no, no], [no, no, no], [yes, yes, yes]],
            "frozen": [[yes, yes, yes]] * 3,
        }[whole.methods[0].traits.schedule]
    )


def test_results_hold_the_fields_of_the_contract(whole):
    results = toy.read_results(whole.directory)
    (method,) = whole.methods
    kinds = {
        "command": str,
        "commit": str | None,
        "versions": dict,
        "seed": int,
        "method": str,
        "ratio": float | None,
        "model": str,
        "dtype": str,
        "order": str,
        "tasks": list,
        "score": dict,
        "matrix": list,
        "metrics": dict,
        "timing": dict,
        "counts": dict,
        "notices": list,
        "benchmark": dict,
        "config": dict,
    }
    for field, kind in kinds.items():
        assert isinstance(results[field], kind), field
    assert results["tasks"] == NAMES
    assert results["seed"] == 3
    assert results["method"] == type(method).__module__.rsplit(".", 1)[-1]
    assert results["score"] == dict.fromkeys(NAMES, "exact_match")
    assert all(score is None or 0 <= score <= 100 for row in results["matrix"] for score in row)
    assert list(results["metrics"]) == ["AR", "FWT", "BWT", "forgetting"]
    rates = {"train_tokens_per_s", "queries_per_s"}
    assert set(results["timing"]) == {"train_s", "evaluate_s", "method_s", "method_step_s", *rates}
    assert ("routing" in results) == (method.traits.has_experts and not method.needs_task_id)
    assert (results["ratio"] is None) == ("ratio" not in inspect.signature(type(method)).parameters)


def test_what_is_kept_never_shrinks_and_is_measured_by_the_pool(whole):
    results, stages = toy.read_results(whole.directory), whole.trained_stages()
    assert ("capacity" in results) == bool(stages)
    if stages:
        *parts, capacity = [*results["storage"].values(), results["capacity"]]
        assert all(len(part) == len(stages) and part == sorted(part) for part in (*parts, capacity))
        kept = {name: part for name, part in results["storage"].items() if name != "pool"}
        for stage, share in enumerate(capacity):
            whole_size = sum(part[stage] for part in kept.values())
            assert share == pytest.approx(whole_size / results["storage"]["pool"][stage], abs=1e-6)
        assert kept["weights" if whole.methods[0].traits.trains else "state"][0] > 0


def test_every_number_can_be_recomputed_from_the_answers(whole):
    results, answers = toy.read_results(whole.directory), toy.read_answers(whole.directory)
    method = whole.methods[0]
    exact = score_fn("exact_match")
    for stage in answers.values():
        for record in stage:
            assert record["score"] == exact(record["text"], record["target"])

    def mean(numbers):
        numbers = list(numbers)
        return sum(numbers) / len(numbers) if numbers and None not in numbers else None

    def scored(stage, task):
        return mean(record["score"] for record in stage if record["task"] == task)

    rows = [[scored(stage, task) for task in NAMES] for stage in answers.values()]
    if method.traits.schedule == "frozen":
        rows *= 3
    if method.traits.schedule == "joint":
        rows = [[None] * 3, [None] * 3, *rows]
    assert results["matrix"] == rows
    last = rows[-1]
    change, drop = [], []
    for j in (0, 1):
        since = [row[j] for row in rows[j:-1] if row[j] is not None]
        change.append(last[j] - rows[j][j] if rows[j][j] is not None else None)
        drop.append(max(since) - last[j] if since else None)
    expected = {
        "AR": mean(last),
        "FWT": mean([rows[0][1], rows[1][2]]),
        "BWT": mean(change),
        "forgetting": mean(drop),
    }
    for name, value in expected.items():
        assert results["metrics"][name] == (None if value is None else pytest.approx(value)), name
    if "routing" in results:
        *_, final = answers.values()
        routing = results["routing"]
        assert routing["accuracy"] == sum(r["expert"] == r["task"] for r in final) / len(final)
        assert routing["base_share"] == sum(r["expert"] == "base" for r in final) / len(final)
        assert routing["no_indicator_share"] == sum("neither" in r["verdicts"] for r in final) / len(final)
        assert routing["confusion"] == [
            [sum(r["task"] == task and r["expert"] == expert for r in final) for expert in (*NAMES, "base")]
            for task in NAMES
        ]
