"""A run may be killed at any moment; the same command then ends with the same run, byte for byte.

Every kill is a SIGKILL of a real process, forked from this one, in which everything is imported already.
"""

import os
import random
import signal
import time
from functools import partial

import pytest
import torch

from see_lightning.engine import launch, session, start
from see_lightning.engine.preemption import AGAIN
from tests.nightly import all_but
from tests.runs import toy


@pytest.fixture
def undisturbed(base):
    return toy.kept(toy.whole(base).directory)


@pytest.fixture
def killable(base, tmp_path, monkeypatch):
    """A run of the toy that has not begun: a function that launches it, its directory, and a log."""
    monkeypatch.setattr(start, "commit", lambda: "one and the same")  # though somebody commits while we test
    cfg = toy.compose(toy.data_in(base), tmp_path / "runs")
    directory = tmp_path / "runs" / toy.place_of(toy.whole(base).directory)

    def attempt() -> None:
        launch.launch(cfg, "test")

    return attempt, directory, tmp_path / "log"


@pytest.mark.parametrize("once", all_but([True], [True, False]), ids=["once for each kind of file", "every"])
def test_killed_at_every_step_of_every_commit_a_run_ends_as_if_it_had_not_been(undisturbed, killable, tmp_path, once):
    attempt, directory, log = killable
    diary = tmp_path / "diary"

    def attempt_and_die() -> None:
        toy.kill_where_new(diary, once)
        attempt()

    ends = [toy.forked(attempt_and_die, log)]
    while ends[-1] == -9 and len(ends) < 300:
        ends.append(toy.forked(attempt_and_die, log))
    assert ends[-1] == 0, log.read_text()[-2000:]
    moments = diary.read_text().splitlines()
    assert len(moments) == len(set(moments)) == ends.count(-9)
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
    in_a_folder = {"index.html", "index.js", "page-1.js", *(f"after-{number}.js" for number in (1, 2, 3))}
    assert toy.kinds_of(moments) == {
        (step, file) for step in ("half", "written") for file in whole_files | appended | in_a_folder
    } | {("replaced", file) for file in whole_files}
    # ledger.json: its start, three trainings, eight evaluations, and verdicts on a task not yet tested; three steps each.
    assert sum("ledger.json" in moment for moment in moments) == 3 * (1 if once else 13)
    assert toy.kept(directory) == undisturbed


@pytest.fixture(scope="module")
def readings(base, tmp_path_factory):
    """How often an undisturbed run reads its model: every training step, and every token that is answered."""
    calls = []
    with toy.count_model_calls(calls.append):
        toy.run(toy.compose(toy.data_in(base), tmp_path_factory.mktemp("counted")))
    return calls[-1]


@pytest.mark.parametrize("draw", all_but([0], range(10)))
def test_killed_in_training_or_answering_a_run_ends_as_if_it_had_not_been(undisturbed, killable, readings, draw):
    """Killed again and again, each time at another reading of the model, until an attempt gets through."""
    attempt, directory, log = killable
    moments = random.Random(draw)
    ends = [-9]
    while ends[-1] == -9:
        moment = moments.randint(1, readings)  # a later attempt has fewer left, so in the end one gets through

        def attempt_and_die(moment: int = moment) -> None:
            with toy.count_model_calls(lambda call: toy.die() if call == moment else None):
                attempt()

        ends.append(toy.forked(attempt_and_die, log))
    assert ends[-1] == 0, log.read_text()[-2000:]
    assert ends.count(-9) > 1, "no attempt was killed"
    assert toy.kept(directory) == undisturbed


@pytest.mark.parametrize("told", all_but([signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]), ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("moment", ["in training", "in answering"])
def test_a_signal_that_can_be_heard_ends_the_run_and_loses_nothing(undisturbed, killable, told, moment):
    """What a scheduler or Ctrl-C sends: the run must not go on as if its task had been trained or answered."""
    attempt, directory, log = killable

    def attempt_and_be_told() -> None:
        # A process in the background of a script may be born deaf to Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        number = iter(range(1, 1000))

        def tell(call: int) -> None:
            if torch.is_grad_enabled() == (moment == "in training") and next(number) == 12:
                os.kill(os.getpid(), told)

        with toy.count_model_calls(tell):
            attempt()

    end = toy.forked(attempt_and_be_told, log)
    assert end != 0
    assert not (directory / "results.json").exists()
    assert toy.forked(attempt, log) == 0, log.read_text()[-2000:]
    assert toy.kept(directory) == undisturbed


@pytest.mark.parametrize(("told", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, AGAIN)])
@pytest.mark.parametrize("loaded", ["read_contents", "build_tasks", "build_method"])
def test_a_signal_while_data_or_the_model_are_loaded_ends_that_at_once(killable, monkeypatch, loaded, told, code):
    attempt, directory, log = killable
    places = {"read_contents": launch, "build_tasks": session, "build_method": session}
    builds = {name: getattr(module, name) for name, module in places.items()}

    def told_while_loading(name, *given, **more):
        if name == loaded:
            os.kill(os.getpid(), told)
            for _ in range(600):  # rows, or layers
                time.sleep(0.1)
        print(name)
        return builds[name](*given, **more)

    for name, module in places.items():
        monkeypatch.setattr(module, name, partial(told_while_loading, name))
    assert toy.forked(attempt, log) == code
    *done, last, _ = log.read_text().splitlines()  # last, its exit code
    assert [line for line in done if not line.startswith("note: ")] == list(builds)[: list(builds).index(loaded)]
    assert last.startswith("stopped by a signal")
    assert not (directory / "tasks").exists(), "a stage was begun"


@pytest.mark.nightly
def test_killed_by_the_clock_a_run_ends_as_if_it_had_not_been(undisturbed, killable):
    """From outside and at no moment of our choosing: also while folders are emptied, data are read, a page is drawn."""
    attempt, directory, log = killable
    moments = random.Random(0)
    for _ in range(8):
        process = toy.start(attempt, log)
        time.sleep(moments.uniform(0.05, 1.2))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert toy.forked(attempt, log) == 0, log.read_text()[-2000:]
    assert toy.kept(directory) == undisturbed


@pytest.mark.parametrize("lost", ["the lock is deleted", "the folder is moved away"])
def test_a_run_that_lost_its_hold_to_another_stops_and_changes_nothing_there(undisturbed, killable, lost):
    attempt, directory, log = killable

    def attempt_and_lose() -> None:
        def lose(call: int) -> None:
            if call != 46:  # in the middle of training the second task
                return
            if lost == "the lock is deleted":
                (directory / ".lock").unlink()
            else:
                directory.rename(directory.with_name("moved"))
            assert toy.forked(attempt, log) == 0

        with toy.count_model_calls(lose):
            attempt()

    assert toy.forked(attempt_and_lose, log) == 1
    *_, told = log.read_text().splitlines()
    assert f"LedgerError: {directory} is no longer held by this process" in told
    assert toy.kept(directory) == undisturbed


def test_what_a_killed_run_left_half_made_is_gone_in_the_end(undisturbed, killable):
    attempt, directory, log = killable

    def attempt_and_die() -> None:
        with toy.count_model_calls(lambda call: toy.die() if call == 46 else None):
            attempt()

    assert toy.forked(attempt_and_die, log) == -9
    # The stage that was being trained: half made, and with something in it that no attempt would make.
    half_made = directory / "tasks" / "02-sea"
    assert (half_made / "examples.jsonl").exists()
    assert not (half_made / "expert").exists()
    (half_made / "expert").mkdir()
    (half_made / "expert" / "adapter_model.safetensors").write_bytes(b"torn")
    (half_made / "stray").write_text("left behind")
    assert toy.forked(attempt, log) == 0, log.read_text()[-2000:]
    assert not (half_made / "stray").exists()
    assert toy.kept(directory) == undisturbed
