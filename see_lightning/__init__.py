"""Sequential Ensemble of Experts, its rivals and its benchmarks, under one protocol."""

import os
from typing import TYPE_CHECKING, Any

# Read once, when torch is imported: waiting threads then sleep, where spinning ones can slow a shared machine severalfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
