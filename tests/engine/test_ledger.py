"""What is final on disk: one act each, one process at a time, and nothing damaged is taken for whole."""

import os
import random
import shutil
import signal
from unittest.mock import patch

import pytest

from see_lightning.engine import ledger as module
from see_lightning.engine.finished import Unheld
from see_lightning.engine.ledger import OURS, Ledger, LedgerError, dump
from see_lightning.errors import Refusal
from tests.runs import toy

SAID = [{**toy.SAID, "id": f"a-{number}", "key": f"{number:x}", "verdict": "neg"} for number in range(1, 8)]
RECORDS = [{**toy.ANSWER, "id": f"a-{number}", "text": "viñedo " * number} for number in range(1, 5)]


@pytest.fixture
def run(tmp_path):
    """A run directory with one trained stage and the answers to two tasks."""
    with Ledger(tmp_path / "run") as ledger:
        folder = ledger.begin("01-a")
        (folder / "expert").mkdir()
        (folder / "examples.jsonl").write_text('{"id": "a"}\n')
        (folder / "expert" / "weights").write_bytes(random.Random(0).randbytes(5000))
        ledger.commit_trained("01-a", ["examples.jsonl", "expert/weights"], {"steps": 3})
        ledger.note_answers("01-a", "a", {"answers": RECORDS[:2], "remembered": SAID[:3]}, {"score": 50.0})
        ledger.commit()
        ledger.note_answers("01-a", "b", {"answers": RECORDS[2:], "remembered": []}, {"score": 25.0})
        ledger.commit()
        ledger.note_answers("01-a", "c", {"remembered": SAID[3:]}, {"counts": {"decisions": 4}})
        ledger.commit()
    return tmp_path / "run"


def hold(directory, ready):
    """Hold a run directory until killed."""
    with Ledger(directory):
        os.write(ready, b"!")
        signal.pause()


def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path):
    heard, ready = os.pipe()
    holder = toy.start(lambda: hold(tmp_path / "run", ready), tmp_path / "log")
    try:
        assert os.read(heard, 1) == b"!"
        with (
            pytest.raises(LedgerError, match=rf"is in use by process {holder} on {os.uname().nodename}\. Wait for it"),
            Ledger(tmp_path / "run"),
        ):
            pass
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(heard)
        os.close(ready)
    with Ledger(tmp_path / "run"):  # free again, though its holder could not say so
        pass


def test_a_run_is_free_again_after_its_process_left_it(tmp_path):
    for _ in range(2):
        with Ledger(tmp_path / "run"):
            pass
    with pytest.raises(ZeroDivisionError), Ledger(tmp_path / "run"):
        raise ZeroDivisionError
    with Ledger(tmp_path / "run"):
        pass


def test_reading_needs_no_hold(run):
    with Ledger(run):
        assert Ledger(run).read().stage("01-a")["trained"]["steps"] == 3


def test_what_a_killed_writer_left_is_never_read_and_goes_at_the_next_start(run):
    content = Ledger(run).read().content

    def killed() -> None:
        with Ledger(run) as ledger, patch.object(os, "replace", lambda *_: toy.die()):
            ledger.content["stages"] = {}
            ledger.commit()

    assert toy.forked(killed, run.parent / "log") == -9
    in_a_stage = run / "tasks" / "01-a" / "expert" / ".expert.json.0123456789abcdef.tmp"
    in_a_stage.write_text('{"tor')
    of_a_user = run / ".notes.tmp"
    of_a_user.write_text("mine")
    left = {*run.glob(".ledger.json.*.tmp"), in_a_stage}
    assert len(left) == 2
    assert Ledger(run).read().content == content
    before = {path for path in run.rglob("*") if path.is_file()}
    with Ledger(run) as ledger:
        assert ledger.content == content
        assert {path for path in run.rglob("*") if path.is_file()} == before - left


def test_who_is_refused_a_run_removes_nothing_of_its_holder(run):
    with Ledger(run):
        unfinished = run / ".report.html.0123456789abcdef.tmp"
        unfinished.write_text("half a rep")
        with pytest.raises(LedgerError), Ledger(run):
            pass
        assert unfinished.exists()


def test_what_was_committed_is_read_back(run):
    ledger = Ledger(run).read()
    assert ledger.verified("01-a") == run / "tasks" / "01-a"
    assert ledger.answers("01-a") == RECORDS
    assert ledger.remembered("01-a") == SAID
    stage = ledger.stage("01-a")
    assert (list(stage["answers"]), list(stage["remembered"])) == (["a", "b"], ["a", "b", "c"])
    assert stage["answers"]["b"]["score"] == 25.0
    assert ledger.stage("02-b") == {"trained": None, "answers": {}}
    assert ledger.answers("02-b") == ledger.remembered("02-b") == []


def test_the_facts_of_a_task_are_noted_once_so_that_no_cost_is_counted_twice(run):
    stage = Ledger(run).read().stage("01-a")
    noted = {
        (kind, task): block.keys() - {"start", "end", "sha256"}
        for kind in ("answers", "remembered")
        for task, block in stage[kind].items()
    }
    assert noted == {
        ("answers", "a"): {"score"}, ("answers", "b"): {"score"}, ("remembered", "a"): set(), ("remembered", "b"): set(),
        ("remembered", "c"): {"counts"},
    }  # fmt: skip


def test_what_a_run_was_started_with_is_noted_once(tmp_path):
    with Ledger(tmp_path) as ledger:
        assert ledger.about({"command": "first"}) == {"command": "first"}
    with Ledger(tmp_path) as ledger:
        assert ledger.about({"command": "second"}) == {"command": "first"}


def damage(path, how):
    content = path.read_bytes()
    if how == "a flipped bit":
        draw = random.Random(1)
        for position in draw.sample(range(len(content)), 10):
            flipped = bytes([content[position] ^ 1 << draw.randrange(8)])
            path.write_bytes(content[:position] + flipped + content[position + 1 :])
            yield
    elif how == "a page of zeros":
        path.write_bytes(bytes(4096) + content[4096:])
        yield
    elif how == "cut":
        path.write_bytes(content[:-1])
        yield
    elif how == "longer":
        path.write_bytes(content + b"\n")
        yield
    else:
        path.unlink()
        yield


HARM = ["a flipped bit", "a page of zeros", "cut", "longer", "missing"]


@pytest.mark.parametrize("how", HARM)
@pytest.mark.parametrize("file", ["examples.jsonl", "expert/weights"])
def test_a_damaged_file_of_a_stage_is_named(run, file, how):
    path = run / "tasks" / "01-a" / file
    written = module.sha256(path)
    for _ in damage(path, how):
        found = module.sha256(path) if path.exists() else "nothing"
        with pytest.raises(LedgerError) as error:
            Ledger(run).read().verified("01-a")
        assert str(error.value).startswith(f"{path} is damaged: sha256 {written} was written, {found} is there.")


@pytest.mark.parametrize("kind", ["answers", "remembered"])
@pytest.mark.parametrize("how", ["a flipped bit", "cut", "missing"])
def test_damaged_records_are_named(run, kind, how):
    path = run / "tasks" / "01-a" / f"{kind}.jsonl"
    for _ in damage(path, how):
        with pytest.raises(LedgerError, match=rf"^{path} is damaged: the answers to '[abc]' \(bytes \d+ to \d+\)"):
            getattr(Ledger(run).read(), kind)("01-a")


@pytest.mark.parametrize("kind", ["answers", "remembered"])
def test_records_that_were_never_made_final_are_not_read_and_give_way(run, kind):
    path = run / "tasks" / "01-a" / f"{kind}.jsonl"
    whole = path.read_bytes()
    records = getattr(Ledger(run).read(), kind)("01-a")
    path.write_bytes(whole + b'{"id": "half a li')
    assert getattr(Ledger(run).read(), kind)("01-a") == records
    with Ledger(run) as ledger:
        ledger.note_answers("01-a", "d", {kind: records[:1]}, {})
        ledger.commit()
    assert path.read_bytes() == whole + whole.splitlines(keepends=True)[0]


def test_a_task_that_is_asked_once_more_keeps_what_was_final(run):
    with Ledger(run) as ledger:
        ledger.note_answers("01-a", "c", {"remembered": SAID[:2]}, {"counts": {"decisions": 2}})
        ledger.commit()
    ledger = Ledger(run).read()
    assert ledger.remembered("01-a") == [*SAID, *SAID[:2]]
    blocks = [block for block in ledger.stage("01-a")["remembered"].values() if "counts" in block]
    assert sum(block["counts"]["decisions"] for block in blocks) == 6


def test_a_task_whose_second_file_was_not_finished_has_neither(run):
    """Killed between two files: both are written, none is named."""
    append = Ledger._append
    with Ledger(run) as ledger:

        def append_first(self, stage, kind, records):
            if kind == "remembered":
                raise InterruptedError
            return append(self, stage, kind, records)

        with patch.object(Ledger, "_append", append_first), pytest.raises(InterruptedError):
            ledger.note_answers("01-a", "d", {"answers": RECORDS, "remembered": SAID}, {})
    with Ledger(run) as ledger:
        assert (ledger.answers("01-a"), ledger.remembered("01-a")) == (RECORDS, SAID)
        ledger.note_answers("01-a", "d", {"answers": RECORDS[:1], "remembered": SAID[:1]}, {})
        ledger.commit()
    ledger = Ledger(run).read()
    assert (ledger.answers("01-a"), ledger.remembered("01-a")) == ([*RECORDS, RECORDS[0]], [*SAID, SAID[0]])


@pytest.mark.parametrize("content", [b"", b'{"about": {}, "stag', b"\xff\xfe"])
def test_a_damaged_ledger_is_refused(run, content):
    (run / "ledger.json").write_bytes(content)
    with pytest.raises(Refusal, match=f"^{run / 'ledger.json'} is damaged"):
        Ledger(run).read()


def test_a_damaged_ledger_leaves_its_run_free(run):
    """The user mends it with the same process at hand: a notebook, say."""
    good = (run / "ledger.json").read_bytes()
    (run / "ledger.json").write_bytes(b"{")
    caught = None
    try:
        with Ledger(run):
            pass
    except LedgerError as error:
        caught = error  # kept, with all that its traceback holds
    assert caught is not None
    (run / "ledger.json").write_bytes(good)
    with Ledger(run) as ledger:
        assert ledger.answers("01-a") == RECORDS


def test_a_stage_is_begun_in_an_empty_folder(run):
    with Ledger(run) as ledger:
        (ledger.folder("02-b") / "expert").mkdir(parents=True)
        (ledger.folder("02-b") / "expert" / "half").write_text("made")
        assert list(ledger.begin("02-b").iterdir()) == []
        assert ledger.verified("01-a").exists()


def take_away(directory, what):
    """Let a process lose its hold without being told."""
    if what == "the lock is deleted":
        (directory / ".lock").unlink()
    elif what == "the lock is replaced":
        (directory / ".lock").unlink()
        (directory / ".lock").touch()
    else:
        directory.rename(directory.with_name("moved"))
        if what == "the folder is moved and begun anew":
            directory.mkdir()
            (directory / ".lock").touch()


WRITES = {
    "commit": lambda ledger: ledger.commit(),
    "write": lambda ledger: ledger.write(ledger.directory / "results.json", "{}"),
    "begin": lambda ledger: ledger.begin("01-a"),
    "only_final": lambda ledger: ledger.only_final("01-a", "expert"),
    "note_answers": lambda ledger: ledger.note_answers("01-a", "d", {"answers": RECORDS}, {}),
    "commit_trained": lambda ledger: ledger.commit_trained("01-a", ["examples.jsonl"], {}),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "what",
    [
        "the lock is deleted", "the lock is replaced", "the folder is moved away", "the folder is moved and begun anew",
    ],
)  # fmt: skip
def test_who_lost_its_hold_stops_before_it_writes(run, what, write):
    def files():
        return {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}

    with pytest.raises(LedgerError, match=f"^{run} is no longer held by this process") as told, Ledger(run) as ledger:  # noqa: PT012
        (run / "tasks" / "01-a" / "expert" / "not final").touch()
        take_away(run, what)
        before = files()
        WRITES[write](ledger)
    assert files() == before
    assert len(str(told.value).splitlines()) == 1
    with Ledger(run):  # the lock is not left behind
        pass


def test_a_first_start_that_lost_its_hold_removes_nothing_of_the_next_one(tmp_path):
    with pytest.raises(LedgerError), Ledger(tmp_path / "run") as ledger:  # noqa: PT012
        ledger.commit()
        take_away(tmp_path / "run", "the lock is replaced")
        ledger.commit()
    assert (tmp_path / "run" / "ledger.json").exists()


def test_a_rank_that_follows_has_no_hold_to_lose(run):
    follower = Ledger(run, writes=False)
    with follower as ledger:
        ledger.note_answers("01-a", "d", {"answers": RECORDS}, {})
        ledger.commit()
    assert Ledger(run).read().answers("01-a") == RECORDS


@pytest.mark.parametrize("name", [*OURS, "tasks/01-a", "tasks/01-a/expert", "tasks/01-a/expert/weights", "tasks/02-b"])
def test_a_link_where_something_of_ours_belongs_is_named_and_nothing_is_written(run, tmp_path, name):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "weights").write_text("mine")
    path = run / name
    if path.exists():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    is_folder = name.startswith(("tasks", "wandb", "tensorboard", "mlflow")) and not name.endswith("weights")
    path.symlink_to(precious if is_folder else precious / "weights")
    before = {one for one in run.rglob("*")}
    with pytest.raises(Refusal, match=f"^{path} is a symbolic link"), Ledger(run):
        pass
    assert {one for one in run.rglob("*")} == before
    assert (precious / "weights").read_text() == "mine"
    assert len([*precious.iterdir()]) == 1


def test_a_lock_that_is_another_file_of_the_users_keeps_its_content(run, tmp_path):
    (tmp_path / "precious").write_text("mine")
    for name in (".lock", ".lock-holder"):
        (run / name).unlink()
        os.link(tmp_path / "precious", run / name)
    with Ledger(run):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_links_of_the_users_own_above_the_run_are_followed_and_others_in_it_stay(run, tmp_path):
    (tmp_path / "linked").symlink_to(run)
    (run / "notes").symlink_to(tmp_path)
    with Ledger(tmp_path / "linked") as ledger:
        ledger.commit()
    assert (run / "notes").is_symlink()


def test_no_run_is_begun_through_a_link(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "config.yaml").write_text("mine")
    (tmp_path / "seed=1").symlink_to(precious)
    with pytest.raises(Refusal, match=f"^{tmp_path / 'seed=1'} is a symbolic link"), Ledger(tmp_path / "seed=1"):
        pass
    assert [path.name for path in precious.iterdir()] == ["config.yaml"]


def test_the_holder_is_told_by_nothing_but_process_and_machine(run, tmp_path):
    heard, ready = os.pipe()
    holder = toy.start(lambda: hold(run, ready), tmp_path / "log")
    try:
        assert os.read(heard, 1) == b"!"
        for text in ("\x1b]0;owned\x07", "process 1 on a\nb", "\udcff"):
            (run / ".lock-holder").write_bytes(text.encode(errors="surrogateescape"))
            with pytest.raises(LedgerError, match=r"is in use by another process\."), Ledger(run):
                pass
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(heard)
        os.close(ready)


def test_a_first_start_that_is_refused_leaves_the_users_notes(tmp_path):
    run = tmp_path / "see" / "0123abcd" / "seed=1"
    for notes in (False, True):
        with pytest.raises(LedgerError, match="refused"), Ledger(run) as ledger:  # noqa: PT012
            ledger.about({"command": "first"})
            (ledger.begin("01-a") / "examples.jsonl").touch()
            if notes:
                (run / "notes.txt").write_text("mine")
            raise LedgerError("refused")
        found = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
        assert found == (["see/0123abcd/seed=1/notes.txt"] if notes else [])
        assert (tmp_path / "see").exists() == notes


def test_a_run_that_is_read_without_a_hold_remembers_what_is_noted_and_writes_nothing(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with Ledger(run), Unheld(run) as ledger:  # somebody else holds it
        ledger.note_answers("01-a", "d", {"answers": RECORDS[:1]}, {})
        ledger.commit()
    assert ledger.answers("01-a") == [*RECORDS, RECORDS[0]]
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before


def test_not_a_number_is_no_result():
    with pytest.raises(ValueError, match="Out of range float"):
        dump({"loss": float("nan")})
