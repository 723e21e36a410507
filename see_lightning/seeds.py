"""Seeds that depend on names alone, so that a resumed or grown run draws the same numbers as an uninterrupted one."""

import hashlib


def seed(run: int, task: str, purpose: str) -> int:
    """A 32-bit seed for one purpose in one task of one run.

    Args:
        run: the run's seed, ``seed=``.
        task: the task's name, or several names, joined.
        purpose: of the draw, such as ``"order"`` or ``"weights"``.

    >>> seed(0, "qa", "order")
    48466767
    """
    return int.from_bytes(hashlib.sha256(f"{run}/{task}/{purpose}".encode()).digest()[:4], "big")
