"""Facts in ``results.json`` on tasks that share experts or rows: reused experts, and streams of tasks."""

from collections.abc import Mapping
from typing import Any

from see_lightning.config.schema import OrderConfig
from see_lightning.engine.run_data import RunData
from see_lightning.evaluation.routing import BASE


def assigned_experts(run: RunData) -> dict[str, Any]:
    """The expert that each task was assigned, if one was reused, or left out by ``order.experts``."""
    if not any(stage.get("assigned") for stage in run.trained):
        return {}
    own = [
        stage.get("assigned") or {"expert": name, "z": {}} for name, stage in zip(run.names, run.trained, strict=True)
    ]
    given = {name: one["expert"] for name, one in zip(run.names, own, strict=True)}
    return {
        "given": given,
        "expanded": [name == expert for name, expert in given.items()],
        "z": [one["z"] for one in own],
    }


def stream_of(run: RunData) -> dict[str, Any]:
    """The stream of the run's tasks, and by learned task the benchmark's; empty for tasks one after another."""
    order = run.config.order
    return {} if order.stream == "none" else {"stream": {"kind": order.stream, "tasks": order.learned()}}


def stream_notices(order: OrderConfig) -> list[str]:
    """What a row and a column of the results matrix are in a stream."""
    if order.stream == "recurring":
        return [
            f"order.stream=recurring: each task comes back, in {order.visits} visits named TASK_1 to TASK_{order.visits},"
            " each with its share of the task's training and test rows. A row of the matrix is the state after a visit, a"
            " column the test rows of a visit. Scores before a later visit are not those of an unseen task."
        ]
    if order.stream == "blurry":
        return [
            f"order.stream=blurry: {order.share:.0%} of each task's training rows are learned in the stages of the others. A"
            " row of the matrix is the state after a task's stage, a column the test rows of a task. Scores before a task's"
            " stage are not those of an unseen task."
        ]
    return []


def _stages(run: RunData) -> dict[str, dict[str, Any]]:
    """The ledger's entry of each task's training; empty if one stage trained all tasks."""
    return dict(zip(run.names, run.trained, strict=True)) if len(run.names) == len(run.trained) else {}


def assignment_notices(run: RunData, results: Mapping[str, Any]) -> list[str]:
    """The tasks without an expert of their own, and what is known of imported ones."""
    notices = [
        f"the expert of {name} was imported: {note}."
        for name, stage in _stages(run).items()
        for note in stage.get("import_notes", ())
    ]
    for (task, expert), z in zip(results.get("given", {}).items(), results.get("z", []), strict=True):
        if expert == BASE:
            notices.append(f"{task} has no expert, by order.experts.")
        elif expert != task:
            far = f" (z {z[expert]:.2f})" if z else ""
            notices.append(f"{task} has no expert of its own: that of {expert} explains it{far}.")
    return notices


def right_experts(run: RunData, given: Mapping[str, str] | None) -> set[tuple[str, str]]:
    """Pairs of a task and an expert of another name whose answer is no fault of training.

    Its own was reused, left out, or is of the same task; or the other one was imported and refuses nothing.
    """
    task_of = run.config.order.learned()
    visits = {(name, other) for name in task_of for other in task_of if task_of[name] == task_of[other]}
    imported = [name for name, stage in _stages(run).items() if stage.get("never_refuses")]
    left_out = [task for task, expert in (given or {}).items() if expert == BASE]
    others = {(name, other) for name in task_of for other in imported}
    return visits | {*(given or {}).items()} | others | {(task, other) for task in left_out for other in task_of}


def same_task(run: RunData) -> dict[str, float]:
    """Share of queries that an expert of any visit of their task answered, 0..1; empty if no task comes back."""
    if run.config.order.stream != "recurring":
        return {}
    task_of = {**run.config.order.learned(), BASE: BASE}
    right = sum(task_of[record["expert"]] == task_of[record["task"]] for record in run.final)
    return {"same_task": right / len(run.final)}
