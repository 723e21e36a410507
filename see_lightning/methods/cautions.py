"""Cautions before a run of SEE: past tasks that its experts learn to refuse with too few examples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from see_lightning.errors import listed
from see_lightning.tasks.memory import even_level, num_rehearsed
from see_lightning.tasks.task import Task

ENOUGH = 12  # negatives of a past task; with fewer, experts were measured to accept its queries
NAMED = 6  # most tasks that a caution names
OFTEN = f"experts that refused fewer than about {ENOUGH} often take queries of that task for their own."


def few_refusals(settings: Mapping[str, Any], tasks: Sequence[Task]) -> list[str]:
    """Past tasks with few negatives, and the settings that give more.

    Args:
        settings: of the method: ``ratio``, ``min_negatives``, ``max_negatives``.
        tasks: of the run, in their order.
    """
    ratio, at_least = settings["ratio"], settings.get("min_negatives", 0)
    wanted = {task: num_rehearsed(ratio, len(task.train), at_least) for task in tasks[:-1]}
    few = {task: number for task, number in wanted.items() if number < ENOUGH}
    cautions = [_few_rows(few, ratio)] if few else []
    return cautions + _few_places(list(wanted.values()), settings.get("max_negatives", 0))


def _few_rows(few: Mapping[Task, int], ratio: float) -> str:
    """Tasks of which the ratio and the least number give few negatives, with those numbers."""
    told = listed((f"{number} of {len(task.train)} rows of {task.name}" for task, number in few.items()), most=NAMED)
    sizes = [len(task.train) for task, number in few.items() if number < len(task.train)]
    scarce = [task.name for task, number in few.items() if number == len(task.train)]
    advice = ""
    if sizes:
        enough = math.ceil(100 * min(ENOUGH, min(sizes)) / min(sizes)) / 100
        advice += f" Give ratio={enough:g}{f' or method.min_negatives={ENOUGH}' if ratio else ''}."
    if scarce:
        advice += f" Of {listed(scarce, most=NAMED)} there are no more rows: more of them help."
    return f"later experts learn to refuse {told}; {OFTEN}{advice}"


def _few_places(wanted: Sequence[int], most: int) -> list[str]:
    """A caution if a limit for all past tasks together leaves fewer than ``ENOUGH`` negatives of one.

    Args:
        wanted: negatives of each past task without the limit, in the order of tasks.
        most: of all past tasks together; 0 is no limit.
    """
    enough = [min(number, ENOUGH) for number in wanted]
    if not most or sum(enough) <= most:
        return []
    first = next(past for past in range(1, len(wanted) + 1) if sum(enough[:past]) > most)
    return [
        f"method.max_negatives={most} leaves fewer than {ENOUGH} refusals of some past tasks from the expert of task"
        f" {first + 1} on, and about {even_level(wanted, most)} of each for the expert of task {len(wanted) + 1}; {OFTEN}"
        f" method.max_negatives={sum(enough)} is enough for all {len(wanted) + 1} tasks."
    ]
