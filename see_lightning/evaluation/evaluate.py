"""A method's answers to a task's test queries, scored: the records that every number is computed from.

Experts never change, and neither does the base model. So what one of them says to a query is computed once in a run and
remembered; after each task only the new expert is asked. Methods whose weights move are asked everything again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import lightning as L
import torch

from see_lightning.adapters.response_cache import CachedResponse, CacheEntry, ResponseCache
from see_lightning.data.example import Example
from see_lightning.evaluation.routing import BASE
from see_lightning.evaluation.scores import READS_PROMPT, best_score
from see_lightning.methods.method import Answer, ExpertMethod, Method
from see_lightning.tasks.datamodule import query_loader
from see_lightning.tasks.task import Task

PLAIN = 8  # queries of each foreign task whose answers, if they are the base model's, are checked one by one


def decide(trainer: L.Trainer, method: Method, tasks: Sequence[Task], *, batch_size: int) -> None:
    """Let every expert say whether it would accept the tasks' test queries; what is remembered is not asked again."""
    if any(task.test for task in tasks):  # a rank may have no share
        trainer.predict(
            method, query_loader(tasks, method.template, batch_size=batch_size, tell_task=False, only_decide=True)
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


def remembered(entries: Sequence[CacheEntry], tasks: Sequence[Task]) -> dict[str, list[dict[str, Any]]]:
    """What was said for the first time, as it is kept: for each task, a record per voice and query.

    Args:
        entries: of these tasks' queries.
        tasks: as they were asked, for the score of what was answered.
    """
    asked = _asked(tasks)
    found: dict[str, list[dict[str, Any]]] = {task.name: [] for task in tasks}
    for entry in entries:
        task, example = asked[int(entry.id)]
        response = entry.response.text
        score = None if response is None else best_score(task.score, response, example.references, example.prompt)
        found[task.name].append(
            {
                "id": example.id,
                "task": task.name,
                "prompt_sha": prompt_sha(example),
                "expert": entry.expert,
                **asdict(entry.response),
                "score": score,
                "key": entry.key,
            }
        )
    return found


def prompt_sha(example: Example) -> str:
    """What names a prompt in records."""
    return hashlib.sha256(example.prompt.encode()).hexdigest()[:16]


def _asked(tasks: Sequence[Task]) -> list[tuple[Task, Example]]:
    """Test queries by the numbers that ``query_loader`` names them by."""
    return [(task, example) for task in tasks for example in task.test]


def add_plain(method: Method, tasks: Sequence[Task], answers: Mapping[str, list[dict[str, Any]]]) -> None:
    """Note beside the base model's answers what transformers' own ``generate`` says without any expert.

    Args:
        method: whose experts passed the queries on.
        tasks: with their whole test splits.
        answers: records by task, see ``evaluate``; those that the base model gave to the first ``PLAIN`` queries of a
            split get ``plain``, all others None.
    """
    for task in tasks:
        checked = {example.id: example.prompt for example in task.test[:PLAIN]}
        for record in answers.get(task.name, ()):
            to_check = record["expert"] == BASE and record["id"] in checked
            record["plain"] = None
            if to_check:
                prompt = checked[record["id"]]
                record["plain"] = method.base_generate(prompt, task.limit(len(method.template.prompt_ids(prompt))))


def adapter_score(method: ExpertMethod, adapter: str | None, task: Task, *, batch_size: int) -> float:
    """What one voice scores on a task's test split if it answers every query, the mean in 0..100.

    Args:
        method: of the voice.
        adapter: an expert's name; None is the base model.
        task: whose test split is asked.
        batch_size: queries decoded together.
    """
    loader = query_loader([task], method.template, batch_size=batch_size, tell_task=False)
    with torch.inference_mode():
        texts = {int(answer.id): answer.text for queries in loader for answer in method.generate_as(adapter, queries)}
    scores = [
        best_score(task.score, texts[n], example.references, example.prompt) for n, example in enumerate(task.test)
    ]
    return round(sum(scores) / len(scores), 4)


def put_back(response_cache: ResponseCache, records: Sequence[Mapping[str, Any]]) -> None:
    """Remember what ``remembered`` wrote down."""
    for record in records:
        response_cache.put_back(
            record["key"], CachedResponse(**{field.name: record[field.name] for field in fields(CachedResponse)})
        )


def evaluate(
    trainer: L.Trainer, method: Method, tasks: Sequence[Task], *, batch_size: int
) -> dict[str, list[dict[str, Any]]]:
    """Answer tasks' test splits and score each answer.

    Args:
        trainer: a fresh one; its ``predict`` repeats no query.
        method: who answers.
        tasks: whose test splits are asked.
        batch_size: queries decoded together.

    Returns:
        For each task, a record per query, in the order of the test split: ``id, task, prompt_sha, expert, verdicts, text,
        target, score``, whether the text was cut at the limit (``truncated``), all ``references`` if there are several, and
        the ``prompt`` if the score reads it.
    """
    asked = _asked(tasks)
    answers: dict[int, Answer] = {}
    if asked:  # a rank may have no share
        loader = query_loader(tasks, method.template, batch_size=batch_size, tell_task=method.needs_task_id)
        batches: Sequence[list[Answer]] = trainer.predict(method, loader)  # type: ignore[assignment]
        given = [answer for batch in batches for answer in batch]
        answers = {int(answer.id): answer for answer in given}
        found = sorted(int(answer.id) for answer in given)
        assert found == list(range(len(asked))), "a query was lost or repeated"
    records: dict[str, list[dict[str, Any]]] = {task.name: [] for task in tasks}
    for number, (task, example) in enumerate(asked):
        answer = answers[number]
        records[task.name].append(
            {
                "id": example.id,
                "task": task.name,
                "prompt_sha": prompt_sha(example),
                "expert": answer.expert,
                "verdicts": list(answer.verdicts),
                "text": answer.text,
                "target": example.target,
                "score": best_score(task.score, answer.text, example.references, example.prompt),
                "truncated": answer.truncated,
                **({"references": list(example.references)} if example.alternatives else {}),
                **({"prompt": example.prompt} if task.score in READS_PROMPT else {}),
            }
        )
    return records
