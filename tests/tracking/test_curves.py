"""TensorBoard's event files and MLflow's store after a run, read with their own clients: each point once, whatever happened."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from lightning.pytorch.utilities import rank_zero_only
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from see_lightning.config.search_path import CONF
from see_lightning.config.validation import validate
from see_lightning.engine import curve_tracker, launch
from see_lightning.engine.mlflow_tracker import MlflowTracker, _client
from see_lightning.engine.preemption import StopSignal
from see_lightning.engine.tracker import Tracker, make_tracker
from see_lightning.errors import ConfigError, Refusal
from see_lightning.methods.method import Method
from see_lightning.reporting.runs import find_runs
from tests.runs import toy
from tests.tracking.conftest import TWO_TASKS, promised

BOTH = ("tensorboard", "mlflow")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """MLflow as on a machine without a server."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty SQLite store of MLflow, whose creation takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    _client(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(database, tmp_path):
    """The store of the runs of this test."""
    (tmp_path / "runs").mkdir()
    return Path(shutil.copy(database, tmp_path / "runs" / "mlflow.db"))


def events(directory):
    """What TensorBoard reads in a run directory."""
    return EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def curves(directory, logger):
    """The points of every curve, (step, value) in the order of their reports."""
    if logger == "tensorboard":
        read = events(directory)
        return {tag: [(point.step, point.value) for point in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    client, (run,) = runs_of(directory)
    points = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: sorted((point.step, point.value) for point in some) for name, some in points.items()}


def runs_of(directory):
    """MLflow's client, and its runs of all experiments."""
    client = MlflowClient(f"sqlite:///{directory.parents[3] / 'mlflow.db'}")
    return client, client.search_runs([one.experiment_id for one in client.search_experiments()])


def shown_settings(directory):
    """The settings on TensorBoard's page HParams, which are written once, as is the end of a finished run."""
    files = sorted((directory / "tensorboard").iterdir())
    written = [value for file in files for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    start, *end = [value for value in written if value.tag.startswith("_hparams_")]
    assert [value.tag for value in end] == ["_hparams_/session_end_info"]
    values = HParamsPluginData.FromString(start.metadata.plugin_data.content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def expected(directory, logger):
    """The points that a run reports beside those of training."""
    results = toy.read_results(directory)
    points = {}
    for after, row in enumerate(results["matrix"], start=1):
        for task, score in zip(results["tasks"], row, strict=True):
            if score is not None:
                points.setdefault(f"eval/{task}", []).append((after, score))
                points[f"eval/after{'_' if logger == 'mlflow' else '='}{after}/{task}"] = [(after, score)]
    for name, value in results["metrics"].items():
        points[f"continual/{name}"] = [(len(results["tasks"]), value)]
    points["route/accuracy"] = [(len(results["tasks"]), results["routing"]["accuracy"])]
    return points


def check(directory, logger):
    """Every point is there once, with the value of the run's files."""
    found, results = curves(directory, logger), toy.read_results(directory)
    for name, points in expected(directory, logger).items():
        assert found[name] == [(step, pytest.approx(value)) for step, value in points], name
    for task, steps in zip(results["tasks"], results["counts"]["steps"], strict=True):
        for metric in ("loss", "tokens_per_s", "epoch"):
            assert [step for step, _ in found[f"train/{task}/{metric}"]] == list(range(steps)), (task, metric)
    return found


@pytest.mark.parametrize("logger", BOTH)
def test_a_run_shows_the_names_of_the_documents_and_no_other(composed, store, logger):
    directory = toy.run(composed(f"logger={logger}", "valid_size=1")).directory
    found = check(directory, logger)
    shown = {re.sub("after[=_][12]", "after=<t>", re.sub("sky|sea", "<task>", name)) for name in found}
    assert shown == {name for name in promised() if "/" in name and not name.startswith("picture/")} - {
        "train/<task>/step"
    }


def test_mlflow_shows_settings_tags_and_the_report(composed, store):
    directory = toy.run(composed("logger=mlflow")).directory
    results, (order, *name) = toy.read_results(directory), directory.parts[-4:]
    client, (run,) = runs_of(directory)
    assert (run.info.run_name, run.info.status) == ("/".join(name), "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == order
    told = {"method": "see", "key": name[1], "seed": "3", "commit": results["commit"]}
    assert told.items() <= run.data.tags.items()
    assert float(run.data.params["optim.lr"]) == results["config"]["optim"]["lr"]
    assert run.data.params["order.tasks"] == '["sky", "sea"]'
    assert not [name for name in run.data.params if name.startswith("logger")], "a store may have a password"
    artifacts = directory.parents[3] / "mlartifacts" / run.info.run_id / "artifacts"
    for file in ("results.json", "report.html"):
        assert (artifacts / file).read_text() == (directory / file).read_text()
    assert {path.name for path in artifacts.glob("picture/*")} == {"matrix.html", "routing.html"}
    assert find_runs([directory.parents[3]]) == ([directory / "results.json"], []), "copies are no runs"


def test_tensorboard_shows_settings_and_the_matrix(composed):
    directory = toy.run(composed("logger=tensorboard")).directory
    results, shown = toy.read_results(directory), shown_settings(directory)
    told = {"method": "see", "key": directory.parent.name, "commit": results["commit"], "seed": 3.0}
    assert told.items() <= shown.items()
    assert shown["optim.lr"] == results["config"]["optim"]["lr"]
    (text,) = events(directory).Tensors("report/matrix/text_summary")
    assert text.tensor_proto.string_val[0].decode().startswith("| after | sky | sea |\n")


def at_step(number, do):
    """A patch under which something happens before a training step of the run, counted from 1."""
    step, steps = Method.training_step, iter(range(1, sys.maxsize))

    def training_step(method, batch, batch_idx):
        if next(steps) == number:
            do()
        return step(method, batch, batch_idx)

    return patch.object(Method, "training_step", training_step)


LONG = "optim.epochs=6"


@pytest.mark.parametrize("logger", BOTH)
def test_a_stopped_run_goes_on_in_its_record_and_no_point_is_there_twice(composed, store, logger):
    cfg = composed(f"logger={logger}", LONG)
    first = patch.object(curve_tracker, "MOST", 1)  # every point is sent at once
    with first, at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(SystemExit):
        toy.run(cfg)
    (ledger,) = store.parent.glob("*/*/*/*/ledger.json")
    assert len(curves(ledger.parent, logger)["train/sky/loss"]) > 1
    if logger == "mlflow":
        assert runs_of(ledger.parent)[1][0].info.status == "KILLED"
        known = (ledger.parent / "mlflow" / "id").read_text()
    directory = toy.run(cfg).directory
    check(directory, logger)
    if logger == "mlflow":
        (run,) = runs_of(directory)[1]
        assert (run.info.run_id, run.info.status) == (known, "FINISHED")
    else:
        shown_settings(directory)


@pytest.mark.parametrize("logger", BOTH)
def test_a_run_that_is_killed_and_broken_off_again_and_again_ends_with_the_same_record(
    composed, store, logger, tmp_path
):
    cfg = composed(f"logger={logger}", LONG)

    def killed():
        with patch.object(curve_tracker, "MOST", 1), at_step(5, lambda: (time.sleep(3), toy.die())):
            toy.run(cfg)

    assert toy.forked(killed, tmp_path / "log") == -signal.SIGKILL, (tmp_path / "log").read_text()
    seen, interruptions = toy.broken_off(cfg)
    assert interruptions > 2
    check(seen.directory, logger)
    if logger == "mlflow":
        assert [run.info.status for run in runs_of(seen.directory)[1]] == ["FINISHED"]


@pytest.mark.parametrize("logger", BOTH)
def test_a_finished_run_that_is_reported_again_adds_what_has_changed_alone(composed, store, logger):
    cfg = composed(f"logger={logger}")
    directory = toy.run(cfg).directory
    before = check(directory, logger)
    results = toy.read_results(directory)
    results["metrics"]["AR"] += 1
    with make_tracker(cfg.logger) as tracker:
        tracker.open(directory, toy.read_results(directory)["config"], StopSignal())
        tracker.finish(results, directory / "report.html")
    after = curves(directory, logger)
    assert [value for _, value in after.pop("continual/AR")][-1] == pytest.approx(results["metrics"]["AR"])
    before.pop("continual/AR")
    assert after == before
    if logger == "tensorboard":
        assert len(events(directory).Tensors("report/matrix/text_summary")) == 1


def test_a_run_that_was_deleted_in_mlflow_is_a_new_one_there(composed, store):
    cfg = composed("logger=mlflow")
    with at_step(1, lambda: exec("raise OSError")), pytest.raises(OSError):
        toy.run(cfg)
    (ledger,) = store.parent.glob("*/*/*/*/ledger.json")
    client, (run,) = runs_of(ledger.parent)
    assert run.info.status == "FAILED"
    client.delete_run(run.info.run_id)
    directory = toy.run(cfg).directory
    (other,) = runs_of(directory)[1]
    assert other.info.run_id != run.info.run_id
    check(directory, "mlflow")


def sweep(data, folder, *overrides):
    """The directories of a multirun over two seeds, begun in a folder as a user begins it."""
    settings = [setting for setting in toy.SETTINGS if not setting.startswith("seed")]
    command = [*settings, *TWO_TASKS, f"benchmark.reader.folder={data}", "seed=1,2", "-m", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, str(CONF.parent / "run.py"), *command],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not re.search("INFO|WARNING|MLflow|mlflow|TensorBoard", done.stderr), "the client prints nothing"
    return sorted((folder / "runs" / "jsonl" / "see").glob("*/seed=*"))


def test_each_seed_of_a_sweep_is_a_run_of_its_own_in_a_store_that_the_first_creates(data, tmp_path):
    directories = sweep(data, tmp_path, "logger=mlflow")
    _, runs = runs_of(directories[0])
    assert {run.info.run_name for run in runs} == {"/".join(one.parts[-3:]) for one in directories}
    assert {run.data.params["seed"] for run in runs} == {"1", "2"}
    assert len({run.info.experiment_id for run in runs}) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"runs"}, "nothing beside the runs"


@pytest.mark.nightly
def test_each_seed_of_a_sweep_has_a_tensorboard_of_its_own(data, tmp_path):
    directories = sweep(data, tmp_path, "logger=tensorboard")
    assert [shown_settings(one)["seed"] for one in directories] == [1, 2]
    for directory in directories:
        check(directory, "tensorboard")


@pytest.mark.nightly
def test_two_runs_may_create_the_store_at_the_same_time_and_a_kill_leaves_none_that_is_unusable(tmp_path):
    code = f"from see_lightning.engine.mlflow_tracker import _client; _client('sqlite:///{tmp_path}/mlflow.db').create_run('0')"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as killed:
        time.sleep(4)  # in the midst of its creation, or before
        killed.kill()
    assert not (tmp_path / "mlflow.db").exists() or killed.returncode == 0
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["0"])) == 2


@pytest.mark.parametrize(
    ("logger", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("mlflow", "alembic")]
)
def test_without_the_package_its_installation_is_named_before_the_data_are_read(
    composed, monkeypatch, tmp_path, logger, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=re.escape(f"pip install -e '.[{logger}]'")):
        toy.run(composed(f"logger={logger}", f"benchmark.reader.folder={tmp_path / 'nowhere'}"))


def test_a_server_needs_the_client_alone(composed, monkeypatch):
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    assert (
        type(make_tracker(composed("logger=mlflow", "logger.tracking_uri=http://localhost:1").logger)) is MlflowTracker
    )


def test_a_password_on_the_command_line_is_refused(composed):
    with pytest.raises(ConfigError, match="has a user or a password.*MLFLOW_TRACKING_URI"):
        toy.run(composed("logger=mlflow", "logger.tracking_uri=http://me:secret@127.0.0.1:9"))


@pytest.mark.parametrize("logger", BOTH)
def test_of_several_processes_the_first_alone_tells(composed, monkeypatch, logger):
    node = composed(f"logger={logger}").logger
    assert isinstance(make_tracker(node), curve_tracker.CurveTracker)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert type(make_tracker(node)) is Tracker


def test_a_damaged_id_and_links_are_refused_before_anything_is_written(composed, tmp_path):
    directory = launch.run_directory(cfg := composed("logger=mlflow"), validate(cfg))
    (directory / "mlflow").mkdir(parents=True)
    (directory / "mlflow" / "id").write_bytes(b"abc\xff/..")
    with pytest.raises(ConfigError, match="mlflow/id holds no id of a MLflow run; remove it"):
        toy.run(cfg)
    (directory / "tensorboard").symlink_to(tmp_path)
    with pytest.raises(Refusal, match="tensorboard is a symbolic link"):
        toy.run(composed("logger=tensorboard"))
    assert not [*tmp_path.glob("events*")]
