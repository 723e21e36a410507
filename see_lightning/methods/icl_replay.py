"""Past rows in the base model's prompt: nothing is trained, the stored rows nearest to a query stand before it.

The choice of rows is that of Liu et al., *What Makes Good In-Context Examples for GPT-3?*, DeeLIO 2022, arXiv 2101.06804.

Letters: P queries, N stored rows, H hidden states.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from see_lightning.adapters.embeddings import cosine, embed_prompts
from see_lightning.config.checks import check_ratio, within
from see_lightning.errors import ConfigError
from see_lightning.methods.method import Answer, Method
from see_lightning.methods.setup import Setup, Traits
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.bodies import query_of
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

Row = tuple[str, str]  # prompt and answer


def nearest(states_PH: Tensor, stored_NH: Tensor) -> Tensor:
    """The numbers of the stored rows by increasing cosine distance from each query, (P, N); of equal ones the older first.

    >>> nearest(torch.tensor([[1.0, 0.1]]), torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])).tolist()
    [[1, 0, 2]]
    """
    return cosine(states_PH, stored_NH).argsort(dim=1, stable=True)


def in_context(rows: Sequence[Row], query: str) -> str:
    r"""A query behind solved rows, in the form in which they are solved; without rows the query alone.

    >>> in_context([("2 + 2?", "4")], "1 + 2?")
    '2 + 2?\nAnswer: 4\n\n1 + 2?\nAnswer:'
    """
    if not rows:
        return query
    return "\n\n".join([*(f"{prompt}\nAnswer: {answer}" for prompt, answer in rows), f"{query}\nAnswer:"])


def fitting(rows: Sequence[Row], number: int, fits: Callable[[Sequence[Row]], bool]) -> list[Row]:
    """Of the nearest rows those that fit together, the nearest last, where it is next to the query.

    Args:
        rows: by increasing distance.
        number: of rows that are tried; one that does not fit is left out, and a farther one may still fit.
        fits: whether rows in this order leave room for query and answer.

    >>> rows = [("aa", "1"), ("bbbbbb", "2"), ("c", "3"), ("d", "4")]
    >>> fitting(rows, 3, lambda some: sum(len(prompt) for prompt, _ in some) <= 4)
    [('c', '3'), ('aa', '1')]
    """
    chosen: list[Row] = []
    for row in rows[:number]:
        if fits([row, *chosen]):
            chosen.insert(0, row)
    return chosen


def packed(rows: Sequence[Row]) -> Tensor:
    """Rows as the bytes of a JSON text, in which no character is lost.

    >>> unpacked(packed([("2 + 2?", "4")]))
    [('2 + 2?', '4')]
    """
    return torch.tensor(list(json.dumps(rows).encode()), dtype=torch.uint8)


def unpacked(bytes_: Tensor) -> list[Row]:
    """The rows that ``packed`` turned into bytes."""
    return [(prompt, answer) for prompt, answer in json.loads(bytes(bytes_.tolist()))]


class IclReplay(Method):
    """The base model, which sees solved rows of the tasks so far in its prompt.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of each task's rows that is stored, above 0, at most 1; they are drawn once.
        examples: stored rows in a prompt, at most; at least 1.
    """

    # Queries are embedded where they are answered, and each rank answers its own.
    traits = Traits(trains=False, shardable=False, peft_loadable=False, takes_conversations=False)
    ADAPTER: ClassVar[str | None] = None
    reads_per_query = 2

    def __init__(self, setup: Setup, *, ratio: float, examples: int) -> None:
        super().__init__(setup)
        check_ratio("method.ratio", ratio)
        within("method.examples", examples, 1)
        if ratio == 0:
            raise ConfigError("method=icl_replay stores no row with ratio=0; give a ratio above 0, or method=base.")
        self.ratio, self.examples = ratio, examples
        #: By task, its stored rows, and the base model's embeddings of their prompts, (N, H).
        self.rows: dict[str, list[Row]] = {}
        self.embedded: dict[str, Tensor] = {}

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Nothing is trained."""

    def end_task(self, task: Task, memory: Memory) -> None:
        """Stores rows of the task."""
        own = Memory(self.run_seed)
        own.add(task)
        stored = own.rehearse(task, ratio=self.ratio, resample="once")
        self.rows[task.name] = [(row.prompt, row.target) for row in stored]
        self.embedded[task.name] = embed_prompts(self.pool, [self.template.prompt_ids(row) for row in stored])

    def answer(self, queries: Queries) -> list[Answer]:
        """Answers of the base model behind the nearest rows."""
        prompts = self.prompts(queries) if self.rows else queries.prompts
        decoded = self.generate(None, replace(queries, prompts=prompts))
        return [self.to_answer(id_, row, None) for id_, row in zip(queries.ids, decoded, strict=True)]

    def prompts(self, queries: Queries) -> list[list[int]]:
        """The token ids of each query behind its nearest rows, such that the answer fits into the model's context."""
        stored = [row for rows in self.rows.values() for row in rows]
        states_PH = embed_prompts(self.pool, queries.prompts)
        self.counts["prefills"] += len(queries)
        order_PN = nearest(states_PH, torch.cat([one.to(states_PH) for one in self.embedded.values()]))
        found = []
        for ids, limit, order in zip(queries.prompts, queries.limits, order_PN.tolist(), strict=True):
            query, room = query_of(self.template, ids), self.template.max_length - limit

            def fits(rows: Sequence[Row], query: str = query, room: int = room) -> bool:
                return len(self.template.prompt_ids(in_context(rows, query))) <= room

            chosen = fitting([stored[place] for place in order[: self.examples]], self.examples, fits)
            found.append(self.template.prompt_ids(in_context(chosen, query)) if chosen else ids)
        return found

    def storage(self) -> dict[str, int]:
        """``state``: stored rows and their embeddings; the unit is what is stored of the first task."""
        sizes = {task: packed(rows).nbytes + self.embedded[task].nbytes for task, rows in self.rows.items()}
        return {"pool": next(iter(sizes.values())), "state": sum(sizes.values())} if sizes else {}

    def kept_rows(self) -> int:
        """The stored rows of all tasks."""
        return sum(map(len, self.rows.values()))

    def state(self) -> dict[str, Tensor]:
        """The stored rows of all tasks and their embeddings."""
        texts = {f"rows {task}": packed(rows) for task, rows in self.rows.items()}
        return texts | {f"embedded {task}": states_NH for task, states_NH in self.embedded.items()}

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The rows that were stored of a task; in the order of tasks, on which the choice among equally near rows depends."""
        self.rows[task] = unpacked(tensors[f"rows {task}"])
        self.embedded[task] = tensors[f"embedded {task}"]
