"""A method's answers to a task's test queries, scored: the records that every number is computed from.

Experts never change, and neither does the base model. So what one of them says to a query is computed once in a run and
remembered; after each task only the new expert is asked. Methods whose weights move are asked everything again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import lightning as L

from see_lightning.evaluation.scores import score_fn
from see_lightning.experts.recall import Entry, Recall, Said
from see_lightning.methods.method import Answer, Method
from see_lightning.tasks.datamodule import query_loader
from see_lightning.tasks.task import Task


def decide(trainer: L.Trainer, method: Method, task: Task, *, batch_size: int) -> None:
    """Let every expert say whether it would accept a task's test queries; what is remembered is not asked again."""
    if not task.test:
        return
    trainer.predict(
        method, query_loader(task, method.template, batch_size=batch_size, tell_task=False, only_decide=True)
    )


def merge(shares: Sequence[Sequence[dict[str, Any]]], task: Task) -> list[dict[str, Any]]:
    """The records of all ranks, in the order of the test split, every query exactly once.

    Args:
        shares: of each rank, from ``evaluate``.
        task: with its whole test split.
    """
    records = {record["id"]: record for share in shares for record in share}
    found = sorted(record["id"] for share in shares for record in share)
    assert found == sorted(example.id for example in task.test), f"a query of {task.name} was lost or answered twice"
    return [records[example.id] for example in task.test]


def remembered(entries: Sequence[Entry], task: Task) -> list[dict[str, Any]]:
    """What was said for the first time, as it is kept: a record per voice and query.

    Args:
        entries: of this task's queries.
        task: for the score of what was answered.
    """
    score = score_fn(task.score)
    targets = {example.id: example.target for example in task.test}
    return [
        {
            "id": entry.id,
            "task": task.name,
            "expert": entry.expert,
            **asdict(entry.said),
            "score": None if entry.said.text is None else score(entry.said.text, targets[entry.id]),
            "key": entry.key,
        }
        for entry in entries
    ]


def put_back(recall: Recall, records: Sequence[Mapping[str, Any]]) -> None:
    """Remember what ``remembered`` wrote down."""
    for record in records:
        recall.put_back(record["key"], Said(**{field.name: record[field.name] for field in fields(Said)}))


def evaluate(trainer: L.Trainer, method: Method, task: Task, *, batch_size: int) -> list[dict[str, Any]]:
    """Answer a task's test split and score each answer.

    Args:
        trainer: a fresh one; its ``predict`` repeats no query.
        method: who answers.
        task: whose test split is asked.
        batch_size: queries decoded together.

    Returns:
        A record per query, in the order of the test split: ``id, task, prompt_sha, expert, verdicts, text, target,
        score``, and whether the text was cut at the limit (``truncated``).
    """
    if not task.test:
        return []  # a rank may have no share
    loader = query_loader(task, method.template, batch_size=batch_size, tell_task=method.needs_task_id)
    batches: Sequence[list[Answer]] = trainer.predict(method, loader)  # type: ignore[assignment]
    answers = {answer.id: answer for batch in batches for answer in batch}
    asked = sorted(example.id for example in task.test)
    assert sorted(a.id for batch in batches for a in batch) == asked, f"a query of {task.name} was lost or repeated"
    score = score_fn(task.score)
    return [
        {
            "id": example.id,
            "task": task.name,
            "prompt_sha": hashlib.sha256(example.prompt.encode()).hexdigest()[:16],
            "expert": answers[example.id].expert,
            "verdicts": list(answers[example.id].verdicts),
            "text": answers[example.id].text,
            "target": example.target,
            "score": score(answers[example.id].text, example.target),
            "truncated": answers[example.id].truncated,
        }
        for example in task.test
    ]
