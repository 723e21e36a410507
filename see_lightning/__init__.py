"""Sequential Ensemble of Experts, its rivals and its benchmarks, under one protocol."""

import os
import sys


def _only_reads(words: list[str]) -> bool:
    """Whether Python was told, with ``-m``, to run a command of ours that only reads runs, which others may have made."""
    for at, word in enumerate(words[1:], 1):
        name = word.removeprefix("-m")
        if name == "see_lightning":
            return words[at + 1 : at + 2] not in (["run"], ["data"])
        if name.startswith("see_lightning."):
            return name.split(".")[1] not in ("cli", "data", "engine")
    return False


# First of all: Python put the working folder, which may be a run's folder of someone else, before its own library.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and _only_reads(sys.orig_argv):
    _here = sys.path.pop(0)
    os.environ["PYTHONSAFEPATH"] = "1"  # for processes that this one starts
    if _here and os.path.realpath(_here) == os.path.realpath(
        os.path.dirname(__path__[0])
    ):  # a clone that is not installed, which they need to find
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_here, os.environ.get("PYTHONPATH"))))

from typing import TYPE_CHECKING, Any  # noqa: E402

# Read once, when torch is imported. Threads that spin while they wait can slow a shared machine severalfold, and threads
# that sleep at once cost small operations a third of their speed: so they spin for some microseconds, and then sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from see_lightning.engine.ensemble import load_ensemble as load_ensemble

__all__ = ["load_ensemble"]


def __getattr__(name: str) -> Any:
    """Import torch only when the ensemble is asked for, so the command line answers at once."""
    if name == "load_ensemble":
        from see_lightning.engine.ensemble import load_ensemble

        return load_ensemble
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
