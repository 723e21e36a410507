"""``expert.json``: the origin of an expert, and its score on its own task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from see_lightning.adapters.files import EXPERT_FILE
from see_lightning.engine.context import RunContext
from see_lightning.engine.ledger import dump
from see_lightning.engine.stages import Stage


def write_expert_file(context: RunContext, stage: Stage, trained: Mapping[str, Any], score: float | None) -> Path:
    """Write ``expert.json`` once, when the score is known; it never changes afterwards.

    Args:
        context: of the run.
        stage: that trained the expert.
        trained: the stage's entry ``trained`` in the ledger.
        score: 0 to 100, on the expert's task after its stage; None where the stage does not test it.

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
        **({"verdicts": not trained.get("never_refuses")} if context.method.traits.learns_refusals else {}),
        **assignment,
        "training": {key: trained[key] for key in ("examples", "rehearsed", "negatives", "steps")},
        "score": score,
    }
    context.ledger.write(path, dump(content))
    return path


def _parent(context: RunContext, number: int, began_as: str | None) -> str | None:
    """The stage whose weights initialised an expert; None for random weights."""
    if began_as:
        return next(one.name for one in context.stages if one.task and one.task.name == began_as)
    traits = context.method.traits
    continued = traits.trains and not traits.has_experts and number > 0
    return context.stages[number - 1].name if continued else None
