"""Errors that the user can correct: one line with the given value, the allowed ones, and what to type."""

import difflib
import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Errors of a path: read-only, not permitted, below a file, a folder in place of a file.
BARRED = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST),
)


class Refusal(ValueError):
    """An input that cannot be used; the message has the given value, the allowed ones, and the command or setting to use."""


class ConfigError(Refusal):
    """A setting that cannot be used."""


class DataError(Refusal):
    """The data cannot be used as they are; the message names file, line and reason."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint with the closest allowed word; empty if none is close.

    >>> nearest("superni10", ["superni_5", "superni_10"])
    " Did you mean 'superni_10'?"
    """
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


MOST_NAMED, LONGEST_NAME = 40, 80  # names in a message, and characters of each


def listed(names: Iterable[Any], most: int = MOST_NAMED) -> str:
    """Names for a message: the first ones, long ones shortened, and the number of the others.

    >>> listed(["qa", "qg", "sa"], most=2), listed([])
    ('qa, qg and 1 more', 'none')
    """
    every = [str(name) for name in names]
    shown = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in every[:most]]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return (", ".join(shown) or "none") + more


@contextmanager
def room_needed(folder: Path, cure: str = "paths.runs=DIR") -> Iterator[None]:
    """A context in which a full disk or an unusable path raises a refusal that names the path.

    Args:
        folder: where files are written; named if the error has no path.
        cure: option that sets another path.

    Raises:
        Refusal: the disk is full, or the path cannot be written.
    """
    try:
        yield
    except Exception as error:
        match = re.search(r"\(os error (\d+)\)", str(error))  # in messages of libraries written in Rust
        number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
        place = getattr(error, "filename", None) or folder
        if number in FULL:
            raise Refusal(full(place, number)) from error
        if number in BARRED:
            raise Refusal(f"{place} cannot be used: {os.strerror(number)}. Give a place that can: {cure}.") from error
        raise


def full(place: str | Path, number: int) -> str:
    """One line on a full disk.

    Args:
        place: the path.
        number: the system's error number, one of ``FULL``.
    """
    existing = next(path for path in (Path(place), *Path(place).absolute().parents) if path.exists())
    return (
        f"{place} cannot be written: {os.strerror(number)}; {shutil.disk_usage(existing).free / 1e6:,.0f} MB are free there."
        f" Make room or raise the limit, and give the same command again: finished work is kept."
    )


def barred(error: OSError) -> str | None:
    """One line on a path that cannot be used or a full disk; None for other errors."""
    if "No usable temporary directory" in str(error):
        return "there is no folder for temporary files that can be written; set TMPDIR=DIR."
    if error.errno in FULL and error.filename is not None:
        return full(error.filename, error.errno)
    if error.errno not in BARRED or error.filename is None:
        return None
    return f"{error.filename} cannot be used: {os.strerror(error.errno)}."


def with_cause(error: BaseException) -> str:
    """An error in one line with its first cause, such as a missing library or an unknown host.

    Args:
        error: its own message may be as general as "cannot connect".
    """
    cause = error
    while below := cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__):
        cause = below
    top, bottom = (next(iter(str(one).strip().splitlines()), "") or type(one).__name__ for one in (error, cause))
    return top if bottom in top else f"{top} ({type(cause).__name__}: {bottom})"
