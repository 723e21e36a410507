"""Whatever befalls W&B, its client or a logger, a run is the same, ends in time, and says what is kept."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest
from lightning.pytorch.loggers import CSVLogger

from see_lightning.config.validation import validate
from see_lightning.engine import launch
from tests.nightly import all_but
from tests.runs import toy
from tests.tracking.conftest import TWO_TASKS

FEW = "optim.epochs=2"


def quick(seconds):
    """Settings of a run that waits so long for W&B."""
    return "logger=wandb", f"logger.timeout={seconds}", FEW


def numbers(directory):
    """What must not depend on who is told of a run."""
    kept = toy.kept(directory)
    del kept["results.json"]["config"]["logger"]
    return {name: content for name, content in kept.items() if "/log/" not in name}


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The numbers of a run that nobody is told of."""
    return numbers(toy.run(toy.compose(data, tmp_path_factory.mktemp("undisturbed"), *TWO_TASKS, FEW)).directory)


def children(parents, name):
    """The processes of that name that some have started."""
    command = ["pgrep", "-P", ",".join(map(str, parents)), "-f", name]
    return [int(line) for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()]


def cores():
    """The processes of W&B's core that this one has started through its client."""
    return children(children([os.getpid()], "wandb_client"), "wandb-core")


def failing(backend, how, runs):
    """A patch under which W&B fails when the model is used first, after a run has begun there."""

    def before(call):
        if call != 1:
            return
        until = time.monotonic() + 20
        while not list(runs.glob("*/*/*/*/wandb/id")) and time.monotonic() < until:
            time.sleep(0.05)
        if how == "killed":
            os.kill(cores()[0], signal.SIGKILL)
        else:
            backend.failing = how

    return toy.count_model_calls(before)


def run_of(cfg, capsys):
    """The run's directory, the notices, and the seconds from its results to its end."""
    directory = toy.run(cfg).directory
    waited = time.time() - (directory / "results.json").stat().st_mtime
    return directory, re.findall("note: (?:W&B|Raising|Hanging|MLflow|TensorBoard).*", capsys.readouterr().err), waited


def check_sent(notice, directory, backend, *, whole=True):
    """Do what a notice tells, and find the run where it belongs."""
    backend.failing = None
    command = shlex.split(notice.split("send it with: ")[1])
    subprocess.run([sys.executable, "-m", *command], cwd=directory, check=True, capture_output=True)
    (run,) = backend.runs.values()
    results = toy.read_results(directory)
    assert run.summary["continual/AR"] == results["metrics"]["AR"]
    assert set(run.artifacts.values()) == {"report"}
    losses = [key for row in run.history for key in row if re.fullmatch("train/.*/loss", key)]
    if whole:
        assert [losses.count(f"train/{task}/loss") for task in ("sky", "sea")] == results["counts"]["steps"]


@pytest.mark.parametrize("how", all_but(["500"], ["500", "hang", "close", "401", "slow", "killed"]))
def test_an_outage_changes_no_number_and_is_told_once(composed, backend, capsys, undisturbed, tmp_path, how):
    limit = 8 if how == "killed" else 3  # another client needs some seconds to begin
    with failing(backend, how, tmp_path / "runs"):
        directory, notices, waited = run_of(composed(*quick(limit)), capsys)
    assert numbers(directory) == undisturbed
    assert waited < limit + 2
    assert not children([os.getpid()], "wandb_client")
    (notice,) = notices
    if how in ("500", "401", "killed"):  # what W&B's core had not written when it was killed is lost
        check_sent(notice, directory, backend, whole=how != "killed")


@pytest.mark.nightly
def test_a_server_that_does_not_answer_from_the_start_on_gets_everything_later(composed, backend, capsys, undisturbed):
    backend.failing = "hang"
    directory, notices, waited = run_of(composed(*quick(10)), capsys)
    assert numbers(directory) == undisturbed
    assert waited < 10 + 2
    (notice,) = notices
    check_sent(notice, directory, backend)


def test_a_finished_run_is_reported_to_a_sweep_or_at_least_to_its_user(composed, backend, capsys, monkeypatch):
    directory = toy.run(composed("logger=none", FEW)).directory
    monkeypatch.setenv("WANDB_SWEEP_ID", "abcdefgh")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    backend.failing = "401"
    capsys.readouterr()
    toy.run(composed(*quick(10)))
    told = capsys.readouterr()
    assert len(re.findall("note: W&B.*401.*wandb sync", told.err)) == 1
    assert told.out.splitlines()[-1] == str(directory / "results.json")


@pytest.mark.nightly
@pytest.mark.parametrize("told", all_but([signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]))
def test_a_signal_ends_the_wait_for_a_server(composed, backend, tmp_path, told):
    log = tmp_path / "log"

    def appears(pattern):
        until = time.monotonic() + 60
        while not list(tmp_path.glob(pattern)):
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with toy.count_model_calls(lambda call: appears("hangs") if call == 1 else None):
            toy.run(composed(*quick(60)))

    process = toy.start(work, log)
    appears("runs/*/*/*/*/wandb/id")
    backend.failing = "hang"
    (tmp_path / "hangs").touch()
    appears("runs/*/*/*/*/results.json")
    time.sleep(1)
    started = time.monotonic()
    os.kill(process, told)
    (code,) = toy.ended([process])
    assert code == (143 if told == signal.SIGTERM else 1), (
        log.read_text()
    )  # what is raised by Ctrl-C ends Python with 130
    assert time.monotonic() - started < 5
    assert "wandb sync" in log.read_text()


def test_the_client_ends_with_a_run_that_is_killed_though_it_waits_for_a_server(composed, backend, tmp_path):
    def work():
        with toy.count_model_calls(lambda call: time.sleep(60)):
            toy.run(composed(*quick(60)))

    backend.failing = "hang"
    process = toy.start(work, tmp_path / "log")
    until = time.monotonic() + 60
    while not (started := children(children([process], "wandb_client"), "wandb-core")):
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    toy.ended([process])
    until = time.monotonic() + 5
    while os.path.exists(f"/proc/{started[0]}/exe"):
        assert time.monotonic() < until
        time.sleep(0.05)


class Raising(CSVLogger):
    """A user's own, whose server is gone."""

    def log_metrics(self, *_):
        raise ConnectionError("nobody\nthere")


class Hanging(CSVLogger):
    """A user's own, whose server does not answer."""

    def log_metrics(self, *_):
        time.sleep(3600)


@pytest.mark.parametrize("logger", all_but([Hanging], [Raising, Hanging]))
def test_a_logger_of_ones_own_that_fails_is_a_notice(composed, capsys, undisturbed, logger):
    target = f"logger.logger._target_={__name__}.{logger.__name__}"
    directory, notices, waited = run_of(composed("logger=csv", "logger.timeout=1", FEW, target), capsys)
    assert numbers(directory) == undisturbed
    assert waited < 3
    (notice,) = notices
    assert ("nobody" if logger is Raising else "is not waited for") in notice


@pytest.mark.parametrize("listens", all_but([False], [False, True]))
def test_a_server_of_mlflow_that_refuses_or_does_not_answer_is_a_notice(
    composed, capsys, undisturbed, monkeypatch, listens
):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        url = f"http://me:secret@127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        cfg = composed("logger=mlflow", "logger.timeout=1", FEW)
        directory, notices, waited = run_of(cfg, capsys)
    assert numbers(directory) == undisturbed
    assert waited < 3
    (notice,) = notices
    assert "is not waited for; its last reports may be missing from http://127.0.0.1:" in notice
    assert not [path for path in directory.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def test_a_server_that_gives_up_is_a_notice_without_its_password(composed, capsys, undisturbed, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    directory, notices, _ = run_of(composed("logger=mlflow", FEW), capsys)
    assert numbers(directory) == undisturbed
    (notice,) = notices
    assert re.search("MLflow failed.*http://127.0.0.1:9.*Connection refused.*the run goes on", notice)


@pytest.mark.parametrize("logger", ["tensorboard", "mlflow"])
def test_a_folder_that_cannot_be_written_is_a_notice(composed, capsys, undisturbed, logger):
    store = ["logger.tracking_uri=sqlite:////dev/null/mlflow.db"] if logger == "mlflow" else []
    cfg = composed(f"logger={logger}", FEW, *store)
    if logger == "tensorboard":
        directory = launch.run_directory(cfg, validate(cfg))
        directory.mkdir(parents=True)
        (directory / "tensorboard").touch()
    directory, notices, _ = run_of(cfg, capsys)
    assert numbers(directory) == undisturbed
    (notice,) = notices
    assert "failed and gets no further reports: " in notice
    assert "the run goes on" in notice


def test_a_store_that_is_lost_during_the_run_is_a_notice(composed, capsys, undisturbed, tmp_path):
    def lose(call):
        until = time.monotonic() + 60
        while call == 2 and not list(tmp_path.glob("runs/*/*/*/*/mlflow/id")) and time.monotonic() < until:
            time.sleep(0.05)
        if call == 2:
            (tmp_path / "runs" / "mlflow.db").write_bytes(b"no database" * 1000)

    with toy.count_model_calls(lose):
        directory, notices, _ = run_of(composed("logger=mlflow", FEW), capsys)
    assert numbers(directory) == undisturbed
    (notice,) = notices
    assert "MLflow failed and gets no further reports: " in notice
