"""A disk that becomes full at any write of a run: it says so, nothing final is lost, and with room again it goes on."""

import os
import re
import resource
import sys
import zlib
from pathlib import Path

import pytest

from see_lightning.config.explain import REFUSED, explain
from see_lightning.engine import launch, start
from see_lightning.errors import Refusal, room_needed
from tests.runs import toy

QUICK = ("order.tasks=[sky,sea]", "optim.epochs=4")
ROOM = 7  # bytes of every file that still find room: what cannot be written whole is written in part


def full_where_new(directory: Path, diary: Path) -> None:
    """Let this process find no more room from the first step of writing on that the diary does not hold yet.

    The system itself refuses every later write of more than a few bytes, whoever writes, by RLIMIT_FSIZE. A step is the
    making of a file or folder in the run's, with what is final by then.
    """
    past = diary.read_text().splitlines() if diary.exists() else []
    ledger = directory / "ledger.json"

    def watch(event: str, given: tuple[object, ...]) -> None:
        made = event == "os.mkdir" or (event == "open" and int(str(given[2])) & (os.O_WRONLY | os.O_RDWR))
        if not made or not str(given[0]).startswith(str(directory)):
            return
        final = zlib.crc32(ledger.read_bytes()) if ledger.exists() else 0
        place = Path(*map(toy.target_of, Path(str(given[0])).parts))
        step = f"{place.relative_to(directory.parent)} after {final:08x}"
        if step not in past:
            past.append(step)
            with diary.open("a") as file:
                file.write(step + "\n")
            resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))

    sys.addaudithook(watch)


@pytest.mark.nightly
def test_a_run_that_finds_the_disk_full_at_any_write_says_so_and_goes_on_when_there_is_room(
    base, tmp_path, monkeypatch
):
    monkeypatch.setattr(start, "commit", lambda: "one and the same")
    whole = toy.whole(base, *QUICK).directory
    cfg = toy.compose(toy.data_in(base), tmp_path / "runs", *QUICK)
    directory = tmp_path / "runs" / toy.place_of(whole)
    diary = tmp_path / "diary"

    def attempt() -> None:
        full_where_new(directory, diary)
        try:
            launch.launch(cfg, "test")
        except REFUSED as error:
            raise SystemExit(f"error: {explain(error)}") from None

    ends, final = [1], ""
    while ends[-1] == 1:
        heard, said = os.pipe()  # a file could not be written either
        ends.append(toy.forked(attempt, Path(f"/proc/self/fd/{said}")))
        os.close(said)
        with os.fdopen(heard) as log:
            told = log.read()
        if ends[-1]:
            assert ends[-1] == 1, told
            assert "Traceback" not in told
            assert re.match(f"error: {directory}[^ ]* cannot be written: File too large; ", told.splitlines()[-1]), told
            toy.load_everything(directory)
            now = (directory / "ledger.json").read_text() if (directory / "ledger.json").exists() else ""
            assert len(now) >= len(final), "something final is lost"
            final = now
        assert len(ends) < 100
    assert ends[-1] == 0, told
    steps = diary.read_text().splitlines()
    assert len(steps) == len(set(steps)) == ends.count(1) - 1
    files = {toy.target_of(Path(step.split(" after ")[0]).name) for step in steps}
    assert files >= {
        ".lock", ".lock-holder", "config.yaml", "ledger.json", "examples.jsonl", "expert", "adapter_config.json",
        "expert.json", "answers.jsonl", "remembered.jsonl", "matrix.csv", "report.html", "results.json",
        "answers",
    }  # fmt: skip
    assert toy.kept(directory) == toy.kept(whole)


def test_a_full_disk_is_told_by_the_place_the_reason_and_what_is_free(tmp_path):
    with (
        pytest.raises(Refusal, match=rf"^{tmp_path} cannot be written: No space left on device; [\d,]+ MB are free"),
        room_needed(tmp_path),
        open("/dev/full", "w") as file,
    ):
        file.write("something")


def test_other_errors_of_the_system_are_no_refusals(tmp_path):
    with pytest.raises(FileNotFoundError), room_needed(tmp_path):
        (tmp_path / "nowhere" / "file").write_text("something")
