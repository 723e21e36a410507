"""Sequential Ensemble of Experts, its rivals and its benchmarks, under one protocol."""

import os
from typing import TYPE_CHECKING, Any

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
