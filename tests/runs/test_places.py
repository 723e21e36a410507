"""Places that cannot be written: what is only read needs no lock, and what must be written says in one line where it cannot."""

import errno
import io
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from see_lightning.cli import compare, figures, harness, perplexity, publish, study, transfer
from see_lightning.engine import launch
from see_lightning.engine.ensemble import load_ensemble
from see_lightning.errors import Refusal
from see_lightning.models import smollm2
from tests.runs import toy


@contextmanager
def read_only(folder):
    """Let every attempt to write below a folder fail as on a file system that is mounted so."""
    folder = os.path.realpath(folder)

    def guarded(real, writes):
        def call(path, *more, **named):
            inside = isinstance(path, str | os.PathLike) and os.path.realpath(path).startswith(folder)
            if inside and writes(*more, **named):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
            return real(path, *more, **named)

        return call

    def opens(mode="r", *_, **named):
        return set(named.get("mode", mode)) & set("wax+")

    def flags(flag, *_, **__):
        return flag & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)

    def always(*_, **__):
        return True

    with (
        patch.object(io, "open", guarded(io.open, opens)),
        patch.object(os, "open", guarded(os.open, flags)),
        patch.object(os, "mkdir", guarded(os.mkdir, always)),
        patch.object(os, "unlink", guarded(os.unlink, always)),
        patch.object(os, "replace", guarded(os.replace, always)),
    ):
        yield


@pytest.fixture
def run(base):
    return toy.whole(base, "method=see").directory


def refused(capsys, command, *arguments):
    with pytest.raises(SystemExit) as end:
        command([str(one) for one in arguments])
    assert end.value.code == 2
    told = capsys.readouterr().err.splitlines()
    return told[-1]


def test_a_run_is_asked_reported_and_studied_where_it_cannot_be_written(run, base, capsys):
    with read_only(run.parents[3]):
        assert load_ensemble(run).answer(["sky101?"])
        assert toy.run(toy.compose(toy.data_in(base), run.parents[3], "method=see")).fits == 0
        study.main([str(run)])
    told = capsys.readouterr()
    assert "note: the study is printed but not kept: " in told.err
    assert "Read-only file system" in told.err
    assert str(run) in told.err
    assert "newest" in told.out


@pytest.mark.parametrize("module", [perplexity, transfer], ids=lambda module: module.__name__)
def test_what_was_measured_is_read_without_a_lock_and_else_is_refused_before_the_model(run, tmp_path, capsys, module):
    mine = tmp_path / "copy" / Path(*run.parts[-4:])
    shutil.copytree(run, mine)
    with read_only(tmp_path / "copy"), patch.object(module, "measure", side_effect=AssertionError("measured")):
        told = refused(capsys, module.main, mine)
    assert str(mine) in told
    assert "Read-only file system" in told
    assert told.endswith(" --out FILE.")
    module.main([str(mine)])
    with read_only(tmp_path / "copy"):
        module.main([str(mine)])


MEASURED = {perplexity: "perplexity.json", transfer: "transfer.json", study: "study.json"}


@pytest.mark.parametrize("module", MEASURED, ids=lambda module: module.__name__)
def test_a_run_of_others_is_measured_without_a_trace_in_it(run, tmp_path, module):
    """With --out the run's folder stays as it is, to the byte; what is measured is what is measured there."""
    theirs, mine = (shutil.copytree(run, tmp_path / name / Path(*run.parts[-4:])) for name in ("theirs", "mine"))
    for path in theirs.rglob("*"):
        os.utime(path, (0, 0))
    out, more = tmp_path / "out.json", ["--answer"] if module is study else []

    def state():
        return {path: (path.stat().st_mtime, path.is_file() and path.read_bytes()) for path in theirs.rglob("*")}

    before = state()
    with read_only(tmp_path / "theirs"):
        module.main([str(theirs), "--out", str(out), *more])
    assert state() == before
    module.main([str(mine), *more])
    module.main([str(theirs), "--out", str(out), *more])  # read, or studied once more
    found, wanted = (json.loads(path.read_text()) for path in (out, mine / MEASURED[module]))
    for content in (found, wanted):
        content.pop("command", None), content.pop("sha256", None)
    assert found == wanted


@pytest.mark.parametrize("module", [*MEASURED, harness], ids=lambda module: module.__name__)
def test_a_link_given_as_out_is_refused_before_anything_is_measured(run, tmp_path, capsys, module):
    (tmp_path / "out.json").symlink_to(tmp_path / "precious")
    more = ["--tasks", "any"] if module is harness else []
    told = refused(capsys, module.main, run, "--out", tmp_path / "out.json", *more)
    assert told.startswith(f"{tmp_path / 'out.json'} is a symbolic link")
    assert not (tmp_path / "precious").exists()


@pytest.mark.parametrize("module", MEASURED, ids=lambda module: module.__name__)
def test_a_full_disk_is_told_in_one_line_and_the_old_file_stays(run, tmp_path, module):
    mine = shutil.copytree(run, tmp_path / Path(*run.parts[-4:]))
    kept = mine / MEASURED[module]
    kept.write_text("{}")

    def full() -> None:
        import resource

        os.dup2(said, 1), os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))  # enough for who holds the run, not for what is measured
        module.main([str(mine)])

    heard, said = os.pipe()
    assert toy.forked(full, Path("/dev/null")) == 2
    os.close(said)
    with os.fdopen(heard) as log:
        told = log.read().splitlines()
    assert "cannot be written: File too large; " in told[-1], told
    assert told[-1].startswith(str(mine)), told
    assert not any("Traceback" in line for line in told), told
    assert kept.read_text() == "{}"
    assert not [*mine.rglob("*.tmp")]


def test_pages_are_written_into_the_folder_of_a_run_only_if_that_is_asked_for(run, tmp_path, capsys):
    mine = shutil.copytree(run, tmp_path / Path(*run.parts[-4:]))
    before = {*mine.rglob("*")}
    compare.main([str(mine)])
    told = capsys.readouterr()
    assert told.err == f"note: {mine} is the folder of a run, so nothing is written there; give --out DIR\n"
    assert " see " in told.out
    assert refused(capsys, figures.main, mine).endswith("give another one with --out DIR.")
    assert {*mine.rglob("*")} == before
    compare.main([str(mine), "--out", str(mine)])
    assert (mine / "comparison.html").exists()


@pytest.mark.parametrize("module", [compare, figures], ids=lambda module: module.__name__)
def test_pages_are_not_written_through_links(run, tmp_path, capsys, module):
    mine = shutil.copytree(run, tmp_path / "runs" / Path(*run.parts[-4:]))
    assert mine.exists()
    module.main([str(tmp_path / "runs")])
    for path in [path for path in (tmp_path / "runs").iterdir() if path.is_file()]:
        path.unlink()
        path.symlink_to(tmp_path / "precious")
        assert f"{path} is a symbolic link" in refused(capsys, module.main, tmp_path / "runs")
        path.unlink()
    assert not (tmp_path / "precious").exists()


def test_pages_that_cannot_be_written_name_their_place(run, tmp_path, capsys):
    with read_only(run.parents[3]):
        assert "comparison.csv cannot be written: Read-only file system" in refused(capsys, compare.main, run.parent)
        assert " cannot be written: Read-only file system" in refused(capsys, figures.main, run.parent)
    document = tmp_path / "RESULTS.md"
    document.write_text("nothing")
    with read_only(tmp_path):
        told = refused(capsys, publish.main, tmp_path / "kept", document, "--add", run)
    assert told.startswith(str(tmp_path))
    assert told.endswith("cannot be used: Read-only file system.")


def test_the_harness_is_refused_before_anything_is_asked(run, tmp_path):
    with (
        patch.object(os, "access", return_value=False),
        pytest.raises(Refusal, match=r"harness\.json cannot be written"),
    ):
        harness.run_harness(run, ["any"])


@pytest.mark.parametrize("place", ["/proc/runs", "/sys/runs", "/dev/null/runs", "file/runs", "read-only", "a" * 300])
def test_a_run_that_cannot_be_written_is_refused_in_one_line(base, tmp_path, place):
    (tmp_path / "file").write_text("")
    runs = Path(tmp_path, place)
    cfg = toy.compose(toy.data_in(base), runs)
    with read_only(tmp_path / "read-only"), pytest.raises(Refusal, match="cannot be used: .* paths.runs=DIR") as told:
        launch.launch(cfg, "test")
    assert len(str(told.value).splitlines()) == 1


def test_a_whole_model_in_a_cache_that_cannot_be_written_is_used(tmp_path, monkeypatch):
    whole = tmp_path / f"smollm2-135m-{smollm2.SHA256[:8]}"
    whole.mkdir()
    (whole / "model.safetensors").write_text("weights")
    (whole / smollm2.DIGESTS).write_text(f'{{"model.safetensors": "{smollm2.SHA256}"}}')
    with read_only(tmp_path):
        with pytest.raises(Refusal, match=f"{tmp_path}.* cannot be used: Read-only file system. .* paths.cache=DIR"):
            smollm2.smollm2_folder(tmp_path)
        monkeypatch.setattr(smollm2, "_sha256_of", lambda *_: smollm2.SHA256)
        assert smollm2.smollm2_folder(tmp_path) == whole


def test_no_folder_for_temporary_files_is_told_in_one_line(capsys):
    from see_lightning.frame import frame

    with pytest.raises(SystemExit), frame():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/nowhere']")
    assert capsys.readouterr().err == "there is no folder for temporary files that can be written; set TMPDIR=DIR.\n"
