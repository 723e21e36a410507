"""Thresholds set anew: what was trained is taken over, and what comes of it is what training anew would have given."""

import json
import shutil
from unittest.mock import patch

import pytest

from see_lightning.cli.calibrate import calibrate
from see_lightning.config import identity
from see_lightning.engine.ensemble import load_ensemble
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.train_stage import TrainStage
from see_lightning.errors import Refusal
from tests.nightly import all_but
from tests.runs import toy

BEFORE = ("train_size=2", "model.dtype=fp32", "optim.epochs=25")
THEN = ("method.calibrate_on=2", "method.target_recall=0.5")
KINDS = [(), toy.ACTIVATED]


def outcome(directory):
    """What must be the same whether or not the experts were trained here."""
    files = {
        name: content
        for name, content in toy.kept(directory).items()
        if name.endswith(
            (".safetensors", "adapter_config.json", "expert.json", "threshold.json", "answers.jsonl", ".csv")
        )
    }
    results = toy.read_results(directory)
    for name in ("rechecked_share", "decided_again_share"):  # of what was decided here
        results["routing"].pop(name)
    return {
        **files,
        **{name: results[name] for name in ("matrix", "metrics", "routing", "last_row", "protocols", "config")},
    }


def copied(base, runs, *settings):
    """The directory of an undisturbed run, copied to its place below ``runs``."""
    whole = toy.whole(base, *settings).directory
    return shutil.copytree(whole, runs / toy.place_of(whole))


def without_places(outcome):
    del outcome["config"]["paths"]
    return outcome


@pytest.mark.parametrize("kind", all_but([()], KINDS), ids=["ordinary", "activated"])
def test_the_same_command_with_thresholds_trains_nothing_and_ends_like_a_whole_run(base, tmp_path, kind):
    whole = toy.whole(base, *kind, *BEFORE, *THEN)
    plain = toy.run(toy.compose(toy.data_in(base), tmp_path, *kind, *BEFORE))
    files = {path: path.read_bytes() for path in plain.directory.rglob("*") if path.is_file()}
    set_anew = toy.run(toy.compose(toy.data_in(base), tmp_path, *kind, *BEFORE, *THEN))
    assert (plain.fits, set_anew.fits) == (3, 0)
    assert without_places(outcome(set_anew.directory)) == without_places(outcome(whole.directory))
    assert outcome(set_anew.directory)["routing"]["thresholds"]
    assert {path: path.read_bytes() for path in plain.directory.rglob("*") if path.is_file()} == files
    counts = toy.read_results(set_anew.directory)["counts"]
    assert counts["decisions"] == 0, "what the experts said was remembered"
    assert counts["generations"] < toy.read_results(plain.directory)["counts"]["generations"]
    assert counts["steps"] == toy.read_results(whole.directory)["counts"]["steps"]


def test_thresholds_are_set_otherwise_and_taken_back(base, tmp_path):
    calibrated = toy.run(toy.compose(toy.data_in(base), tmp_path, *BEFORE, *THEN))
    other = toy.run(
        toy.compose(toy.data_in(base), tmp_path, *BEFORE, "method.calibrate_on=2", "method.target_recall=1.0")
    )
    plain = toy.run(toy.compose(toy.data_in(base), tmp_path, *BEFORE))
    assert (calibrated.fits, other.fits, plain.fits) == (3, 0, 0)
    assert without_places(outcome(plain.directory)) == without_places(outcome(toy.whole(base, *BEFORE).directory))
    assert not list(plain.directory.rglob("threshold.json"))
    thresholds = [toy.read_results(run.directory)["routing"]["thresholds"] for run in (calibrated, other)]
    assert thresholds[0] != thresholds[1]


def test_a_run_that_noted_settings_which_are_off_is_taken_over_too(base, tmp_path):
    plain = copied(base, tmp_path, *BEFORE)
    with Ledger(plain) as ledger:
        ledger.content["about"]["numbers"]["method"]["other_instructions"] = 0
        ledger.commit()
    assert toy.run(toy.compose(toy.data_in(base), tmp_path, *BEFORE, *THEN)).fits == 0


def test_a_longer_run_with_other_thresholds_trains_the_new_task_alone(base, tmp_path):
    toy.run(toy.compose(toy.data_in(base), tmp_path, *BEFORE, "order.tasks=[sky,sea]"))
    longer = toy.run(toy.compose(toy.data_in(base), tmp_path, *BEFORE, *THEN))
    assert longer.fits == 1
    whole = toy.whole(base, *BEFORE, *THEN)
    assert without_places(outcome(longer.directory)) == without_places(outcome(whole.directory))


def test_experts_trained_on_what_would_be_held_out_are_not_taken_over(base, tmp_path):
    """With three of sky's four rows trained on, two held out leave two: other experts."""
    toy.run(toy.compose(toy.data_in(base), tmp_path, "train_size=3", "method.calibrate_on=1"))
    again = toy.run(toy.compose(toy.data_in(base), tmp_path, "train_size=3", "method.calibrate_on=2"))
    assert again.fits == 3
    assert Ledger(again.directory).read().content["about"].get("grown_from") is None


@pytest.mark.nightly
def test_a_run_killed_at_any_step_of_it_ends_the_same(base, tmp_path):
    plain = toy.whole(base, *BEFORE)
    whole = toy.whole(base, *BEFORE, *THEN)
    place = tmp_path / "see"
    shutil.copytree(plain.directory.parents[1], place / "jsonl" / "see", dirs_exist_ok=True)
    for other in (place / "jsonl" / "see").iterdir():
        if other.name != plain.directory.parent.name:
            shutil.rmtree(other)
    cfg = toy.compose(toy.data_in(base), place, *BEFORE, *THEN)
    diary, directory = tmp_path / "diary", place / "jsonl" / "see" / whole.directory.parent.name / "seed=3"

    def work():
        toy.kill_where_new(diary)
        toy.run(cfg)

    kills = 0
    while (code := toy.forked(work, tmp_path / "log")) == -9:
        kills += 1
        if (directory / "ledger.json").exists():
            toy.load_everything(directory)
        assert kills < 300
    assert code == 0, (tmp_path / "log").read_text()[-2000:]
    moments = toy.kinds_of(diary.read_text().splitlines())
    assert {("replaced", "threshold.json"), ("replaced", "expert.json"), ("replaced", "ledger.json")} <= moments
    assert without_places(outcome(directory)) == without_places(outcome(whole.directory))


def test_several_ranks_set_the_thresholds_of_one(base, tmp_path):
    copied(base, tmp_path, *BEFORE)
    cfg = toy.compose(toy.data_in(base), tmp_path, *BEFORE, *THEN, "trainer=ddp", "trainer.devices=2")
    assert toy.ended(toy.start_ranks(2, lambda: toy.run(cfg), tmp_path / "log")) == [0, 0], (
        tmp_path / "log"
    ).read_text()
    whole = toy.whole(base, *BEFORE, *THEN)
    directory = tmp_path / "jsonl" / "see" / whole.directory.parent.name / "seed=3"
    ours, theirs = outcome(directory), outcome(whole.directory)
    assert ours["routing"] == theirs["routing"]
    assert ours["matrix"] == theirs["matrix"]
    assert not list(directory.rglob("expert.again"))


def test_a_finished_run_is_calibrated_by_its_folder(base, tmp_path, capsys):
    plain = copied(base, tmp_path, *BEFORE)
    moved = tmp_path / "elsewhere"
    shutil.copytree(plain, moved / "jsonl" / "see" / plain.parent.name / "seed=3")
    path = calibrate(moved / "jsonl" / "see" / plain.parent.name / "seed=3", on=2, target_recall=0.5)
    told = capsys.readouterr().out
    whole = toy.whole(base, *BEFORE, *THEN)
    assert path.parent == moved / "jsonl" / "see" / whole.directory.parent.name / "seed=3"
    assert without_places(outcome(path.parent)) == without_places(outcome(whole.directory))
    assert told.splitlines()[-1] == str(path)
    assert toy.read_results(path.parent)["command"] == "test method.calibrate_on=2 method.target_recall=0.5"


def test_a_threshold_may_also_look_at_general_instructions(base, tmp_path):
    plain = copied(base, tmp_path, *BEFORE)
    more = ("method.ood_examples=3", "method.margin=0.5")
    with patch.object(TrainStage, "_train", side_effect=AssertionError("trained again")):
        path = calibrate(plain, on=2, target_recall=0.5, ood_examples=3, margin=0.5)
    whole = toy.whole(base, *BEFORE, *THEN, *more)
    assert path.parents[1].name == whole.directory.parent.name
    assert without_places(outcome(path.parent)) == without_places(outcome(whole.directory))
    back = calibrate(path.parent, on=2, target_recall=0.5)
    assert toy.read_results(back.parent)["routing"]["thresholds"] == {
        task: toy.read_results(toy.whole(base, *BEFORE, *THEN).directory)["routing"]["thresholds"][task]
        for task in toy.TASKS
    }


def test_thresholds_by_training_rows_need_no_rows_that_are_left(base, tmp_path):
    plain = toy.run(toy.compose(toy.data_in(base), tmp_path, "model.dtype=fp32", "optim.epochs=25"))
    with patch.object(TrainStage, "_train", side_effect=AssertionError("trained again")):
        path = calibrate(plain.directory, on="train", target_recall=0.98)
    whole = toy.whole(base, "model.dtype=fp32", "optim.epochs=25", "method.calibrate_on=train")
    assert path.parents[1].name == whole.directory.parent.name
    assert without_places(outcome(path.parent)) == without_places(outcome(whole.directory))


def test_a_run_whose_experts_are_proposed_is_calibrated_too(base, tmp_path):
    plain = copied(base, tmp_path, *BEFORE, "router=propose")
    path = calibrate(plain, on=2, target_recall=0.5)
    whole = toy.whole(base, *BEFORE, *THEN, "router=propose")
    assert path.parents[1].name == whole.directory.parent.name
    assert without_places(outcome(path.parent)) == without_places(outcome(whole.directory))
    assert toy.read_results(path.parent)["routing"]["thresholds"].keys() == toy.TASKS.keys()


@pytest.mark.parametrize(
    ("settings", "on", "target_recall", "message"),
    [
        (("method=seqft",), 2, 0.5, "a run of seqft, whose models have no thresholds"),
        (("router=centroid",), 2, 0.5, "was routed by .*Centroid, which uses no thresholds"),
        (("train_size=3",), 2, 0.5, "was trained on rows of sky that 2 held out would need"),
        ((), 9, 0.5, "9 training rows of sky were to be held out, but it has 4"),
        ((), 0, 0.5, "--calibrate-on must be at least 1"),
        ((), 2, 0, "--target-recall must be between 0.01 and 1"),
    ],
)
def test_a_run_that_cannot_be_calibrated_is_refused(base, settings, on, target_recall, message):
    with pytest.raises(Refusal, match=message):
        calibrate(toy.whole(base, *settings).directory, on=on, target_recall=target_recall)


def test_experts_that_refused_other_instructions_than_there_are_today_are_not_taken_for_those_of_today(
    base, tmp_path, monkeypatch
):
    settings = (*BEFORE, "optim.epochs=1", "method.general_negatives=2")
    with monkeypatch.context() as before:
        before.setattr(identity, "GENERAL_VERSION", 1)
        plain = toy.run(toy.compose(toy.data_in(base), tmp_path, *settings))
    with pytest.raises(Refusal, match="was trained by an earlier version.*Train again with method.calibrate_on=2"):
        calibrate(plain.directory, on=2, target_recall=0.5, ood_examples=3)
    again = toy.run(toy.compose(toy.data_in(base), tmp_path, *settings))
    assert again.fits == 3
    assert again.directory != plain.directory


def test_a_run_that_does_not_lie_where_its_settings_say_is_refused(base, tmp_path):
    for place in ("mine", "jsonl/see/abc/seed=4"):
        shutil.copytree(toy.whole(base, *BEFORE).directory, tmp_path / place)
        with pytest.raises(Refusal, match="lies elsewhere than a run of these settings does"):
            calibrate(tmp_path / place, on=2, target_recall=0.5)


def test_a_run_that_trained_nothing_yet_is_no_source(base, tmp_path):
    plain = copied(base, tmp_path, *BEFORE)
    for key in ("00000000", "zzzzzzzz"):  # begun with other thresholds, and killed at once
        ledger = Ledger(tmp_path / "jsonl" / "see" / key / "seed=3")
        about = {**Ledger(plain).read().content["about"]}
        about["numbers"] = {
            **about["numbers"],
            "method": {**about["numbers"]["method"], "calibrate_on": 1, "keep": 1.0},
        }
        with ledger:
            ledger.about(about)
    assert toy.run(toy.compose(toy.data_in(base), tmp_path, *BEFORE, *THEN)).fits == 0


def test_until_a_threshold_is_set_anew_an_expert_is_not_to_be_asked(base, tmp_path):
    calibrated = toy.run(toy.compose(toy.data_in(base), tmp_path, *BEFORE, *THEN))
    cfg = toy.compose(toy.data_in(base), tmp_path, *BEFORE, "method.calibrate_on=2", "method.target_recall=1.0")
    with patch.object(TrainStage, "_end_again", side_effect=InterruptedError), pytest.raises(InterruptedError):
        toy.run(cfg)
    (begun,) = [path for path in calibrated.directory.parents[1].glob("*/seed=3") if path != calibrated.directory]
    with pytest.raises(Refusal, match="has finished no task yet"):
        load_ensemble(begun)
    toy.run(cfg)
    assert load_ensemble(begun).method.thresholds == toy.read_results(begun)["routing"]["thresholds"]


def test_what_a_run_was_asked_beside_its_own_queries_is_asked_again(base, tmp_path):
    rows = [{"id": str(n), "input": f"fog{n}?", "output": "q"} for n in range(10)]
    (tmp_path / "foreign").mkdir()
    whole = {"Definition": ["fog"], "Instances": rows, "Positive Examples": []}
    (tmp_path / "foreign" / "fog.json").write_text(json.dumps(whole))
    ood = ("ood=folder", f"ood.dir={tmp_path / 'foreign'}", "ood.size=1")
    toy.run(toy.compose(toy.data_in(base), tmp_path, *BEFORE, *ood))
    plain = toy.run(toy.compose(toy.data_in(base), tmp_path, *BEFORE))  # as it was last configured: none
    results = json.loads(calibrate(plain.directory, on=2, target_recall=0.5).read_text())
    assert list(results["ood"]["per_task"]) == ["fog"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(Refusal, match="holds no run"):
        calibrate(tmp_path, on=2, target_recall=0.5)
