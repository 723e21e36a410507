"""What quantising has changed: the error of each expert and of the base model, and the answers beside unquantised ones."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from see_lightning.config.identity import key_of
from see_lightning.config.schema import RunConfig
from see_lightning.engine.build import cache_folder
from see_lightning.engine.ledger import Ledger, LedgerError
from see_lightning.engine.run_data import RunData
from see_lightning.errors import ConfigError
from see_lightning.models.checkpoint import exact_weights
from see_lightning.models.quantized_base import weight_error


def quantization_of(run: RunData) -> dict[str, Any]:
    """The sections ``quantization`` and ``base_quantization`` of ``results.json``, each if there is something to tell.

    Args:
        run: finished.
    """
    return _of_experts(run) | _of_base(run)


def _of_experts(run: RunData) -> dict[str, Any]:
    kind = run.config.adapter.quantization
    if kind == "none":
        return {}
    errors = [stage.get("quantization_error") for stage in run.trained]
    found = {"kind": kind, "error": dict(zip(run.names, errors, strict=True)), **_changed_answers(run)}
    return {"quantization": found}


def _of_base(run: RunData) -> dict[str, Any]:
    """Answers are compared with those of the same run with ``model.quantization=none``, if it lies beside this one."""
    noted = run.about.get("base_quantization")
    if not noted:
        return {}
    settings = run.about["numbers"]
    model = {name: value for name, value in settings["model"].items() if name != "quantization"}
    here = run.ledger.directory
    other = here.parent.parent / key_of({**settings, "model": model}) / here.name
    return {"base_quantization": {**noted, **_compared(run, other)}}


def _changed_answers(run: RunData) -> dict[str, Any]:
    """How many answers differ from those of the run in fp32 whose experts were taken over; empty if there is none."""
    origin = run.about.get("grown_from")
    return _compared(run, Path(origin)) if origin else {}


def _compared(run: RunData, other: Path) -> dict[str, Any]:
    """How many answers differ from those of another run of unquantised experts; empty if it has none."""
    exact = _exact_answers(other, run.stages[-1].name)
    pairs = [(one, exact[key]) for one in run.final if (key := (one["task"], one["id"])) in exact]
    if not pairs:
        return {}
    return {
        "compared_with": str(other),
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
    return [*_expert_notices(results), *_base_notices(results)]


def _expert_notices(results: Mapping[str, Any]) -> list[str]:
    found = results.get("quantization")
    if not found:
        return []
    errors = [one for one in found["error"].values() if one is not None]
    notice = f"experts are stored as {found['kind']}"
    if errors:
        notice += f", with an error of {min(errors):.1%} to {max(errors):.1%} of the norm of their updates"
    if "compared_with" in found:
        return [notice + _in_words(found)]
    return [f"{notice}."]


def note_base_quantization(ledger: Ledger, config: RunConfig, model: PreTrainedModel) -> None:
    """Note in a run's ledger how its base model is stored, with the error of the weights; nothing if not quantised.

    Args:
        ledger: of the run.
        config: of the run.
        model: its base model, as loaded.
    """
    kind = config.model.quantization
    about = ledger.content["about"]
    if kind == "none" or "base_quantization" in about:
        return
    noted: dict[str, Any] = {"kind": kind, "bytes": model.get_memory_footprint()}
    with suppress(ConfigError):  # files of another form than safetensors are not read again
        noted["error"] = round(weight_error(model, exact_weights(config.model, cache_folder(config))), 5)
    about["base_quantization"] = noted
    ledger.commit()


def _base_notices(results: Mapping[str, Any]) -> list[str]:
    found = results.get("base_quantization")
    if not found:
        return []
    notice = f"linear layers of the base model are stored as {found['kind']}"
    if "error" in found:
        notice += f", with an error of {found['error']:.1%} of the norm of their weights"
    if "compared_with" in found:
        return [notice + _in_words(found)]
    return [
        f"{notice}; to count the answers that differ, run the same with model.quantization=none, then delete results.json"
        f" of this run and repeat its command."
    ]


def _in_words(found: Mapping[str, Any]) -> str:
    return (
        f"; {found['answers_changed']} of {found['answers_compared']} answers differ from those of"
        f" {found['compared_with']}, of which {found['answered_by_others']} come from another expert."
    )
