"""Two ranks, of which one is killed again and again; the same command then ends with the same run, byte for byte.

All kills are made once, with temporary files on another disk than the run's where there is one, as on most clusters.
"""

import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from see_lightning.adapters.pool import ExpertPool
from see_lightning.engine import launch, start
from see_lightning.engine.ledger import LedgerError
from tests.conftest import REQUIRED
from tests.runs import toy

SETTINGS = ("order.tasks=[sky,sea]", "optim.epochs=4", "optim.lr=8e-3", "model.dtype=fp32")
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
SEEDED = 50


@dataclass
class Kills:
    """What was done to runs of two ranks, and what became of them.

    Args:
        elsewhere: where temporary files were, if on another disk than the run's.
        undisturbed: what a run ends with that nobody killed.
        moments: of making something final; at each of them the first rank was killed.
        victims: the ranks that were killed at a reading of the model, drawn by a seed.
        survivors: how the other rank ended, after every kill.
        seconds: from the start of two ranks, of which one is killed, to the end of both.
        broken: what the ledger named and did not load, after any kill.
        ends: what each run ended with.
    """

    elsewhere: Path | None
    undisturbed: dict[str, Any] = field(default_factory=dict)
    moments: list[str] = field(default_factory=list)
    victims: list[int] = field(default_factory=list)
    survivors: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def kills(base, tmp_path_factory) -> Kills:
    """First a kill at every step of every commit of one run; then seeded kills of either rank, over several runs."""
    folder = tmp_path_factory.mktemp("ranks")
    done, log, readings = Kills(toy.another_disk(folder)), folder / "log", folder / "readings"
    toy.whole(base)  # what this process has read and compiled, those that it forks need not
    draws, name = random.Random(0), ""

    @cache
    def config(name: str) -> DictConfig:
        return toy.compose(toy.data_in(base), folder / name, *SETTINGS, *TWO)

    def attempt(before: Callable[[int], None]) -> list[int]:
        """How two ranks end that each do something before they begin."""
        cfg = config(name)

        def work() -> None:
            before(int(os.environ["RANK"]))
            launch.launch(cfg, "test")

        return toy.ended(toy.start_ranks(2, work, log))

    def survived(before: Callable[[int], None], victim: int) -> bool:
        """Whether the victim was killed. If not, the run is at its end."""
        started = time.monotonic()
        ends = attempt(before)
        if ends == [0, 0]:
            done.ends.append(toy.kept(run_directory()))
            return False
        assert ends[victim] == -9, log.read_text()[-3000:]
        done.seconds.append(time.monotonic() - started)
        done.survivors.append(ends[1 - victim])
        try:
            toy.load_everything(run_directory())
        except (LedgerError, OSError, ValueError) as error:
            done.broken.append(str(error))
        return True

    def run_directory() -> Path:
        (found,) = (folder / name).glob("*/*/*/*")
        return found

    def count(rank: int) -> None:
        if rank == 0:
            toy.count_model_calls(lambda call: readings.write_text(str(call))).start()

    def commit_and_die(rank: int) -> None:
        if rank == 0:
            toy.kill_where_new(folder / "diary")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "commit", lambda: "one and the same")  # though somebody commits while we test
        # Every attempt would try the model out first, and most kills would fall into that.
        patch.setattr(ExpertPool, "choose_reading", lambda pool: None)
        if done.elsewhere:
            patch.setenv("TMPDIR", str(done.elsewhere))
            patch.setattr(tempfile, "tempdir", None)
        name = "undisturbed"
        assert attempt(count) == [0, 0], log.read_text()[-3000:]
        done.undisturbed = toy.kept(run_directory())
        name = "at every commit"
        while survived(commit_and_die, victim=0):
            assert len(done.survivors) < 200, log.read_text()[-3000:]
        done.moments = (folder / "diary").read_text().splitlines()
        while len(done.victims) < SEEDED:
            victim, moment = draws.randrange(2), draws.randint(1, int(readings.read_text()) // 2)
            name = f"seeded {len(done.ends)}"

            def read_and_die(rank: int, victim: int = victim, moment: int = moment) -> None:
                if rank == victim:
                    toy.count_model_calls(lambda call: toy.die() if call == moment else None).start()

            if survived(read_and_die, victim):
                done.victims.append(victim)
        survived(lambda rank: None, victim=0)  # the last run may still go on
    return done


def test_a_killed_rank_ends_the_other_and_the_same_command_ends_the_run(base, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "commit", lambda: "one and the same")

    def two_ranks(name: str, victim: int | None = None) -> list[int]:
        cfg = toy.compose(toy.data_in(base), tmp_path / name, *SETTINGS, *TWO)

        def work() -> None:
            if int(os.environ["RANK"]) == victim:
                toy.count_model_calls(lambda call: toy.die() if call == 12 else None).start()
            launch.launch(cfg, "test")

        return toy.ended(toy.start_ranks(2, work, tmp_path / "log"))

    assert two_ranks("undisturbed") == [0, 0], (tmp_path / "log").read_text()
    first, second = two_ranks("killed", victim=1)
    assert (first != 0, second) == (True, -9)
    assert two_ranks("killed") == [0, 0], (tmp_path / "log").read_text()
    undisturbed, killed = ((tmp_path / name).glob("*/*/*/*") for name in ("undisturbed", "killed"))
    assert toy.kept(next(killed)) == toy.kept(next(undisturbed))


@pytest.mark.nightly
def test_a_rank_killed_at_every_step_of_every_commit_changes_nothing(kills):
    whole_files = {
        "ledger.json",
        "config.yaml",
        "expert.json",
        "matrix.csv",
        "report.html",
        "results.json",
        "rows.json",
        ".lock-holder",
        "examples.jsonl",
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    appended = {"answers.jsonl", "remembered.jsonl"}
    in_a_folder = {"index.html", "index.js", "page-1.js", "after-1.js", "after-2.js"}
    assert len(kills.moments) == len(set(kills.moments)) == len(kills.survivors) - len(kills.victims)
    assert toy.kinds_of(kills.moments) == {
        (step, file) for step in ("half", "written") for file in whole_files | appended | in_a_folder
    } | {("replaced", file) for file in whole_files}
    # ledger.json: its start, two trainings, and the answers after each, of all tasks at once; three steps each.
    assert sum("ledger.json" in moment for moment in kills.moments) == 3 * 5
    assert kills.ends[0] == kills.undisturbed


@pytest.mark.nightly
def test_either_rank_killed_at_fifty_seeded_moments_changes_nothing(kills):
    assert len(kills.victims) >= 50
    assert min(kills.victims.count(rank) for rank in (0, 1)) > 15
    assert len(kills.ends) > 5, "the kills are spread over several runs"
    assert all(end == kills.undisturbed for end in kills.ends)


@pytest.mark.nightly
def test_a_rank_notices_soon_that_the_other_was_killed(kills):
    # In the end the first rank writes alone, and the other has nothing left to notice.
    assert 0 not in kills.survivors[len(kills.moments) :]
    assert max(kills.seconds) < 60


@pytest.mark.nightly
def test_with_temporary_files_on_another_disk_a_hundred_kills_leave_nothing_that_does_not_load(kills):
    if kills.elsewhere is None:
        assert "disks" not in REQUIRED, "this machine has one file system only"
        pytest.skip("needs a second file system, such as /dev/shm, for temporary files")
    assert len(kills.survivors) >= 100
    assert kills.broken == []
