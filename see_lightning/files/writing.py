"""Atomic writing of files, never through a symbolic link and never under a temporary name that can be guessed.

A run's folder may come from other people. A link in it, or at the name of a file to be written, could choose which of the
user's files is overwritten. Links above the folder that a user names, such as ``runs -> /scratch/runs``, are the user's own
and are followed.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from see_lightning.errors import ConfigError, Refusal
from see_lightning.files.reading import file_bytes

#: The temporary name of a file or folder until it is whole; a killed process leaves it behind.
UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically by a text in UTF-8.

    Raises:
        Refusal: the path is a link.
        OSError: it cannot be written; the error names the path, and the old file stays.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically: at any moment it has its old or its new content, never a part.

    The temporary file is in the same folder, since a rename across file systems would be a copy. Permissions follow the
    umask.

    Args:
        path: of the file; its folder exists.
        content: of the file.

    Raises:
        Refusal: the path is a link.
        OSError: it cannot be written; the error names the path, and the old file stays.
    """
    refuse_link(path)
    beside = _beside(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _in_place_of(path, beside), open(os.open(beside, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Replace a folder by a new one that is complete.

    Args:
        folder: its path; the folder above it exists, and no other process writes this one.
        fill: writes the files into the temporary folder whose path it gets.

    Raises:
        Refusal: the path is a link.
        OSError: it cannot be written; the error names the path.
    """
    refuse_link(folder)
    beside = _beside(folder)
    for left in folder.parent.glob(f".{folder.name}.*"):
        if UNFINISHED.fullmatch(left.name):
            shutil.rmtree(left, ignore_errors=True)  # left by a killed process
    with _in_place_of(folder, beside):
        beside.mkdir()
        fill(beside)
        mode = beside.stat().st_mode & 0o666  # by the umask; safetensors always writes 0600
        for path in beside.rglob("*"):
            if path.is_file():
                path.chmod(mode)
            _reach_disk(path)
        _reach_disk(beside)
        shutil.rmtree(folder, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Refuse a folder for output that has files.

    Raises:
        ConfigError: it exists, and is no empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and has files; give a folder that is new or empty.")


def write_new_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Write a folder of files that does not exist or is empty; folders above it are made.

    Args:
        folder: passes ``check_new``.
        fill: writes the files into the path that it gets.
    """
    check_new(folder)
    if folder.exists():
        folder.rmdir()
    make_folder(folder.parent)
    write_folder(folder, fill)


def write_texts(folder: Path, files: Iterable[tuple[str, str]]) -> None:
    """Replace a folder by a new one with some texts in UTF-8.

    Args:
        folder: its path; the folder above it exists.
        files: name and text of each file; written one after another, so that they need not be in memory together.

    Raises:
        Refusal: the path is a link.
        OSError: it cannot be written; the error names the path.
    """

    def fill(beside: Path) -> None:
        for name, text in files:
            (beside / name).write_bytes(text.encode())

    write_folder(folder, fill)


def copy_folder(source: Path, target: Path) -> None:
    """Replace a folder by a copy of another.

    Args:
        source: without links, since the copy of a link could be a file from elsewhere.
        target: path of the copy; the folder above it exists.

    Raises:
        Refusal: there is a link, a pipe or a device in the source, or the target is a link.
    """
    refuse_links_in(source)

    def fill(folder: Path) -> None:
        for above, folders, files in os.walk(source):
            here = folder / Path(above).relative_to(source)
            for name in folders:
                (here / name).mkdir()
            for name in files:
                path = Path(above, name)
                if not path.is_file():
                    raise Refusal(f"{path} is no regular file, where one of ours belongs; delete it.")
                (here / name).write_bytes(file_bytes(path))

    write_folder(target, fill)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, unless they exist.

    Raises:
        OSError: it cannot be made; the error names it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # as in /proc, where no folder can be made
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def append(path: Path, start: int, block: bytes) -> None:
    """Write a block at a position of a file and truncate the file after it; a missing file is made.

    Args:
        path: of the file.
        start: the position, in bytes.
        block: the bytes to write.

    Raises:
        Refusal: the path is a link.
    """
    refuse_link(path)
    with _named(path, path), open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b") as file:
        if os.fstat(file.fileno()).st_nlink == 1:
            file.truncate(start)
            file.seek(start)
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return
        kept = file.read(start)
    write_bytes(path, kept + block)  # a hard link: the file under its other name stays as it is


def check_out(path: Path) -> None:
    """Refuse an output file that cannot be written, before its content is computed.

    Args:
        path: of ``--out``; not a link, since one in somebody else's folder could lead anywhere.

    Raises:
        Refusal: it cannot be written.
    """
    refuse_link(path)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise Refusal(f"{path} cannot be written: there is no folder {path.parent}. Make it, or give another --out.")
    if path.is_dir():
        raise Refusal(f"{path} cannot be written, for it is a folder; give a file with --out.")
    if not os.access(folder, os.W_OK):
        raise Refusal(f"{path} cannot be written, for its folder cannot; give another --out FILE.")


def refuse_link(path: Path) -> None:
    """Refuse a path that is a symbolic link.

    Raises:
        Refusal: it is one.
    """
    if path.is_symlink():
        raise Refusal(
            f"{path} is a symbolic link (to {os.readlink(path)}) where a file or folder of ours belongs, and nothing is"
            f" written through links; delete it, or put what it leads to in its place."
        )


def refuse_links(path: Path, root: Path) -> None:
    """Refuse a path with a link below a root folder.

    Args:
        path: to be written.
        root: a folder above it, which may be a link itself.

    Raises:
        Refusal: the path, or a folder between it and the root, is a link.
    """
    for parent in [*path.relative_to(root).parents][-2::-1]:
        refuse_link(root / parent)
    refuse_link(path)


def refuse_links_in(folder: Path) -> None:
    """Refuse a folder that is a link or contains one, at any depth.

    Raises:
        Refusal: there is a link; the message names it.
    """
    refuse_link(folder)
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            refuse_link(Path(above, name))


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files and folders of killed processes, at any depth; links and other names stay."""
    for above, folders, files in os.walk(folder):
        for name in filter(UNFINISHED.fullmatch, folders):
            shutil.rmtree(Path(above, name), ignore_errors=True)  # does not follow links
        for name in filter(UNFINISHED.fullmatch, files):
            path = Path(above, name)
            if path.is_file() and not path.is_symlink():
                path.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


@contextmanager
def _in_place_of(path: Path, beside: Path) -> Iterator[None]:
    """A context in which ``beside`` is written; at its end it replaces ``path``, or after an error it is removed."""
    try:
        with _named(path, beside):
            yield
            os.replace(beside, path)
            _reach_disk(path.parent)  # the rename itself
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(beside) if beside.is_dir() else beside.unlink()
        raise


@contextmanager
def _named(path: Path, beside: Path) -> Iterator[None]:
    """A context in which errors on ``beside`` name ``path`` instead."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(beside)):
            error.filename = str(path)
        raise


def _reach_disk(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
