"""Jobs on a real Slurm of four nodes: started, told to stop, preempted, killed; the results are those of one process."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.runs import toy
from tests.slurm.cluster import Cluster, missing

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
# Without dropout, and with small steps, the number of ranks decides nothing.
CALM = ("adapter.dropout=0", "model.dtype=fp32", "optim.lr=4e-3")
SLOW = ("logger=csv", "logger.logger._target_=tests.slurm.slow.SlowLogger")


@pytest.fixture(scope="module")
def cluster():
    assert not missing(), f"install slurm-wlm and munge; missing: {', '.join(missing())}"
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path must be short
    made = Cluster(folder / "c", nodes=4)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return toy.write_tasks(tmp_path_factory.mktemp("toy") / "data")


def settings(data: Path, *more: str) -> list[str]:
    plain = [setting for setting in toy.SETTINGS if not setting.startswith("seed=")]
    return [*plain, *CALM, f"benchmark.reader.folder={data}", "method=see", *more]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> dict[str, object]:
    """One process, undisturbed."""
    folder = tmp_path_factory.mktemp("alone")
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *settings(data)], cwd=folder, capture_output=True, text=True, check=True
    )
    return outcome(Path(folder / done.stdout.splitlines()[-1]).parent)


def outcome(directory: Path) -> dict[str, object]:
    results = toy.read_results(directory)
    return {
        "matrix": results["matrix"],
        "metrics": results["metrics"],
        "routing": results["routing"]["confusion"],
        "answers": toy.read_answers(directory),
    }


def submit(cluster: Cluster, folder: Path, *arguments: str, nodes: int = 2) -> str:
    """The id of a job, submitted as a user would."""
    told = cluster.out(
        "bash", "-c", 'cd "$0" && "$@"', str(folder), str(ROOT / "sweeps/run.sbatch"),
        f"--nodes={nodes}", "--ntasks-per-node=1", "--partition=low", f"--output={folder}/job.log", *arguments,
        PYTHON=sys.executable, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    return re.search(r"Submitted batch job (\d+)", told)[1]


def run_directory(folder: Path) -> Path:
    (found,) = (path.parent for path in folder.glob("runs/*/*/*/seed=*/ledger.json"))
    return found


def begun(folder: Path) -> bool:
    """Whether the first stage is trained and answered, and the run goes on."""
    ledgers = list(folder.glob("runs/*/*/*/seed=*/ledger.json"))
    return bool(ledgers) and len(json.loads(ledgers[0].read_text())["stages"]) > 1


@pytest.mark.nightly
@pytest.mark.parametrize("nodes", [2, 4])
def test_a_run_on_several_nodes_gives_the_answers_and_metrics_of_one_process(cluster, data, alone, tmp_path, nodes):
    job = submit(cluster, tmp_path, "--", *settings(data), nodes=nodes)
    assert cluster.wait(job) == "COMPLETED", (tmp_path / "job.log").read_text()[-3000:]
    directory = run_directory(tmp_path)
    assert outcome(directory) == alone
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty(\.[0-9a-f]{8})?)?", str(toy.read_results(directory)["commit"])), (
        "that of the copied code"
    )
    log = (tmp_path / "job.log").read_text()
    assert log.splitlines()[-1].endswith("results.json")
    assert log.count("results.json") == 1


@pytest.mark.nightly
def test_told_that_time_is_up_a_job_stops_requeues_itself_and_goes_on(cluster, data, alone, tmp_path):
    job = submit(cluster, tmp_path, "--", *settings(data), *SLOW)
    cluster.until(lambda: begun(tmp_path), 120)
    cluster.out("scancel", "--signal=USR1", job)
    assert cluster.wait(job) == "COMPLETED", (tmp_path / "job.log").read_text()[-3000:]
    assert "stopped by a signal" in (tmp_path / "job.log").read_text()
    assert "Restarts=1" in cluster.out("scontrol", "show", "job", job)
    assert outcome(run_directory(tmp_path)) == alone


@pytest.mark.nightly
def test_preempted_by_another_job_it_is_requeued_by_slurm_and_goes_on(cluster, data, alone, tmp_path):
    job = submit(cluster, tmp_path, "--", *settings(data), *SLOW)
    cluster.until(lambda: begun(tmp_path), 120)
    cluster.out("srun", "--partition=high", "--nodes=4", "--exclusive", "--job-name=urgent", "true")
    assert cluster.wait(job) == "COMPLETED", (tmp_path / "job.log").read_text()[-3000:]
    assert "Restarts=1" in cluster.out("scontrol", "show", "job", job)
    assert outcome(run_directory(tmp_path)) == alone


@pytest.mark.nightly
def test_cancelled_a_job_stops_in_good_order_and_is_not_requeued(cluster, data, tmp_path):
    job = submit(cluster, tmp_path, "--", *settings(data), *SLOW)
    cluster.until(lambda: begun(tmp_path), 120)
    cluster.out("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    shown, log = cluster.out("scontrol", "show", "job", job), (tmp_path / "job.log").read_text()
    assert "ExitCode=0:15" in shown
    assert "Restarts=0" in shown
    assert "stopped by a signal" in log
    assert "task 0: Exited with exit code 143" in log


@pytest.mark.nightly
def test_a_killed_rank_ends_the_job_and_the_same_submission_goes_on(cluster, data, alone, tmp_path):
    job = submit(cluster, tmp_path, "--", *settings(data), *SLOW)
    cluster.until(lambda: begun(tmp_path), 120)
    (victim, *_) = ranks_of(job)
    os.kill(victim, 9)
    started = time.monotonic()
    assert cluster.wait(job) == "FAILED"
    # srun tells the largest code: that of the killed rank, or of the other, if srun ended it before it saw what had happened.
    told = cluster.out("scontrol", "show", "job", job)
    assert "ExitCode=137:0" in told or "ExitCode=143:0" in told, told
    assert time.monotonic() - started < 60
    again = submit(cluster, tmp_path, "--", *settings(data))
    assert cluster.wait(again) == "COMPLETED", (tmp_path / "job.log").read_text()[-3000:]
    assert outcome(run_directory(tmp_path)) == alone


def ranks_of(job: str) -> list[int]:
    """Processes of a job's ranks on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_JOB_ID={job}".encode() in variables and words[1:2] and words[1].endswith(b"/run.py") and (
            b"python" in words[0]
        ):  # fmt: skip
            found.append(int(folder.name))
    return sorted(found)


@pytest.mark.nightly
def test_an_array_is_a_job_for_each_seed(cluster, data, tmp_path):
    job = submit(cluster, tmp_path, "--nodes=1", "--array=0-1", "--", *settings(data, "order.tasks=[sky]"))
    for index in (0, 1):
        assert cluster.wait(f"{job}_{index}") == "COMPLETED", (tmp_path / "job.log").read_text()[-3000:]
    assert sorted(path.parent.name for path in tmp_path.glob("runs/*/*/*/*/results.json")) == ["seed=0", "seed=1"]


@pytest.mark.nightly
def test_a_multirun_of_three_jobs_through_submitit_lands_in_three_run_directories(cluster, data, tmp_path):
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "run.py"), "-m", *settings(data, "order.tasks=[sky]"), "seed=0,1,2",
            "hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "hydra.launcher.timeout_min=10",
            "hydra.launcher.cpus_per_task=1", f"hydra.launcher.submitit_folder={tmp_path}/submitit/%j",
        ],
        cwd=tmp_path, env={**cluster.env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.parent.name for path in tmp_path.glob("runs/*/*/*/*/results.json")) == [
        "seed=0", "seed=1", "seed=2",
    ]  # fmt: skip
