"""A run and its record in W&B: what is told, under which id, and how it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from unittest.mock import patch

import pytest
from lightning.pytorch.utilities import rank_zero_only

from see_lightning.config.search_path import CONF
from see_lightning.config.validation import validate
from see_lightning.engine import launch
from see_lightning.engine.tracker import Tracker, make_tracker
from see_lightning.engine.tracking import WandbTracker
from see_lightning.errors import ConfigError
from see_lightning.methods.see import See
from tests.runs import toy
from tests.tracking.conftest import TWO_TASKS, inspected, of_kind, promised

OFFLINE = ("logger=wandb", "logger.mode=offline")


def failing_at(task):
    """A patch under which a run of SEE fails when it comes to a task."""
    begin = See.begin_task

    def begin_task(method, begun, memory):
        if begun.name == task:
            raise OSError("the disk is full")
        begin(method, begun, memory)

    return patch.object(See, "begin_task", begin_task)


def test_an_offline_run_shows_every_metric_that_the_readme_names_and_no_other(composed):
    directory = toy.run(composed(*OFFLINE, "valid_size=1")).directory
    results = toy.read_results(directory)
    (records,) = inspected(directory)
    history = [record["item"] for record in of_kind(records, "history")]
    summary = {key: value for record in of_kind(records, "summary") for key, value in record["update"].items()}

    # What W&B adds for itself begins with a dash, and what it adds to a picture stands behind a dot.
    shown = {
        key.split(".")[0] for key in {*summary, *(key for row in history for key in row)} if not key.startswith("_")
    }
    assert {re.sub("after=[12]", "after=<t>", re.sub("sky|sea", "<task>", name)) for name in shown} == promised()

    for name, value in results["metrics"].items():
        assert summary[f"continual/{name}"] == value
    assert summary["route/accuracy"] == results["routing"]["accuracy"]
    cells = {
        f"eval/after={t + 1}/{task}": results["matrix"][t][j] for t in (0, 1) for j, task in enumerate(results["tasks"])
    }
    assert {name: summary[name] for name in cells} == cells
    for j, task in enumerate(results["tasks"]):
        curve = [(row["tasks_learned"], row[f"eval/{task}"]) for row in history if f"eval/{task}" in row]
        assert curve == [(1, results["matrix"][0][j]), (2, results["matrix"][1][j])]
        steps = [row[f"train/{task}/step"] for row in history if f"train/{task}/loss" in row]
        assert steps == list(range(results["counts"]["steps"][j]))

    run = of_kind(records, "run")[0]
    assert run["display_name"] == "/".join(directory.parts[-4:])
    assert run["config"]["update"]["optim.lr"] == results["config"]["optim"]["lr"]
    (artifact,) = of_kind(records, "artifact")
    assert artifact["type"] == "report"
    assert [os.path.basename(entry["path"]) for entry in artifact["manifest"]["contents"]] == [
        "report.html",
        "results.json",
    ]
    for picture in ("matrix", "routing"):
        (file,) = directory.glob(f"wandb/offline-run-*/files/media/html/picture/{picture}_*.html")
        assert "<svg" in file.read_text(encoding="utf-8")
    assert of_kind(records, "exit")[0].get("exit_code", 0) == 0


def test_validation_losses_are_a_curve_of_each_task_over_its_steps(composed):
    directory = toy.run(composed(*OFFLINE, "method=seqft", "valid_size=2", "optim.epochs=3")).directory
    results = toy.read_results(directory)
    (records,) = inspected(directory)
    history = [record["item"] for record in of_kind(records, "history")]
    for task, losses, steps in zip(
        results["tasks"], results["validation"]["loss"], results["counts"]["steps"], strict=True
    ):
        rows = [row for row in history if f"val/{task}/loss" in row]
        assert [round(row[f"val/{task}/loss"], 6) for row in rows] == losses
        assert [row[f"train/{task}/step"] for row in rows] == [steps // 3 * epoch - 1 for epoch in (1, 2, 3)]


@pytest.mark.nightly
def test_each_job_of_a_multirun_has_a_run_of_its_own(data, tmp_path):
    settings = [setting for setting in toy.SETTINGS if not setting.startswith("seed")]
    command = [*settings, *TWO_TASKS, *OFFLINE, f"benchmark.reader.folder={data}", "paths.runs=runs", "seed=1,2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, str(CONF.parent / "run.py"), *command],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    directories = sorted((tmp_path / "runs" / "jsonl" / "see").glob("*/seed=*"))
    assert len(directories) == 2
    ids = set()
    for seed, directory in enumerate(directories, start=1):
        (records,) = inspected(directory)
        (run,), (end,) = of_kind(records, "run"), of_kind(records, "exit")
        assert (run["config"]["update"]["seed"], end.get("exit_code", 0)) == (seed, 0)
        assert run["run_id"].startswith(f"{directory.parent.name}-{seed}-")
        ids.add(run["run_id"])
    assert len(ids) == 2


def test_a_run_that_fails_is_marked_failed_and_goes_on_under_its_id(composed, backend):
    cfg = composed("logger=wandb")
    with failing_at("sea"), pytest.raises(OSError, match="disk is full"):
        toy.run(cfg)
    ((name, run),) = backend.runs.items()
    assert run.exits == [1]
    assert not run.preempting
    directory = toy.run(cfg).directory
    assert list(backend.runs) == [name]
    assert run.exits == [1, 0]
    losses = [key for row in run.history for key in row if re.fullmatch("train/.*/loss", key)]
    results = toy.read_results(directory)
    assert [losses.count(f"train/{task}/loss") for task in ("sky", "sea")] == results["counts"]["steps"], "none twice"
    assert run.summary["continual/AR"] == results["metrics"]["AR"]
    assert run.about["groupName"] == "/".join(directory.parts[-4:-1])
    assert set(run.artifacts.values()) == {"report"}
    assert '"matrix"' in run.files[f"report-{name}/results.json"].decode()
    assert sum("/picture/" in file for file in run.files) == 2

    toy.run(cfg)  # is finished, so that it is only reported
    assert (list(backend.runs), run.exits) == ([name], [1, 0])


def test_a_run_begun_anew_in_another_place_is_a_new_one(composed, backend, tmp_path):
    for place in ("here", "there"):
        with failing_at("sky"), pytest.raises(OSError):
            toy.run(composed("logger=wandb", f"paths.runs={tmp_path / place}"))
    assert len({name.rsplit("-", 1)[0] for name in backend.runs}) == 1
    assert len(backend.runs) == 2


def test_a_run_that_is_told_to_stop_says_that_it_will_go_on(composed, backend):
    number = iter(range(1, 1000))

    def tell(call):
        if next(number) == 2:
            limit = time.monotonic() + 120
            while not backend.runs and time.monotonic() < limit:  # the server knows the run
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)

    with toy.count_model_calls(tell), pytest.raises(SystemExit) as stopped:
        toy.run(composed("logger=wandb"))
    (run,) = backend.runs.values()
    assert run.exits == [stopped.value.code] == [128 + signal.SIGTERM]
    assert run.preempting


def test_within_a_sweep_the_agent_chooses_id_and_project(composed, backend, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abcdefgh")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    monkeypatch.setenv("WANDB_PROJECT", "the_sweeps")
    with failing_at("sky"), pytest.raises(OSError):
        toy.run(composed("logger=wandb", "logger.project=mine"))
    ((name, run),) = backend.runs.items()
    assert (name, run.about["sweep"], run.about["project"]) == ("chosen", "abcdefgh", "the_sweeps")


def test_a_sweep_is_told_of_a_run_that_was_finished_before(composed, backend, monkeypatch):
    directory = toy.run(composed("logger=none")).directory
    results = toy.read_results(directory)
    ours = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    monkeypatch.setenv("WANDB_SWEEP_ID", "abcdefgh")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    with toy.count_model_calls(lambda number: pytest.fail("the model was used")):
        toy.run(composed("logger=none"))
        assert not backend.runs
        toy.run(composed("logger=wandb"))
    ((name, run),) = backend.runs.items()
    assert (name, run.about["sweep"], run.exits) == ("chosen", "abcdefgh", [0])
    for metric, value in results["metrics"].items():
        assert run.summary[f"continual/{metric}"] == value
    assert set(run.artifacts.values()) == {"report"}
    assert {path: path.read_bytes() for path in ours} == ours, "telling changes nothing"


@pytest.mark.parametrize(
    "logger",
    [
        "logger=csv",
        "logger=tensorboard",
        "logger=mlflow",
        "logger=wandb logger.mode=offline",
        "logger=wandb logger.mode=disabled",
    ],
)
def test_no_logger_changes_a_number_or_an_answer(composed, logger, tmp_path):
    def numbers(*overrides):
        kept = toy.kept(toy.run(composed(*overrides)).directory)
        del kept["results.json"]["config"]["logger"]
        return kept

    without, told = numbers(f"paths.runs={tmp_path / 'without'}"), numbers(*logger.split())
    extra = {f"tasks/{stage}/log/metrics.csv" for stage in ("01-sky", "02-sea")}
    assert set(told) - set(without) == (extra if logger == "logger=csv" else set())
    assert {key: told[key] for key in without} == without


def test_disabled_leaves_nothing_and_tells_nobody(composed, backend):
    directory = toy.run(composed("logger=wandb", "logger.mode=disabled")).directory
    assert not (directory / "wandb").exists()
    assert not backend.runs


def refused(capsys, cfg, message):
    """Refuse before anything is trained, in one line."""
    with pytest.raises(ConfigError, match=message) as told:
        toy.run(cfg)
    assert "\n" not in str(told.value)
    assert not [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: W&B")]


def test_a_mode_that_there_is_not_is_refused(capsys, composed):
    refused(
        capsys, composed("logger=wandb", "logger.mode=ofline"), "logger.mode must be one of .* Did you mean 'offline'?"
    )


def test_a_damaged_id_is_refused_with_its_file(composed, capsys):
    cfg = composed(*OFFLINE)
    folder = launch.run_directory(cfg, validate(cfg)) / "wandb"
    folder.mkdir(parents=True)
    (folder / "id").write_bytes(b"abc\xff/..")
    refused(capsys, cfg, "wandb/id holds no id of a W&B run; remove it")


def test_without_the_package_its_installation_is_named_before_the_data_are_read(
    composed, capsys, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    cfg = composed("logger=wandb", f"benchmark.reader.folder={tmp_path / 'nowhere'}")
    refused(capsys, cfg, re.escape("pip install -e '.[wandb]'"))


def test_without_a_login_the_run_is_refused_before_training(composed, capsys):
    with toy.count_model_calls(lambda number: pytest.fail("the model was used")):
        refused(capsys, composed("logger=wandb"), "`wandb login`.*logger.mode=offline")


def test_of_several_processes_the_first_alone_tells(composed, monkeypatch):
    node = composed(*OFFLINE).logger
    assert type(make_tracker(node)) is WandbTracker
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert type(make_tracker(node)) is Tracker
