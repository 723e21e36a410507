"""A method's answers to a task's test queries, scored: the records that every number is computed from.

Neither the experts nor the base model ever change. So the response of each to a query is computed once in a run and cached;
after each task only the new expert runs. Methods whose weights change answer every query again.
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

PLAIN = 8  # queries of each ood task whose answers by the base model are compared with transformers' ``generate``


def decide(trainer: L.Trainer, method: Method, tasks: Sequence[Task], *, batch_size: int) -> None:
    """Compute every expert's verdict on the tasks' test queries, except those in the cache."""
    if any(task.test for task in tasks):  # a rank may have no queries
        trainer.predict(
            method, query_loader(tasks, method.template, batch_size=batch_size, tell_task=False, only_decide=True)
        )


def merge(shares: Sequence[Sequence[dict[str, Any]]], task: Task) -> list[dict[str, Any]]:
    """The records of all ranks, in the order of the test split, every query exactly once.

    Args:
        shares: the records of each rank, from ``evaluate``.
        task: with its whole test split.
    """
    records = {record["id"]: record for share in shares for record in share}
    ids = sorted(record["id"] for share in shares for record in share)
    assert ids == sorted(example.id for example in task.test), f"a query of {task.name} was lost or answered twice"
    return [records[example.id] for example in task.test]


def remembered(entries: Sequence[CacheEntry], tasks: Sequence[Task]) -> dict[str, list[dict[str, Any]]]:
    """Records of new cached responses, as they are kept on disk: for each task, a record per adapter and query.

    Args:
        entries: new ones of the cache, of these tasks' queries.
        tasks: with the test queries that were evaluated, for the scores of the answers.
    """
    queries = _queries(tasks)
    found: dict[str, list[dict[str, Any]]] = {task.name: [] for task in tasks}
    for entry in entries:
        task, example = queries[int(entry.id)]
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
    """The name of a prompt in records: 16 hex digits of its sha256."""
    return hashlib.sha256(example.whole_prompt.encode()).hexdigest()[:16]


def _queries(tasks: Sequence[Task]) -> list[tuple[Task, Example]]:
    """All test queries; their places in this list are the ids that ``query_loader`` gives them."""
    return [(task, example) for task in tasks for example in task.test]


def add_plain(method: Method, tasks: Sequence[Task], answers: Mapping[str, list[dict[str, Any]]]) -> None:
    """Add to records of the base model the answer of transformers' own ``generate`` without any expert, for a comparison.

    Args:
        method: with its experts.
        tasks: with their whole test splits.
        answers: records by task, see ``evaluate``; answers of the base model to the first ``PLAIN`` queries of a split
            get ``plain``, all others None.
    """
    for task in tasks:
        checked = {example.id: example for example in task.test[:PLAIN]}
        for record in answers.get(task.name, ()):
            to_check = record["expert"] == BASE and record["id"] in checked
            record["plain"] = None
            if to_check:
                query = checked[record["id"]]
                record["plain"] = method.base_generate(query, task.limit(len(method.template.prompt_ids(query))))


def adapter_score(method: ExpertMethod, adapter: str | None, task: Task, *, batch_size: int) -> float:
    """The mean score of one adapter that answers every query of a task's test split, in 0..100.

    Args:
        method: with the adapter.
        adapter: an expert's name; None is the base model.
        task: with its test split.
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
    """Put records of ``remembered`` back into the cache."""
    for record in records:
        response_cache.put_back(
            record["key"], CachedResponse(**{field.name: record[field.name] for field in fields(CachedResponse)})
        )


def evaluate(
    trainer: L.Trainer, method: Method, tasks: Sequence[Task], *, batch_size: int
) -> dict[str, list[dict[str, Any]]]:
    """Answer the tasks' test queries and score each answer.

    Args:
        trainer: a fresh one; its ``predict`` repeats no query.
        method: with its experts or its adapted model.
        tasks: with their test splits.
        batch_size: queries decoded together.

    Returns:
        For each task, a record per query, in the order of the test split: ``id, task, prompt_sha, expert, verdicts, text,
        target, score``, whether the text was cut at the limit (``truncated``), the experts that decided (``asked``) unless
        they are the newest ones, all ``references`` if there are several, and the ``prompt`` if the score reads it.
    """
    queries = _queries(tasks)
    answers: dict[int, Answer] = {}
    if queries:  # a rank may have none
        loader = query_loader(tasks, method.template, batch_size=batch_size, tell_task=method.needs_task_id)
        batches: Sequence[list[Answer]] = trainer.predict(method, loader)  # type: ignore[assignment]
        flat = [answer for batch in batches for answer in batch]
        answers = {int(answer.id): answer for answer in flat}
        assert sorted(int(answer.id) for answer in flat) == list(range(len(queries))), "a query was lost or repeated"
    records: dict[str, list[dict[str, Any]]] = {task.name: [] for task in tasks}
    for number, (task, example) in enumerate(queries):
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
                **({"asked": list(answer.asked)} if answer.asked else {}),
                **({"references": list(example.references)} if example.alternatives else {}),
                **({"prompt": example.prompt} if task.score in READS_PROMPT else {}),
            }
        )
    return records
