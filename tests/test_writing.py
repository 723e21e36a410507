"""Files are written whole or not at all, never through a link, and by one module."""

import ast
import os
import stat
from functools import partial
from pathlib import Path

import pytest
import torch

from see_lightning.adapters.files import write_tensors
from see_lightning.errors import Refusal
from see_lightning.files.writing import (
    UNFINISHED,
    append,
    check_out,
    copy_folder,
    refuse_links,
    refuse_links_in,
    remove_unfinished,
    write_bytes,
    write_folder,
    write_text,
)
from tests.runs import toy

PACKAGE = Path(__file__).parents[1] / "see_lightning"


def fill(folder):
    (folder / "new").write_text("new")


def tensors(path):
    write_tensors({"weight": torch.ones(2)}, path)


#: Everything that the module writes, and tensors, which have a format of their own.
WRITERS = {
    "text": partial(write_text, text="new"),
    "bytes": partial(write_bytes, content=b"new"),
    "tensors": tensors,
    "folder": partial(write_folder, fill=fill),
    "append": partial(append, start=0, block=b"new"),
}


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "fsync the folder"])
def test_killed_while_a_file_is_replaced_its_old_or_its_new_text_is_there(tmp_path, step):
    path = tmp_path / "file.json"
    write_text(path, "old" * 1000)
    calls = iter(("fsync", "fsync the folder"))

    def killed() -> None:
        replace, fsync = os.replace, os.fsync

        def traced_fsync(descriptor: int) -> None:
            call = next(calls)
            if step == "write":
                os.truncate(next(tmp_path.glob(".file.json.*.tmp")), 1000)
            if step in ("write", call):
                toy.die()
            fsync(descriptor)

        def traced_replace(source, target) -> None:
            if step == "replace":
                toy.die()
            replace(source, target)

        os.fsync, os.replace = traced_fsync, traced_replace
        write_text(path, "new" * 1000)

    assert toy.forked(killed, tmp_path / "log") == -9
    assert path.read_text() == ("new" if step == "fsync the folder" else "old") * 1000
    write_text(path, "newer")
    assert path.read_text() == "newer"
    remove_unfinished(tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {"file.json", "log"}


def test_the_new_text_is_written_beside_the_old_one_under_a_name_that_cannot_be_guessed(tmp_path, monkeypatch):
    """A rename from a folder for temporary files, on another disk, would be a copy, which a kill cuts."""
    replaced = []
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    replace = os.replace

    def noted(source, target):
        replaced.append((Path(source), target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    for _ in range(2):
        write_text(tmp_path / "file", "text")
    assert [(source.parent, target) for source, target in replaced] == [(tmp_path, tmp_path / "file")] * 2
    names = {source.name for source, _ in replaced}
    assert len(names) == 2
    assert all(UNFINISHED.fullmatch(name) for name in names)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o027, 0o640)])
@pytest.mark.parametrize("writer", WRITERS)
def test_files_are_readable_to_whom_the_umask_lets_read(tmp_path, writer, umask, mode):
    before = os.umask(umask)
    try:
        WRITERS[writer](tmp_path / "made")
    finally:
        os.umask(before)
    made = tmp_path / "made" / "new" if writer == "folder" else tmp_path / "made"
    assert stat.S_IMODE(made.stat().st_mode) == mode


@pytest.mark.parametrize("leads_to", ["file", "folder", "nothing"])
@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_written_through_a_link_and_the_link_is_named(tmp_path, writer, leads_to):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / leads_to)
    with pytest.raises(Refusal, match=f"^{link} is a symbolic link \\(to {tmp_path / leads_to}\\)"):
        WRITERS[writer](link)
    assert link.is_symlink()
    assert {one.name for one in tmp_path.iterdir()} == {"file", "folder", "link"}
    assert (tmp_path / "file").read_text() == "mine"
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize("writer", ["text", "append"])
def test_a_file_with_a_second_name_stays_as_it_is_there(tmp_path, writer):
    (tmp_path / "precious").write_text("mine, and long")
    os.link(tmp_path / "precious", tmp_path / "file")
    WRITERS[writer](tmp_path / "file")
    assert (tmp_path / "precious").read_text() == "mine, and long"
    assert (tmp_path / "file").read_text() == "new"


def test_links_above_a_folder_are_followed_and_those_in_it_are_not(tmp_path):
    (tmp_path / "scratch" / "run" / "tasks").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    run = tmp_path / "runs" / "run"
    refuse_links(run / "tasks" / "new", run)
    write_text(run / "tasks" / "new", "text")
    (run / "tasks" / "expert").symlink_to(tmp_path)
    with pytest.raises(Refusal, match=f"^{run}/tasks/expert is a symbolic link"):
        refuse_links(run / "tasks" / "expert" / "deeper" / "file", run)
    with pytest.raises(Refusal, match=f"^{run}/tasks/expert is a symbolic link"):
        refuse_links_in(run)


def test_a_folder_is_replaced_as_a_whole_and_what_killed_processes_left_of_it_goes(tmp_path):
    target = tmp_path / "made"
    target.mkdir()
    (target / "old").write_text("old")
    (tmp_path / ".made.0123456789abcdef.tmp").mkdir()
    (tmp_path / ".other.0123456789abcdef.tmp").mkdir()
    with pytest.raises(ZeroDivisionError):
        write_folder(target, lambda folder: 1 // 0)
    assert [path.name for path in target.iterdir()] == ["old"]
    write_folder(target, fill)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert {path.name for path in tmp_path.iterdir()} == {"made", ".other.0123456789abcdef.tmp"}


def test_a_copy_of_a_folder_takes_nothing_from_elsewhere(tmp_path):
    source = tmp_path / "source"
    (source / "expert").mkdir(parents=True)
    (source / "expert" / "weights").write_bytes(b"\0\1")
    copy_folder(source, tmp_path / "copy")
    assert (tmp_path / "copy" / "expert" / "weights").read_bytes() == b"\0\1"
    (source / "expert" / "more").symlink_to("/etc/passwd")
    with pytest.raises(Refusal, match=f"^{source}/expert/more is a symbolic link"):
        copy_folder(source, tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_only_what_was_left_half_written_is_removed(tmp_path):
    left = tmp_path / "tasks" / ".expert.json.0123456789abcdef.tmp"
    folder = tmp_path / "tasks" / ".01-a.0123456789abcdef.tmp"
    (folder / "expert").mkdir(parents=True)
    left.write_text("{")
    (tmp_path / ".link.0123456789abcdef.tmp").symlink_to(tmp_path / "notes")
    (tmp_path / "elsewhere").symlink_to(tmp_path.parent)
    for name in ("notes", ".notes.tmp", ".a.0123456789ABCDEF.tmp", "a.0123456789abcdef.tmp", ".0123456789abcdef.tmp"):
        (tmp_path / name).write_text("mine")
    before = {*tmp_path.rglob("*")}
    remove_unfinished(tmp_path)
    assert before - {*tmp_path.rglob("*")} == {left, folder, folder / "expert"}


@pytest.mark.parametrize("writer", ["text", "tensors", "folder", "append"])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, writer):
    target = tmp_path / "target"
    if writer == "folder":
        target.mkdir()
        (target / "old").write_text("old")
    else:
        target.write_text("old")

    def full() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (2, 2))
        try:
            WRITERS[writer](target)
        except OSError as error:
            os.write(said, f"{error.filename}: {error.strerror}".encode())

    heard, said = os.pipe()
    assert toy.forked(full, Path("/dev/null")) == 0
    assert os.read(heard, 1000).decode() == f"{target}: File too large"
    assert [one.name for one in tmp_path.iterdir()] == ["target"]
    if writer != "append":
        assert (target / "old" if writer == "folder" else target).read_text() == "old"


def test_a_place_for_a_result_is_refused_before_the_result_is_computed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    for name, told in (("link", "is a symbolic link"), ("no/file", "there is no folder"), ("folder", "it is a folder")):
        with pytest.raises(Refusal, match=told):
            check_out(tmp_path / name)
    check_out(tmp_path / "file")


#: What opens a file to write it, or makes one, by the name of the function or method.
MAKES = {
    *("write_text", "write_bytes", "touch", "save_file", "save_pretrained", "savefig", "mkfifo", "mknod", "truncate"),
    *("copy", "copy2", "copyfile", "copytree", "move", "rename", "symlink", "symlink_to", "link", "hardlink_to"),
}
#: Within a folder that was just made, by us under a random name or by W&B's client for its run, and what is no file.
ALLOWED = {
    ("engine/merge_adapters.py", "model.save_pretrained(folder)"),
    ("engine/merge_adapters.py", "AutoTokenizer.from_pretrained(base, revision=revision).save_pretrained(folder)"),
    ("engine/wandb_client.py", "kept.write_text(text, encoding='utf-8')"),
    ("models/smollm2.py", "model.to(torch.bfloat16).save_pretrained(output)"),
    ("models/smollm2.py", "tokenizer.save_pretrained(output)"),
    ("reporting/svg.py", "figure.savefig(buffer, format='svg', metadata=nothing, **settings)"),
}


def writes(call: ast.Call) -> bool:
    """Whether a call writes a file by itself."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    told = ast.unparse(call)
    if name == "open" and "os.devnull" not in told:
        given = [*call.args, *(word.value for word in call.keywords if word.arg in ("mode", "flags"))]
        modes = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        return any(flag in told for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC")) or any(
            set(mode) <= set("rwxabt+U") and set(mode) & set("wxa+") for mode in modes
        )
    if isinstance(call.func, ast.Name):
        return name == "save_file"
    if name in ("copy", "replace") and not (isinstance(call.func.value, ast.Name) and call.func.value.id == "shutil"):
        return False
    return name in MAKES or told.startswith(("torch.save(", "numpy.save(", "np.save("))


def test_no_other_module_writes_a_file():
    found = {
        (str(path.relative_to(PACKAGE)), ast.unparse(node))
        for path in PACKAGE.rglob("*.py")
        if path.name != "writing.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and writes(node)
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "code",
    [
        "open(path, 'w')", "path.open('a')", "path.open(mode='r+b')", "os.open(path, os.O_WRONLY)", "io.open(path, mode='x')",
        "path.write_text('')", "save_file(tensors, path)", "shutil.copytree(a, b)", "torch.save(a, b)", "path.touch()",
    ],
)  # fmt: skip
def test_a_planted_write_is_found(code):
    assert writes(ast.parse(code).body[0].value)


@pytest.mark.parametrize(
    "code",
    [
        "open(path)",
        "os.open(path, os.O_RDONLY)",
        "path.open('rb')",
        "open(path, encoding='utf-8')",
        "write_text(path, '')",
        "config.copy()",
    ],
)
def test_reading_is_not_taken_for_writing(code):
    assert not writes(ast.parse(code).body[0].value)
