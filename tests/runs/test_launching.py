"""The same run, however its processes are started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import toy

ROOT = Path(__file__).parents[2]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def command(base: Path, folder: Path, *words: str, start: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """What a user types, in an empty folder, with one task to be quick."""
    settings = [one for one in toy.SETTINGS if not one.startswith(("seed=", "order.tasks="))]
    data = f"benchmark.reader.folder={toy.data_in(base)}"
    return subprocess.run(
        [sys.executable, *(start or []), str(ROOT / "run.py"), *settings, "order.tasks=[sky]", data, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def finished(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("runs/*/*/*/*/results.json"))


@pytest.mark.nightly
@pytest.mark.parametrize("start", [None, TORCHRUN], ids=["by itself", "torchrun"])
def test_two_ranks_make_one_run_and_the_same_command_reports_it(base, tmp_path, start):
    done = command(base, tmp_path, *TWO, start=start)
    assert done.returncode == 0, done.stderr[-3000:]
    assert finished(tmp_path) == ["seed=0"]
    assert done.stdout.splitlines()[-1].endswith("seed=0/results.json")
    assert done.stdout.count("results.json") == 1
    again = command(base, tmp_path, *TWO)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    alone = command(base, tmp_path, "trainer=cpu")
    assert alone.stdout == done.stdout, "the number of processes is no part of the experiment"


@pytest.mark.nightly
def test_each_job_of_a_multirun_has_ranks_of_its_own(base, tmp_path):
    done = command(base, tmp_path, "seed=0,1", *TWO, "-m")
    assert done.returncode == 0, done.stderr[-3000:]
    assert finished(tmp_path) == ["seed=0", "seed=1"]
    assert done.stdout.count("results.json") == 2
    assert not list(tmp_path.glob("**/.hydra"))


@pytest.mark.nightly
def test_more_processes_than_the_trainer_knows_of_are_refused(base, tmp_path):
    done = command(base, tmp_path, "trainer=cpu", start=TORCHRUN)
    assert done.returncode != 0
    assert "2 processes were started, but trainer.devices x trainer.num_nodes is 1" in done.stderr
    assert finished(tmp_path) == []


@pytest.mark.nightly
def test_ranks_on_other_nodes_are_not_started_from_here(base, tmp_path):
    done = command(base, tmp_path, *TWO, "trainer.num_nodes=2")
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.startswith("error: trainer.num_nodes=2: processes on other nodes are started by srun or torchrun")
