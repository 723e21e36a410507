"""Seeds are made from names, so a resumed or grown run draws what an undisturbed one would have drawn."""

import hashlib


def seed(run: int, task: str, purpose: str) -> int:
    """A 32-bit seed for one purpose in one task of one run.

    Args:
        run: the run's seed, as given by ``seed=``.
        task: the task's name (or several, joined) that the draw belongs to.
        purpose: what is drawn, such as ``"order"`` or ``"weights"``.

    >>> seed(0, "qa", "order")
    48466767
    """
    return int.from_bytes(hashlib.sha256(f"{run}/{task}/{purpose}".encode()).digest()[:4], "big")
