"""``expert.json``: where an expert comes from and what it scores on its own task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from see_lightning.engine.context import RunContext
from see_lightning.engine.ledger import dump
from see_lightning.engine.stages import Stage

EXPERT_FILE = "expert.json"


def write_expert_file(context: RunContext, stage: Stage, trained: Mapping[str, Any], score: float | None) -> Path:
    """Write an expert's file: once, when its score is known, so that it never changes.

    Args:
        context: of the run.
        stage: that trained the expert.
        trained: what the ledger notes of the training.
        score: of the expert's method on the expert's task, right after the stage; None where the stage does not test it.

    Returns:
        The path of the file.
    """
    assert stage.task is not None
    number = context.stages.index(stage)
    assigned = trained.get("assigned")
    assignment = {**assigned, "expanded": assigned["expert"] == stage.task.name} if assigned else {}
    path = context.ledger.folder(stage.name) / "expert" / EXPERT_FILE
    content = {
        **context.settings.facts,
        "task": stage.task.name,
        "born": number + 1 if assignment.get("expanded", True) else None,
        "parent": _parent(context, number, trained.get("parent")),
        "data_sha256": stage.task.rows_sha256(),
        **assignment,
        "training": {key: trained[key] for key in ("examples", "rehearsed", "negatives", "steps")},
        "score": score,
    }
    context.ledger.write(path, dump(content))
    return path


def _parent(context: RunContext, number: int, began_as: str | None) -> str | None:
    """The stage whose weights an expert was initialised with; None if it began afresh."""
    if began_as:
        return next(one.name for one in context.stages if one.task and one.task.name == began_as)
    continued = not context.method.traits.has_experts and number > 0
    return context.stages[number - 1].name if continued else None
