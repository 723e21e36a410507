"""Distribution of test queries over ranks, balanced by their expected cost."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task

# Cost of a generated token in tokens of a prompt, which are processed in parallel.
WRITTEN = 8


def balance(costs: Sequence[Sequence[float]], ranks: int) -> list[list[list[int]]]:
    """Distribute the queries of several tasks: task by task, the most expensive first, each to the rank with the least load.

    A rank's queries of a task do not depend on later tasks. So a query stays on its rank through all stages of a run, and the
    load is even whether few or all tasks are tested.

    Args:
        costs: for each task, the cost of each query, in any unit.
        ranks: number of ranks.

    Returns:
        For each task, for each rank, the numbers of its queries, ascending.

    >>> balance([[1, 5, 2, 2], [3, 3]], ranks=2)
    [[[1], [0, 2, 3]], [[0], [1]]]
    """
    loads = [0.0] * ranks
    balanced = []
    for task_costs in costs:
        shares: list[list[int]] = [[] for _ in range(ranks)]
        for query in sorted(range(len(task_costs)), key=lambda query: (-task_costs[query], query)):
            rank = loads.index(min(loads))
            shares[rank].append(query)
            loads[rank] += task_costs[query]
        balanced.append([sorted(share) for share in shares])
    return balanced


def expected_costs(task: Task, template: PromptTemplate) -> list[float]:
    """The cost of each test query of a task: its prompt's tokens, and an answer of the training answers' mean length."""
    answer_tokens = (
        mean(len(template.target_ids(example.target)) for example in task.train) if task.train else task.max_new_tokens
    )
    return [len(template.prompt_ids(example)) + WRITTEN * answer_tokens for example in task.test]


def shard_of(tasks: Sequence[Task], template: PromptTemplate, *, rank: int, ranks: int) -> dict[str, Task]:
    """Each task, by name, with only the test queries that one rank answers.

    Args:
        tasks: in the run's order.
        template: counts tokens.
        rank: number of the rank, from 0.
        ranks: number of ranks.
    """
    if ranks == 1:
        return {task.name: task for task in tasks}
    balanced = balance([expected_costs(task, template) for task in tasks], ranks)
    return {
        task.name: replace(task, test=tuple(task.test[query] for query in shares[rank]))
        for task, shares in zip(tasks, balanced, strict=True)
    }
