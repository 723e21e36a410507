"""What quantising the experts of a run has changed: the error of each, and the answers beside those of the run in fp32."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from see_lightning.engine.ledger import Ledger, LedgerError
from see_lightning.engine.run_data import RunData


def quantization_of(run: RunData) -> dict[str, Any]:
    """The section ``quantization`` of ``results.json``; empty if experts are stored in fp32.

    Args:
        run: finished.
    """
    kind = run.config.adapter.quantization
    if kind == "none":
        return {}
    errors = [stage.get("quantization_error") for stage in run.trained]
    found = {"kind": kind, "error": dict(zip(run.names, errors, strict=True)), **_changed_answers(run)}
    return {"quantization": found}


def _changed_answers(run: RunData) -> dict[str, Any]:
    """How many answers differ from those of the run in fp32 whose experts were taken over; empty if there is none."""
    origin = run.about.get("grown_from")
    exact = _exact_answers(Path(origin), run.stages[-1].name) if origin else {}
    pairs = [(one, exact[key]) for one in run.final if (key := (one["task"], one["id"])) in exact]
    if not pairs:
        return {}
    return {
        "compared_with": origin,
        "answers_compared": len(pairs),
        "answers_changed": sum(one["text"] != other["text"] for one, other in pairs),
        "answered_by_others": sum(one["expert"] != other["expert"] for one, other in pairs),
    }


def _exact_answers(directory: Path, stage: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    """A run's answers after a stage by task and query; empty if it has none, or its experts are quantised too."""
    try:
        ledger = Ledger(directory, writes=False).read()
        if "quantization" in ledger.content["about"].get("numbers", {}).get("adapter", {}):
            return {}
        return {(one["task"], one["id"]): one for one in ledger.answers(stage)}
    except (LedgerError, OSError, KeyError):
        return {}  # the other run may have been deleted since


def quantization_notices(results: Mapping[str, Any]) -> list[str]:
    """What was changed by quantising, in words, for the readers of the numbers."""
    found = results.get("quantization")
    if not found:
        return []
    errors = [one for one in found["error"].values() if one is not None]
    notice = f"experts are stored as {found['kind']}"
    if errors:
        notice += f", with an error of {min(errors):.1%} to {max(errors):.1%} of the norm of their updates"
    if "compared_with" in found:
        notice += (
            f"; {found['answers_changed']} of {found['answers_compared']} answers differ from those of"
            f" {found['compared_with']}, of which {found['answered_by_others']} come from another expert"
        )
    return [f"{notice}."]
