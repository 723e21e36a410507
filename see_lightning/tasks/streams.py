"""Streams in which tasks come back or run into one another: a run's tasks, made from a benchmark's tasks.

``recurring``: the visits of a task are tasks of their own, each with its share of the rows (SCoLe, arXiv 2207.04543, has the
same data again). ``blurry``: a share of each task's training rows is learned in the stages of the others (i-Blurry, arXiv
2110.10031, without disjoint classes).
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from see_lightning.config.schema import OrderConfig, visit_name
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.seeds import seed
from see_lightning.tasks.task import Task


def in_stream(tasks: Sequence[Task], order: OrderConfig) -> list[Task]:
    """The tasks of a run in the order of learning.

    Args:
        tasks: of the benchmark, in the run's order.
        order: settings of the stream.

    Raises:
        ConfigError: a task has too few rows for the stream.
    """
    if order.stream == "recurring":
        return recurring(tasks, order.visits)
    return blurry(tasks, order.share) if order.stream == "blurry" else list(tasks)


def recurring(tasks: Sequence[Task], visits: int) -> list[Task]:
    """Each task ``visits`` times, one round of all tasks after another: a_1, b_1, a_2, b_2.

    A task's training, validation, held-out and test rows are each dealt over its visits in turn: every row is in one visit.
    The rows of a visit depend on its own task and on the number of visits alone.

    Args:
        tasks: in the order of each round.
        visits: of each task, at least 1.

    Raises:
        ConfigError: a task has fewer rows than visits.
    """
    for task in tasks:
        kinds = {"training": task.train, "test": task.test, "held-out": task.held_out, "validation": task.valid}
        for kind, rows in kinds.items():
            if len(rows) < visits and (rows or kind in ("training", "test")):
                raise ConfigError(
                    f"order.visits={visits}, but {task.name} has {len(rows)} {kind} rows, and each visit needs at least one;"
                    f" give fewer visits or more rows."
                )
    return [_visit(task, number, visits) for number in range(1, visits + 1) for task in tasks]


def _visit(task: Task, number: int, visits: int) -> Task:
    """One of a task's visits, counted from 1; notices about the task come with the first."""
    name = visit_name(task.name, number)
    train, test, held_out, valid = (
        _learned_as(name, rows[number - 1 :: visits]) for rows in (task.train, task.test, task.held_out, task.valid)
    )
    notices = task.notices if number == 1 else ()
    return replace(task, name=name, train=train, test=test, held_out=held_out, valid=valid, notices=notices)


def blurry(tasks: Sequence[Task], share: float) -> list[Task]:
    """The tasks, each with most of its own training rows and some of the others'.

    Of a task's rows the last ``share`` are dealt in turn to the others, beginning with the task after it. Every row is
    trained on in one stage. A method does not learn which rows of a stage are of another task. Validation, held-out and test
    rows stay with their own task.

    Args:
        tasks: in their order, at least two.
        share: of each task's training rows that go to other stages, 0..1, rounded to whole rows; as many come in if all
            tasks have equally many rows.

    Raises:
        ConfigError: no row would stay with its own task.
    """
    away = [round(share * len(task.train)) for task in tasks]
    rows: list[list[Example]] = []
    for task, gone in zip(tasks, away, strict=True):
        if gone == len(task.train):
            raise ConfigError(
                f"order.share={share:g} would leave none of the {gone} training rows of {task.name} in its own stage; give a"
                f" smaller share or more rows."
            )
        rows.append(list(task.train[: len(task.train) - gone]))
    for place, (task, gone) in enumerate(zip(tasks, away, strict=True)):
        others = [*range(place + 1, len(tasks)), *range(place)]
        for number, example in enumerate(task.train[len(task.train) - gone :]):
            rows[others[number % len(others)]].append(example)
    return [
        replace(task, train=_learned_as(task.name, _distinct(task.name, _mixed(task.name, own))))
        for task, own in zip(tasks, rows, strict=True)
    ]


def _distinct(name: str, rows: Sequence[Example]) -> list[Example]:
    """The rows, of which those of other tasks have another id where one of this stage has the same: ids tell rows apart."""
    times = Counter(row.id for row in rows)
    return [replace(row, id=f"{row.task}/{row.id}") if times[row.id] > 1 and row.task != name else row for row in rows]


def _mixed(name: str, rows: Sequence[Example]) -> list[Example]:
    """The rows in a random order that depends on the stage's name alone."""
    return random.Random(seed(0, name, "blurry")).sample(list(rows), len(rows))


def _learned_as(name: str, rows: Sequence[Example]) -> tuple[Example, ...]:
    """The rows as those of the task with this name; their ids still tell where they come from."""
    return tuple(replace(row, task=name) for row in rows)
