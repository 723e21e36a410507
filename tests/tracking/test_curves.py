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
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from see_lightning.config.search_path import CONF
from see_lightning.engine.mlflow_tracker import MlflowTracker, _client
from see_lightning.engine.record import commit
from see_lightning.engine.tensorboard_tracker import TensorboardTracker
from see_lightning.engine.tracker import Tracker, make_tracker
from see_lightning.errors import ConfigError, Refusal
from see_lightning.methods.see import See
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


def start(directory):
    """The settings that TensorBoard's HParams page shows."""
    (event,) = (events(directory).Tensors("_hparams_/session_start_info"),)
    metadata = events(directory).SummaryMetadata("_hparams_/session_start_info")
    assert len(event) == 1
    values = HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info.hparams
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
    directory = toy.run(composed(f"logger={logger}")).directory
    found = check(directory, logger)
    shown = {re.sub("after[=_][12]", "after=<t>", re.sub("sky|sea", "<task>", name)) for name in found}
    assert shown == {name for name in promised() if "/" in name and not name.startswith("picture/")} - {
        "train/<task>/step"
    }
