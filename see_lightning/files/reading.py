"""Reading of regular files; a pipe, a device or a folder in place of a file is an error instead of a read that blocks."""

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading. A pipe or a device in its place could block the reader, or never end.

    Raises:
        OSError: it cannot be opened, or is not a regular file; the error names the path.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(opened).st_mode
    if not stat.S_ISREG(mode):
        os.close(opened)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return open(opened, "rb")


def file_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    with open_file(path) as file:
        return file.read()


def sha256(path: Path) -> str:
    """The sha256 of a file in hex digits.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
