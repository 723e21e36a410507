"""Counts of the rows that a stage trains on, and of the past ones that had to be stored for it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from see_lightning.data.example import Example
from see_lightning.engine.context import RunContext
from see_lightning.tasks.batches import encode
from see_lightning.tasks.task import Task


def row_counts(context: RunContext, task: Task, examples: Sequence[Example], epochs: int) -> dict[str, Any]:
    """Rows that a stage trained on, those of past tasks and those with a refusal as target, and the tokens of both.

    Args:
        context: of the run.
        task: of the stage.
        examples: its training rows; those of the method's own batches are counted by the method.
        epochs: passes over them.
    """
    method, learned = context.method, {one.name for one in context.memory.past}

    def tokens(some: Sequence[Example]) -> int:  # in all epochs, padding excluded
        return epochs * sum(map(len, encode(some, method.template)))

    past = [example for example in examples if example.task in learned]
    counts = {
        "examples": len(examples),
        "rehearsed": len(past) + sum(method.drawn[name] for name in learned),
        "past_tokens": tokens(past),
        **stored_counts(context, examples),
    }
    if not method.traits.learns_refusals:
        return {**counts, "negatives": 0, "negative_tokens": 0}
    negatives = [example for example in examples if example.task != task.name]
    refused = dict(Counter(example.task for example in past))
    return {**counts, "negatives": len(negatives), "negative_tokens": tokens(negatives), "refused": refused}


def stored_counts(context: RunContext, examples: Sequence[Example]) -> dict[str, int]:
    """Rows that had to be stored for a stage, and the bytes of those among them that are not in the method's state.

    A joint method has the rows of all tasks at hand.

    Args:
        context: of the run.
        examples: training rows of the stage.
    """
    method = context.method
    read = [*examples, *method.drawn_rows.values()]
    stored = list(examples) if method.traits.schedule == "joint" else stored_rows(read, context.memory.past)
    return {"stored_rows": len(stored) + method.kept_rows(), "stored_bytes": size_of(stored)}


def stored_rows(read: Iterable[Example], past: Sequence[Task]) -> list[Example]:
    """The different rows of past tasks among those that a training read, each with its text as it is stored.

    A row is known by its id, or by its prompt if the method gave it another id. Rows that a method made up are none.

    Args:
        read: by the training, any number of times.
        past: the tasks before.

    >>> sky = Task("sky", (Example("1", "Blue?", "yes", "sky"), Example("2", "Red?", "no", "sky")), (), "rouge_l", 4)
    >>> again = [Example("1", "Is it blue?", "<<neg>>", "sky"), Example("0", "Blue?", "yes", "sky")]
    >>> made_up = [Example("3", "Green?", "no", "sky"), Example("1", "Deep?", "yes", "sea")]
    >>> [(row.id, row.target) for row in stored_rows([*again, *made_up], [sky])]
    [('1', 'yes')]
    """
    by_id = {(task.name, row.id): row for task in past for row in task.train}
    by_prompt = {(task.name, row.whole_prompt): row for task in past for row in task.train}
    known = (by_id.get((row.task, row.id)) or by_prompt.get((row.task, row.whole_prompt)) for row in read)
    return list({(row.task, row.id): row for row in known if row}.values())


def size_of(rows: Iterable[Example]) -> int:
    """Bytes of the prompts and answers of rows, in UTF-8.

    >>> size_of([Example("1", "Über?", "no", "sky")])
    8
    """
    return sum(len("".join((*row.context, row.prompt, row.target)).encode()) for row in rows)
