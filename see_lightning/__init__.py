"""Continual fine-tuning of language models: the Sequential Ensemble of Experts, its rivals and benchmarks, one protocol."""

import logging
import os
import sys


def _only_reads(words: list[str]) -> bool:
    """Whether the command line is ``python -m`` with a command that only reads runs, which may come from other people."""
    for at, word in enumerate(words[1:], 1):
        name = word.removeprefix("-m")
        if name == "see_lightning":
            return words[at + 1 : at + 2] not in (["run"], ["data"])
        if name.startswith("see_lightning."):
            return name.split(".")[1] not in ("cli", "data", "engine")
    return False


# Before any import: Python searches the working folder first, and that may be another person's run directory.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and _only_reads(sys.orig_argv):
    _here = sys.path.pop(0)
    os.environ["PYTHONSAFEPATH"] = "1"  # for child processes
    # A clone that is not installed must stay importable in child processes.
    if _here and os.path.realpath(_here) == os.path.realpath(os.path.dirname(__path__[0])):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_here, os.environ.get("PYTHONPATH"))))

from typing import TYPE_CHECKING, Any  # noqa: E402

# Read when torch is imported. Waiting threads that spin can slow a shared machine severalfold; threads that sleep at once
# make small operations a third slower. So they spin for some microseconds, and then sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# PEFT imports it where it is installed, and it warns at once that a package is missing which nothing here uses; its 8-bit
# layers warn at each product that inputs are cast.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__version__ = "0.1.0"

if TYPE_CHECKING:
    from see_lightning.engine.ensemble import load_ensemble as load_ensemble

__all__ = ["load_ensemble"]


def __getattr__(name: str) -> Any:
    """Import torch only when ``load_ensemble`` is used, so that the command line starts fast."""
    if name == "load_ensemble":
        from see_lightning.engine.ensemble import load_ensemble

        return load_ensemble
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
