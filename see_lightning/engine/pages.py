"""Memory that stays with the process while it computes."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's mallopt(3); the second values are what glibc arrives at by itself in a process with large blocks.
_TRIM, _MMAP = -1, -3
_KEEP = {_TRIM: 2**31 - 1, _MMAP: 2**30}
_USUAL = {_TRIM: 64 * 2**20, _MMAP: 32 * 2**20}


@contextmanager
def kept_pages() -> Iterator[None]:
    """Let glibc keep what is freed inside, and give it back at the end.

    It would return large blocks to the system at once, only to have every page of them faulted in again: a tenth to a
    fifth of a training step on a CPU, a twentieth of answering. Where there is another C library, nothing happens.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    for parameter, value in _KEEP.items():
        libc.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
