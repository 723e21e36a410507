"""The base model without training."""

from typing import ClassVar

from see_lightning.methods.method import Answer, Method
from see_lightning.methods.setup import Traits
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


class Base(Method):
    """The baseline without training; it never changes, so one evaluation holds for every stage."""

    traits = Traits(schedule="frozen")
    ADAPTER: ClassVar[str | None] = None

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Nothing is trained."""

    def answer(self, queries: Queries) -> list[Answer]:
        """Answers of the base model."""
        decoded = self.generate(None, queries)
        return [self.to_answer(id_, row, "base") for id_, row in zip(queries.ids, decoded, strict=True)]
