"""Test queries of a made-up run, with texts that are no good as HTML or JavaScript."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from see_lightning.reporting.answers.queries import StageAnswers, TestQueries

TASKS = ("qa", "<b>tone</b>", "sum")
NASTY = '</script><script>document.title="ran"</script><img src=x onerror="document.title=\'ran\'">\u2028"quoted" \\ مرحبا 🙂'
DEFINITION = "Answer the question.\n\n"


def digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def prompt_of(task: str, number: int) -> str:
    return f"{DEFINITION}Query {number} of {task}? {NASTY if number == 1 else ''}"


def results(**changes: Any) -> dict[str, Any]:
    return {
        "method": "see", "order": "made_up", "model": "tiny", "ratio": 0.1, "seed": 0, "tasks": list(TASKS),
        "score": dict.fromkeys(TASKS, "rouge_l"), "routing": {"accuracy": 0.9, "thresholds": {"qa": 1.5}},
    } | changes  # fmt: skip


def answer(task: str, number: int, expert: str | None, verdicts: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    return {
        "id": f"{task}-{number}", "task": task, "prompt_sha": digest(prompt_of(task, number)), "expert": expert,
        "verdicts": list(verdicts), "text": f"by {expert} {number}", "target": f"right {number}", "score": float(number % 101),
        "truncated": False,
    } | changes  # fmt: skip


def walked(size: int = 4) -> list[StageAnswers]:
    """A walk through the experts, newest first: the last query of each task goes to the base model, the first to ``qa``."""
    stages = []
    for number in range(len(TASKS)):
        learned, answers = TASKS[: number + 1], []
        for task in TASKS[: number + 2]:
            for row in range(size):
                expert = "base" if task not in learned or row == size - 1 else "qa" if row == 0 else task
                asked = learned[::-1]
                verdicts = ["neg"] * (asked.index(expert) if expert in asked else len(asked))
                answers.append(answer(task, row, expert, [*verdicts, *(["pos"] if expert in asked else [])]))
        stages.append(StageAnswers(f"0{number + 1}-{TASKS[number]}", learned, answers))
    return stages


def responses(size: int = 4) -> list[dict[str, Any]]:
    """The verdict of every expert on every query, in the order of the experts."""
    return [
        {"task": task, "prompt_sha": digest(prompt_of(task, row)), "expert": expert, "verdict": "pos", "log_odds": place + 0.25}
        for task in TASKS
        for row in range(size)
        for place, expert in enumerate(TASKS)
    ]  # fmt: skip


def prompts(size: int = 4) -> dict[str, str]:
    return {digest(prompt_of(task, row)): prompt_of(task, row) for task in TASKS for row in range(size)}


def queries(size: int = 4, given: Mapping[str, str] | None = None, **changes: Any) -> TestQueries:
    return TestQueries(results(**changes), walked(size), responses(size), prompts(size) if given is None else given)
