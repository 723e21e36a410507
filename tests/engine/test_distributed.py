"""How ranks are started, watched and told to stop; each rank here is a small program."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta

import pytest

from see_lightning.engine import distributed
from see_lightning.engine.distributed import Place, Ranks, check_size, join, place, supervise
from see_lightning.errors import ConfigError
from see_lightning.frame import LAUNCHER, check_launcher
from tests.runs import toy


def program(text: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text)]


def test_each_rank_is_told_its_place_and_where_to_meet(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    code = f"""
        import os
        open(f"{tmp_path}/" + os.environ["RANK"], "w").write(" ".join(os.environ[n] for n in {names}))
    """
    assert supervise(program(code), 3) == 0
    told = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [(one[0], one[1], one[2]) for one in told] == [(str(rank), str(rank), "3") for rank in range(3)]
    assert len({(one[3], one[4]) for one in told}) == 1, "they would not meet"
    assert {one[5] for one in told} == {str(max(1, (os.cpu_count() or 1) // 3))}


def test_the_first_failure_is_the_exit_code_and_the_others_are_ended(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(distributed, "GRACE", 0.3)
    code = f"""
        import os, time
        open(f"{tmp_path}/" + os.environ["RANK"], "w").write(str(os.getpid()))
        if os.environ["RANK"] == "1":
            raise SystemExit(7)
        time.sleep(60)
    """
    started = time.monotonic()
    assert supervise(program(code), 2) == 7
    assert time.monotonic() - started < 30
    assert not alive(int((tmp_path / "0").read_text()))
    assert "the others did not follow" in capfd.readouterr().err


def test_a_rank_that_a_signal_ends_gives_the_exit_code_of_a_shell():
    assert supervise(program("import os; os.kill(os.getpid(), 9)"), 2) == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_signals_to_stop_reach_every_rank_once(tmp_path, number):
    code = f"""
        import os, signal, time
        heard = []
        signal.signal({int(number)}, lambda *_: heard.append(1))
        open(f"{tmp_path}/ready" + os.environ["RANK"], "w").close()
        end = time.monotonic() + 30
        while not heard and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)
        raise SystemExit(70 + len(heard))
    """

    def send() -> None:
        while not all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    sender = threading.Thread(target=send)
    sender.start()
    assert supervise(program(code), 2) == 71
    sender.join()
    assert signal.getsignal(number) == before


def test_a_rank_that_is_halted_hears_a_signal_to_stop(tmp_path):
    code = f"""
        import os, signal, time
        signal.signal(signal.SIGTERM, lambda *_: os._exit(71))
        open(f"{tmp_path}/ready" + os.environ["RANK"], "w").close()
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(30)
    """

    def send() -> None:
        wait_for(lambda: all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)))
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    started = time.monotonic()
    sender = threading.Thread(target=send)
    sender.start()
    assert supervise(program(code), 2) == 71
    sender.join()
    assert time.monotonic() - started < 20


@pytest.mark.nightly
def test_ranks_end_with_a_supervisor_that_is_killed(tmp_path):
    """Else they would go on, and hold the run directory, unseen."""
    rank = f"""
        import ctypes, os, runpy, signal, sys, time
        sys.argv = ["rank", "config", "command"]
        import see_lightning.engine.launch as launch
        def wait(*_):
            open(f"{tmp_path}/" + os.environ["RANK"], "w").write(str(os.getpid()))
            time.sleep(60)
        launch.launch = wait
        import see_lightning.engine.rank as rank
        rank.load_composed = lambda path: None
        rank.main()
    """
    parent = f"""
        import sys
        from see_lightning.engine.distributed import supervise
        supervise([sys.executable, "-c", {textwrap.dedent(rank)!r}], 2)
    """
    supervisor = subprocess.Popen(program(parent))
    try:
        wait_for(lambda: all((tmp_path / str(r)).exists() and (tmp_path / str(r)).read_text() for r in (0, 1)))
    finally:
        supervisor.kill()
        supervisor.wait()
    pids = [int((tmp_path / str(r)).read_text()) for r in (0, 1)]
    wait_for(lambda: not any(map(alive, pids)))


def wait_for(happened) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """A process that is dead but not yet reaped does not count."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


BATCH = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = {**BATCH, "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Place(3, 4, 1)),
        (STEP, Place(3, 4, 1)),
        (BATCH, None),
        ({**BATCH, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({**BATCH, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, Place(1, 2, 1)),
    ],
    ids=["alone", "torchrun", "srun", "a batch script", "srun of one task", "torchrun in a batch script"],
)
def test_a_processs_place_is_read_from_whoever_started_it(told, expected, monkeypatch):
    for name in [*os.environ]:
        if name.startswith("SLURM") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert place() == expected


def test_another_number_of_processes_than_configured_is_refused():
    with pytest.raises(ConfigError, match="4 processes were started, but trainer.devices x trainer.num_nodes is 2"):
        check_size(Place(0, 4, 0), 2)
    check_size(Place(0, 4, 0), 4)


def test_no_rank_leaves_before_each_has_had_its_last_exchange(tmp_path):
    """One that closes its connections earlier breaks the exchange of one that is behind it."""

    def work() -> None:
        ranks = join(place(), gpu=False)
        if ranks.first:
            time.sleep(1)
            ranks.store.set("exchanged", "yes")
        ranks.leave()
        (tmp_path / str(ranks.rank)).write_text("yes" if ranks.first or ranks.store.check(["exchanged"]) else "no")
        if ranks.first:  # which holds the store
            time.sleep(1)

    assert toy.ended(toy.start_ranks(2, work, tmp_path / "log")) == [0, 0], (tmp_path / "log").read_text()
    assert (tmp_path / "1").read_text() == "yes"


def test_a_rank_does_not_wait_for_ever_for_one_that_never_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "HURRY", 0.2)

    def work() -> None:
        ranks = join(place(), gpu=False)
        if not ranks.first:
            ranks.leave()
            ranks.store.set("left", "yes")
        else:
            ranks.store.wait(["left"], timedelta(seconds=30))

    assert toy.ended(toy.start_ranks(2, work, tmp_path / "log")) == [0, 0], (tmp_path / "log").read_text()


def test_alone_a_process_is_all_ranks():
    alone = Ranks()
    assert alone.first
    assert alone.gather("x") == ["x"]
    assert [alone.any_rank(said) for said in (True, False)] == [True, False]
    assert alone.on_rank_zero(lambda: 5) == 5
    assert alone.solo_kwargs() == {}
    alone.tell_to_stop()
    assert not alone.told_to_stop()
    with pytest.raises(ConfigError, match="why"):
        alone.on_rank_zero(refuse)


def refuse() -> None:
    raise ConfigError("why")


# ---------------------------------------------------------------------------------------------- what launchers say


@pytest.fixture
def said(monkeypatch):
    """An environment in which only this is said of other processes."""
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)

    def say(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return say


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"RANK": "", "WORLD_SIZE": ""}, None),
        ({"RANK": "", "WORLD_SIZE": "2"}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": ""}, Place(1, 2, 0)),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, Place(3, 4, 1)),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": ""}, None),
    ],
)
def test_a_variable_that_is_empty_says_nothing(said, variables, found):
    said(**variables)
    assert place() == found
    check_launcher(os.environ)
    assert not {name for name, value in variables.items() if not value} & os.environ.keys()
    assert place() == found


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_variable_that_is_no_number_is_refused_by_name(said, name):
    said(**{name: "two"})
    with pytest.raises(ConfigError, match=f"^the environment variable {name} is 'two', .* unset {name}$"):
        check_launcher(os.environ)


def test_a_place_outside_its_group_is_refused(said):
    said(RANK="2", WORLD_SIZE="2")
    with pytest.raises(ConfigError, match="names this process 2, from 0, of 2"):
        place()


def test_srun_without_tasks_per_node_is_told_how_many_there_are(said):
    said(SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="0", SLURM_STEP_NUM_NODES="2")
    with pytest.raises(ConfigError, match="srun --ntasks-per-node=2, .* trainer.devices=2 trainer.num_nodes=2"):
        check_size(place(), 1)
    said(RANK="0", WORLD_SIZE="4")
    with pytest.raises(ConfigError, match="4 processes were started, .* Under torchrun choose trainer=ddp"):
        check_size(place(), 1)
