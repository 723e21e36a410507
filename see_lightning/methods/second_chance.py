"""A second chance: a query that no expert accepts is put to the most likely one behind its task's definition.

Experts know their queries by the words of the definition. The input's body alone often tells the task; behind the definition,
the expert's verdict is as reliable as on its own queries.
"""

from typing import NamedTuple

import torch

from see_lightning.routing.analytic import Analytic
from see_lightning.routing.router import Routed
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.bodies import body_of, query_of
from see_lightning.tasks.held_back import hold_back
from see_lightning.tasks.task import Task
from see_lightning.tasks.variants import INPUT_ONLY, definition, input_only

SURE = 0.95  # share of a task's held-out rows whose bodies are sure enough
OPENING = "opening"  # tensor of a task's state: bytes of its definition and the blank line or line break behind it


class Again(NamedTuple):
    """A query that is put to an expert again.

    Args:
        row: of the query.
        expert: that is asked.
        prompt: its task's definition and the query's body, as ids.
    """

    row: int
    expert: str
    prompt: list[int]


class SecondChance:
    """Chooses by their bodies the queries that are asked again, the expert for each, and how it is asked.

    Args:
        method: whose queries are routed.
    """

    def __init__(self, method: Routed) -> None:
        self.template = method.template
        self.by = Analytic(method, wordings=(INPUT_ONLY,), target_recall=SURE)
        #: By task, its definition and what separates it from the input; tasks without a definition are left out.
        self.openings: dict[str, str] = {}

    def learn(self, task: Task) -> None:
        """Learn the bodies of a task's inputs, with the threshold from held-out rows."""
        first, *_ = rows = (*task.train, *task.held_out)
        if (common := definition(rows)).strip():
            (without,) = input_only([first], common)
            self.openings[task.name] = first.prompt.removesuffix(without.prompt)
        learned, held_out = hold_back(task, holds_out=True)
        self.by.learn(task.name, [self.template.prompt_ids(body_of(row.prompt)) for row in learned])
        self.by.hold_out(task.name, [self.template.prompt_ids(row) for row in held_out])

    def choose(self, queries: Queries) -> list[Again]:
        """The queries whose bodies are sure to belong to a task, unless they would not fit behind its definition."""
        if not self.by.kept or not len(queries):
            return []
        again = []
        for row, expert in enumerate(self.by.route(queries)):
            if expert in self.openings:
                query, opening = query_of(self.template, queries.prompts[row]), self.openings[expert]
                body = query.removeprefix(opening) if query.startswith(opening) else body_of(query)
                prompt = self.template.prompt_ids(opening + body)
                fits = len(prompt) + queries.limits[row] <= self.template.max_length
                if fits and prompt != queries.prompts[row]:
                    again.append(Again(row, expert, prompt))
        return again

    def state(self) -> dict[str, torch.Tensor]:
        """All that is kept, by task."""
        kept = {f"{task}/{name}": one for task in self.by.kept for name, one in self.by.state(task).items()}
        return kept | {
            f"{task}/{OPENING}": torch.tensor(list(opening.encode()), dtype=torch.uint8)
            for task, opening in self.openings.items()
        }

    def load_state(self, task: str, tensors: dict[str, torch.Tensor]) -> None:
        """Take up a task from the state after it; called for every task, oldest first."""
        own = {name.removeprefix(f"{task}/"): one for name, one in tensors.items() if name.startswith(f"{task}/")}
        if OPENING in own:
            self.openings[task] = bytes(own.pop(OPENING).tolist()).decode()
        self.by.load_state(task, own)
