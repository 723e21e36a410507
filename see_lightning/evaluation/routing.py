"""Routing accuracy: the share of queries answered by the expert of their task, counted from the answers on disk.

An answer record is one line of ``answers.jsonl``; these fields are read: ``id``, ``task``, ``expert`` (a task's name or
``"base"``) and ``verdicts`` (``"pos"``, ``"neg"`` or ``"neither"``, newest expert first).

Letters: T tasks; E = T + 1 columns, the experts in the order of learning and then the base model.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

BASE = "base"
Confusion = Sequence[Sequence[int]]  # counts of shape [T, E]


def confusion(records: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[list[int]]:
    """Count the queries of each task by the expert that answered them.

    Args:
        records: answers to queries of `tasks`; at least one.
        tasks: those learned so far, in order; each has an expert of its name.

    Returns:
        Counts of shape [T, E]: a row per true task, a column per expert and the last for the base model.

    Raises:
        ValueError: there are no records, or one names a task or expert that is not among `tasks`.
    """
    if not records:
        raise ValueError("routing needs at least one answer; got none. Was the test set empty?")
    row = {task: t for t, task in enumerate(tasks)}
    column = {**row, BASE: len(tasks)}
    confusion_TE = [[0] * len(column) for _ in tasks]
    for record in records:
        if record["task"] not in row:
            raise ValueError(
                f"answer {record['id']!r} belongs to task {record['task']!r}, which has no expert yet; tasks with one: "
                f"{', '.join(tasks)}. Leave out the answers to later tasks."
            )
        if record["expert"] not in column:
            raise ValueError(
                f"answer {record['id']!r} was given by {record['expert']!r}; known: {', '.join(column)}. "
                "Only answers of methods with experts can be routed."
            )
        confusion_TE[row[record["task"]]][column[record["expert"]]] += 1
    return confusion_TE


def accuracy(confusion_TE: Confusion, given_T: Sequence[int] | None = None) -> float:
    """Share of queries that their own task's expert answered, 0..1.

    Args:
        confusion_TE: counts from ``confusion``.
        given_T: the column of each task's expert, if tasks may share one; by default each has its own.

    >>> accuracy([[3, 0, 1], [1, 3, 0]])
    0.75
    >>> accuracy([[3, 0, 1], [4, 0, 0]], [0, 0])
    0.875
    """
    columns = range(len(confusion_TE)) if given_T is None else given_T
    right = sum(row[column] for row, column in zip(confusion_TE, columns, strict=True))
    return right / sum(map(sum, confusion_TE))


def fallback_rate(confusion_TE: Confusion) -> float:
    """Share of queries that the base model answered, 0..1.

    >>> fallback_rate([[3, 0, 1], [1, 3, 0]])
    0.125
    """
    return sum(row[-1] for row in confusion_TE) / sum(map(sum, confusion_TE))


def no_verdict_rate(records: Sequence[Mapping[str, Any]]) -> float:
    """Share of queries for which an expert began with neither indicator, 0..1. At least one record.

    >>> no_verdict_rate([{"verdicts": ["neg", "pos"]}, {"verdicts": ["neither"]}])
    0.5
    """
    return sum("neither" in record["verdicts"] for record in records) / len(records)


def routing_report(
    records: Sequence[Mapping[str, Any]], tasks: Sequence[str], given: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The section of ``results.json`` on routing.

    Args:
        records: answers to queries of `tasks`; at least one.
        tasks: those learned so far, in order.
        given: by task, the right expert, ``base`` for a task without one; by default that of its name.

    Returns:
        ``accuracy``, ``confusion`` (rows of counts), ``tasks`` (its rows), ``columns``, ``base_share`` and
        ``no_indicator_share``.
    """
    confusion_TE, columns = confusion(records, tasks), [*tasks, BASE]
    return {
        "accuracy": accuracy(confusion_TE, [columns.index((given or {}).get(task, task)) for task in tasks]),
        "confusion": confusion_TE,
        "tasks": list(tasks),
        "columns": columns,
        "base_share": fallback_rate(confusion_TE),
        "no_indicator_share": no_verdict_rate(records),
    }


def misrouted(
    routing: Mapping[str, Any],
    *,
    least: float = 0.05,
    ratio: float = 0.0,
    sizes: Mapping[str, int] | None = None,
    most_in_all: int = 0,
    calibrated: bool = False,
    right: Collection[tuple[str, str]] = (),
) -> list[str]:
    """Advice on misrouted queries: a line for each expert that answers many queries of another task.

    Args:
        routing: from `routing_report`, with ``refused``: by expert, the number of negatives of each past task that it was
            trained on; None if unknown.
        least: share of a task's queries from which on there is a line, 0..1.
        ratio: of the run; below 0.5 a higher one is advised.
        sizes: training rows of tasks, the most negatives that there can be; None if unknown.
        most_in_all: limit of an expert's negatives of all past tasks together; 0 is none.
        calibrated: whether the experts have thresholds already; otherwise these are advised too.
        right: pairs of a task and an expert of another name that may answer it.
    """
    tasks, lines = routing["tasks"], []
    for task, row in zip(tasks, routing["confusion"], strict=True):
        for expert, queries in zip(tasks, row, strict=False):
            if expert == task or (task, expert) in right or not queries or queries < least * sum(row):
                continue
            taken = f"the expert of {expert} takes {queries} of {sum(row)} queries of {task}"
            if tasks.index(expert) < tasks.index(task):
                lines.append(
                    f"{taken}, which that of {task} passes on: train it longer (optim.epochs) or on more rows."
                )
                continue
            refused = (routing["refused"].get(expert) or {}).get(task)
            had = "" if refused is None else f", of which it had learned to refuse {refused} examples"
            most = (sizes or {}).get(task, 2 * (refused or 12))
            if most_in_all and sum((routing["refused"].get(expert) or {}).values()) == most_in_all:
                more = [f"method.max_negatives={2 * most_in_all}"]
            else:
                more = ["ratio=0.5"] if ratio < 0.5 else []
                more += [f"method.min_negatives={min(2 * (refused or 12), most)}"]
            cures = [f"train with more of them ({' or '.join(more)})"] if most > (refused or 0) else ["give more rows"]
            if not calibrated:
                cures.append(
                    "set thresholds, which trains nothing (see-lightning calibrate RUN_DIR --calibrate-on train)"
                )
            lines.append(f"{taken}{had}: {', or '.join(cures)}.")
    return lines
