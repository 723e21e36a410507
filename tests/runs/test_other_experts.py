"""``see-lightning experts``: a new run in which one expert is left out, trained again or imported."""

import json
import shutil
from types import SimpleNamespace

import pytest

from see_lightning import load_ensemble
from see_lightning.cli.calibrate import calibrate
from see_lightning.cli.experts import main as experts
from see_lightning.cli.perplexity import main as perplexity
from see_lightning.cli.report import main as report
from see_lightning.cli.route import main as route
from see_lightning.cli.study import main as study
from see_lightning.cli.transfer import main as transfer
from see_lightning.engine.asking import Request
from see_lightning.engine.experts import list_experts
from see_lightning.engine.stream_facts import right_experts
from see_lightning.engine.train_stage import Diverged
from see_lightning.errors import ConfigError
from tests.nightly import all_but
from tests.runs import toy
from tests.runs.foreign import foreign
from tests.runs.test_growing import all_files, grown_from

SKY = "order.tasks=[sky]"
#: Thresholds that leave queries to what comes last.
LEAVES = ("train_size=2", "method.calibrate_on=2", "method.target_recall=0.5", "optim.epochs=25", "model.dtype=fp32")
METHODS = ["see", "stl", "any_ssr"]
RETRAINED = "order.experts={sea:{epochs:12,lr:1e-2,seed:1}}"


def weights(directory, stage):
    return (directory / "tasks" / stage / "expert" / "adapter_model.safetensors").read_bytes()


def made_from(finished, tmp_path, *settings, words):
    """The run that the command makes from a copy of a finished run, and the copy."""
    copy = shutil.copytree(finished, tmp_path / toy.place_of(finished))
    before = all_files(copy)
    experts([str(copy), *words])
    assert all_files(copy) == before, "the finished run has changed"
    (other,) = (path.parent for path in tmp_path.rglob("results.json") if path.parent != copy)
    assert grown_from(other) == str(copy)
    return other


def same_as_from_the_start(other, data, runs, *settings):
    """The same experts, routing and scores as a run that was started with these settings."""
    whole = toy.run(toy.compose(data, runs, *settings)).directory
    assert other.parent.name == whole.parent.name, "the settings have another key"
    ours, theirs = (toy.read_results(one) for one in (other, whole))
    for name in ("matrix", "metrics", "last_row", "assigned_expert", "given"):
        assert ours.get(name) == theirs.get(name), name
    for stage in ("01-sky", "02-sea", "03-ice"):
        if (whole / "tasks" / stage / "expert" / "adapter_model.safetensors").exists():
            assert weights(other, stage) == weights(whole, stage)
    return ours


@pytest.mark.parametrize("method", all_but(["see"], METHODS))
def test_without_an_expert_the_others_are_as_before_and_answer_its_queries(base, tmp_path, method):
    choice = f"method={method}"
    finished = toy.whole(base, choice).directory
    other = made_from(finished, tmp_path / "a", words=["remove", "sea"])
    results = same_as_from_the_start(other, toy.data_in(base), tmp_path / "b", choice, "order.experts={sea:none}")
    assert results["assigned_expert"] == {"sky": "sky", "sea": "base", "ice": "ice"}
    assert [weights(other, one) for one in ("01-sky", "03-ice")] == [
        weights(finished, one) for one in ("01-sky", "03-ice")
    ]
    if method != "stl":  # it is told the task
        check_routing(results["routing"])
    ensemble = load_ensemble(other)
    assert "sea" not in ensemble.experts()
    with pytest.raises(ConfigError, match="there is no expert 'sea'"):
        ensemble.reply([Request("seasea111?", expert="sea")])
    assert [one.origin for one in list_experts(other)] == [None, "removed", None]


def check_routing(routing):
    """No query reached the removed expert, and the base model is the right one for its task."""
    confusion = dict(zip(routing["tasks"], routing["confusion"], strict=True))
    assert all(row[routing["columns"].index("sea")] == 0 for row in confusion.values()), "it is still asked"
    right = confusion["sky"][0] + confusion["sea"][-1] + confusion["ice"][2]
    assert routing["accuracy"] == pytest.approx(right / sum(map(sum, confusion.values())))


def test_nothing_is_trained_where_an_expert_is_removed_and_all_answers_are_remembered(base, tmp_path):
    plain = toy.run(toy.compose(toy.data_in(base), tmp_path))
    less = toy.run(toy.compose(toy.data_in(base), tmp_path, "order.experts={ice:none}"))
    assert (plain.fits, less.fits) == (3, 0)
    assert toy.read_results(less.directory)["counts"]["decisions"] == 0
    back = toy.run(toy.compose(toy.data_in(base), tmp_path / "other", "order.experts={ice:none}"))
    assert back.fits == 2
    assert toy.read_results(back.directory)["matrix"] == toy.read_results(less.directory)["matrix"]


@pytest.mark.parametrize("method", all_but(["see"], METHODS))
def test_an_expert_is_trained_again_alone(base, tmp_path, method):
    choice = f"method={method}"
    finished = toy.whole(base, choice).directory
    words = ["retrain", "sea", "--epochs", "12", "--lr", "1e-2", "--seed", "1"]
    other = made_from(finished, tmp_path / "a", words=words)
    results = same_as_from_the_start(other, toy.data_in(base), tmp_path / "b", choice, RETRAINED)
    assert weights(other, "02-sea") != weights(finished, "02-sea")
    for stage in ("01-sky", "03-ice"):
        assert weights(other, stage) == weights(finished, stage)
    steps = toy.read_results(finished)["counts"]["steps"]
    assert results["counts"]["steps"] == [steps[0], steps[1] * 12 // 10, steps[2]]
    assert list_experts(other)[1].origin == "trained with lr=0.01, epochs=12, seed=1"
    assert [one.task for one in list_experts(other)] == list(toy.TASKS)


@pytest.mark.parametrize("setting", all_but(["seed: 1"], ["lr: 1e-2", "epochs: 12", "seed: 1"]))
def test_each_setting_of_one_task_trains_another_expert_and_no_other(base, tmp_path, setting):
    toy.run(toy.compose(toy.data_in(base), tmp_path))
    again = toy.run(toy.compose(toy.data_in(base), tmp_path, f"order.experts={{sea:{{{setting}}}}}"))
    assert again.fits == 1
    finished = toy.whole(base).directory
    changed = [weights(again.directory, one) != weights(finished, one) for one in ("01-sky", "02-sea", "03-ice")]
    assert changed == [False, True, False]


def test_epochs_of_one_task_are_those_of_its_validation_too(base, tmp_path):
    settings = ("train_size=2", "valid_size=2", "order.experts={sea:{epochs:12}}")
    results = toy.read_results(toy.run(toy.compose(toy.data_in(base), tmp_path, *settings)).directory)
    assert results["validation"]["epochs"] == [10, 12, 10]


@pytest.mark.nightly
def test_a_run_with_other_experts_that_is_broken_off_anywhere_ends_the_same(base, tmp_path):
    whole = toy.run(toy.compose(toy.data_in(base), tmp_path / "a", RETRAINED)).directory
    toy.run(toy.compose(toy.data_in(base), tmp_path / "b"))
    again, interruptions = toy.broken_off(toy.compose(toy.data_in(base), tmp_path / "b", RETRAINED))
    assert interruptions > 5
    assert toy.read_results(again.directory)["matrix"] == toy.read_results(whole)["matrix"]
    assert weights(again.directory, "02-sea") == weights(whole, "02-sea")


@pytest.mark.parametrize("experts_", ["{sea:none}", "{sea:FOLDER}"], ids=["removed", "imported"])
def test_other_commands_on_a_run_with_other_experts(base, tmp_path, capsys, experts_):
    if "FOLDER" in experts_:
        experts_ = experts_.replace("FOLDER", str(foreign(base, tmp_path)[0]))
    settings = (*LEAVES, f"order.experts={experts_}")
    directory = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", *settings)).directory
    results = toy.read_results(directory)
    # Advice to train is of no use for an expert that refuses nothing, and for a task without one.
    of_no_use = "the expert of sea takes" if "/" in experts_ else "queries of sea"
    assert not [one for one in results["notices"] if of_no_use in one]
    assert ("sea has no expert, by order.experts." in results["notices"]) == ("none" in experts_)
    transfer([str(directory)])
    matrix = json.loads((directory / "transfer.json").read_text())
    assert list(matrix["transfer"]) == [one for one in ("base", *toy.TASKS) if one != "sea" or "none" not in experts_]
    capsys.readouterr()
    route([str(directory)])
    assert ("centroid: learns sea" in capsys.readouterr().err) == ("none" not in experts_)
    rows = {row["router"]: row for row in json.loads((directory / "route.json").read_text())["routers"]}
    reason = "needs verdicts, and the imported expert of sea gives none"
    assert [name for name in ("argmax", "propose", "joint") if rows[name]["cannot"] == reason] == (
        [] if "none" in experts_ else ["argmax", "propose", "joint"]
    )
    assert rows["walk"]["cannot"] is None
    report([str(directory)])
    perplexity([str(directory)])
    with pytest.raises(SystemExit):
        study([str(directory)])
    assert "trained no expert for sea, which was reused, left out or imported" in capsys.readouterr().err
    calibrate(directory, on=1, target_recall=1.0)


def test_no_training_is_advised_for_answers_to_a_task_without_an_expert():
    order = SimpleNamespace(learned=lambda: {task: task for task in toy.TASKS})
    run = SimpleNamespace(config=SimpleNamespace(order=order), names=list(toy.TASKS), trained=[{}, {}, {}])
    right = right_experts(run, {"sky": "sky", "sea": "base", "ice": "ice"})
    assert {("sea", "sky"), ("sea", "ice")} <= right
    assert ("sky", "ice") not in right


def changed_rows(base, tmp_path, task):
    """A copy of the data, and the copy with another training row of a task."""
    data = shutil.copytree(toy.data_in(base), tmp_path / "data")
    runs = tmp_path / "runs"
    before = toy.run(toy.compose(data, runs))
    path = data / f"{task}.train.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({"prompt": "new row?", "answer": "x"}), *rows[1:]]) + "\n")
    return data, runs, before.directory


@pytest.mark.parametrize("task", all_but(["sea"], toy.TASKS))
def test_changed_rows_train_their_expert_and_those_that_refuse_such_rows(base, tmp_path, capsys, task):
    data, runs, before = changed_rows(base, tmp_path, task)
    trained = len(toy.TASKS) - list(toy.TASKS).index(task)
    kept = all_files(before)
    capsys.readouterr()
    again = toy.run(toy.compose(data, runs))
    assert again.fits == trained
    assert all_files(before) == kept
    fresh = toy.run(toy.compose(data, tmp_path / "fresh"))
    ours, theirs = (toy.read_results(one.directory) for one in (again, fresh))
    assert ours["matrix"] == theirs["matrix"]
    for stage in ("01-sky", "02-sea", "03-ice"):
        assert weights(again.directory, stage) == weights(fresh.directory, stage)
    if trained < 3:
        assert f"{3 - trained} trained stages copied" in capsys.readouterr().err


def test_retrain_without_settings_takes_the_changed_rows(base, tmp_path, capsys):
    _, runs, before = changed_rows(base, tmp_path, "ice")
    with pytest.raises(SystemExit):
        experts([str(before), "retrain", "sea"])
    assert "nothing has changed: the expert of sea would be the same" in capsys.readouterr().err
    experts([str(before), "retrain", "ice"])
    other = next(path.parent for path in runs.rglob("results.json") if path.parent != before)
    assert weights(other, "02-sea") == weights(before, "02-sea")
    assert weights(other, "03-ice") != weights(before, "03-ice")


@pytest.mark.parametrize(
    ("settings", "words", "told"),
    [
        ((), ["remove", "se"], "has no task 'se'. Did you mean 'sea'?"),
        ((), ["remove"], "remove TASK"),
        (
            (),
            ["retrain", "sea", "--epochs", "10"],
            "the expert of sea would be the same: it was trained with epochs=10",
        ),
        ((), ["retrain", "sea", "--lr", "0"], "order.experts.sea.lr=0 trains nothing"),
        ((), ["remove", "sea", "--epochs", "3"], "--epochs is for retrain"),
        ((), ["retrain", "sea", "--epochs", "0"], "order.experts.sea.epochs must be at least 1"),
        ((), ["import", "sea", "/nowhere"], "/nowhere has no adapter_config.json"),
        ((SKY,), ["remove", "sky"], "sky is the only expert"),
        (("method=moses",), ["remove", "sea"], "depend on each other"),
        (("method=seqft",), ["remove", "sea"], "depend on each other"),
        (("method.warm_start=loss",), ["remove", "sea"], "depend on each other"),
    ],
)
def test_what_cannot_be_changed_is_refused(base, tmp_path, capsys, settings, words, told):
    finished = toy.whole(base, *settings).directory
    copy = shutil.copytree(finished, tmp_path / toy.place_of(finished))
    with pytest.raises(SystemExit):
        experts([str(copy), *words])
    assert told in capsys.readouterr().err
    assert [path.parent for path in tmp_path.rglob("ledger.json")] == [copy]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("{see:none}", "there is no task 'see' in order.tasks"),
        ("{sea:{rank:4}}", "has no setting 'rank'; a task's own ones are lr, epochs, seed"),
        ("{sea:{epochs:1.5}}", "order.experts.sea.epochs must be a whole number; got 1.5"),
        ("{sea:{}}", "must be none, a PEFT folder, or settings"),
        ("{sky:none,sea:none,ice:none}", "leaves no task an expert"),
        ("{sea:3}", "must be none, a PEFT folder, or settings"),
    ],
)
def test_values_of_another_form_are_refused(base, tmp_path, value, told):
    with pytest.raises(ConfigError, match=told):
        toy.run(toy.compose(toy.data_in(base), tmp_path, f"order.experts={value}"))


def test_streams_take_no_other_experts(base, tmp_path):
    with pytest.raises(ConfigError, match="order.experts is for tasks one after another"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, "order.experts={sea:none}", "order.stream=recurring"))


def test_a_second_change_copies_from_the_first(base, tmp_path):
    """Whatever the keys of the runs, by whose names ties are broken."""
    data, few = toy.data_in(base), "optim.epochs=2"
    toy.run(toy.compose(data, tmp_path, few))
    for epochs in (3, 4, 5):
        own = f"sea:{{epochs:{epochs}}}"
        first = toy.run(toy.compose(data, tmp_path, few, f"order.experts={{{own}}}"))
        second = toy.run(toy.compose(data, tmp_path, few, f"order.experts={{{own},ice:none}}"))
        assert (first.fits, second.fits) == (1, 0)
        assert grown_from(second.directory) == str(first.directory)


def test_training_that_diverges_names_the_setting_of_its_task(base, tmp_path):
    with pytest.raises(Diverged, match=r"order\.experts\.sea\.lr is 1e\+09; lower it, such as to --lr 1e\+08"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, "order.experts={sea:{lr:1e9}}"))
