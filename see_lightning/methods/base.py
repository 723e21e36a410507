"""The base model without training."""

from collections.abc import Iterator
from typing import Any, ClassVar

from see_lightning.inference.decoder import BatchDecoder
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

    def routing(self, queries: Queries) -> list[Answer]:
        """The base model."""
        return [Answer(id_, "", "base", (), False) for id_ in queries.ids]

    def answering(self, queries: Queries, decoder: BatchDecoder[Any]) -> Iterator[dict[int, Answer]]:
        """Answers of the base model."""
        self.tell_routes(queries, dict(enumerate(self.routing(queries))))
        for ended in self.generating(None, queries, decoder):
            yield {row: self.to_answer(queries.ids[row], one, "base") for row, one in ended.items()}
