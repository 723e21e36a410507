"""Dealing test queries to ranks, so that none waits long for another."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task

# A token that is written costs as much as so many that are read, which go through the model side by side.
WRITTEN = 8


def balance(costs: Sequence[Sequence[float]], ranks: int) -> list[list[list[int]]]:
    """Deal the queries of several tasks: task by task, the dearest first, each to the rank with the least so far.

    What a rank gets of a task hangs on no later task, so a query has the same rank after every stage of a run, and the
    load is even whether few or all tasks are tested.

    Args:
        costs: of each task's queries, in any unit.
        ranks: how many there are.

    Returns:
        For each task, for each rank, the numbers of its queries, ascending.

    >>> balance([[1, 5, 2, 2], [3, 3]], ranks=2)
    [[[1], [0, 2, 3]], [[0], [1]]]
    """
    loads = [0.0] * ranks
    balanced = []
    for column in costs:
        shares: list[list[int]] = [[] for _ in range(ranks)]
        for query in sorted(range(len(column)), key=lambda query: (-column[query], query)):
            rank = loads.index(min(loads))
            shares[rank].append(query)
            loads[rank] += column[query]
        balanced.append([sorted(share) for share in shares])
    return balanced


def expected_costs(task: Task, template: PromptTemplate) -> list[float]:
    """What answering each test query of a task will cost: its prompt is read, and an answer as long as usual written."""
    usual = (
        mean(len(template.target_ids(example.target)) for example in task.train) if task.train else task.max_new_tokens
    )
    return [len(template.prompt_ids(example.prompt)) + WRITTEN * usual for example in task.test]


def shard_of(tasks: Sequence[Task], template: PromptTemplate, *, rank: int, ranks: int) -> dict[str, Task]:
    """Each task with those of its test queries that one rank answers.

    Args:
        tasks: in their order.
        template: counts tokens.
        rank: from 0.
        ranks: how many there are.
    """
    if ranks == 1:
        return {task.name: task for task in tasks}
    balanced = balance([expected_costs(task, template) for task in tasks], ranks)
    return {
        task.name: replace(task, test=tuple(task.test[query] for query in shares[rank]))
        for task, shares in zip(tasks, balanced, strict=True)
    }
