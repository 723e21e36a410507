"""The lock on a run directory: only one process writes there at a time."""

import os
import re
from pathlib import Path

import filelock

from see_lightning.files.reading import file_bytes
from see_lightning.files.run_files import LedgerError
from see_lightning.files.writing import write_text


class Hold:
    """A lock that one process holds on a run directory, from ``take`` to ``release``.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = filelock.FileLock(directory / ".lock")
        #: Descriptors of the directory and its lock file. While they are open, no other file can have these inodes.
        self._opened: dict[Path, int] = {}

    def take(self) -> None:
        """Lock the directory, which must exist.

        Raises:
            LedgerError: another process holds it.
        """
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise LedgerError(
                f"{self.directory} is in use by {self._holder()}. Wait for it, or give this run another seed or"
                f" paths.runs."
            ) from None
        try:
            for path in (self.directory, self.directory / ".lock"):
                self._opened[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            write_text(self.directory / ".lock-holder", f"process {os.getpid()} on {os.uname().nodename}")
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Unlock the directory."""
        for opened in self._opened.values():
            os.close(opened)
        self._opened = {}
        self._lock.release()

    def is_taken(self) -> bool:
        """Whether this process holds the lock, and directory and lock file have not been moved, deleted or replaced."""
        try:
            return bool(self._opened) and all(
                os.path.samestat(os.fstat(opened), path.stat()) for path, opened in self._opened.items()
            )
        except OSError:
            return False

    def check(self) -> None:
        """Refuse to write if another process may have locked the directory by now.

        Raises:
            LedgerError: directory or lock file is no longer the one that this process locked.
        """
        if not self.is_taken():
            raise LedgerError(
                f"{self.directory} is no longer held by this process: the folder was moved, or {self.directory / '.lock'}"
                f" was deleted, so another process may be at work there. What was not final yet is not written; give the"
                f" same command again."
            )

    def _holder(self) -> str:
        """The process that holds the lock, read from ``.lock-holder``."""
        try:
            holder = file_bytes(self.directory / ".lock-holder").decode()
        except (OSError, ValueError):
            holder = ""
        return holder if re.fullmatch(r"process \d+ on [\w.-]+", holder) else "another process"
