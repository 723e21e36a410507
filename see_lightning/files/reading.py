"""Opens regular files for reading; a pipe, a device or a folder in a file's place is refused instead of blocking."""

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_file(path: Path) -> BufferedReader:
    """Open a file to be read. A pipe or a device in its place would block the reader, or never end.

    Raises:
        OSError: it cannot be opened, or is no regular file; the error names the path.
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
    """What a file holds; errors as of ``open_file``."""
    with open_file(path) as file:
        return file.read()


def sha256(path: Path) -> str:
    """Hex digest of a file; errors as of ``open_file``."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
