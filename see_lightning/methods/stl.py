"""Single-task learning: one expert per task, told which task a query belongs to. SEE's "AvgSTL".

The oracle of routing: what an ensemble of the same experts would score if it never erred.
"""

from see_lightning.methods.method import Answer, ExpertMethod, select
from see_lightning.tasks.batches import Batch


class Stl(ExpertMethod):
    """Experts without indicators; a task that has no expert yet is the base model's."""

    needs_task_id = True

    def answer(self, batch: Batch) -> list[Answer]:
        """Each query by its own task's expert."""
        answers: dict[int, Answer] = {}
        for task in dict.fromkeys(batch.tasks):
            rows = [row for row, name in enumerate(batch.tasks) if name == task]
            answers.update(zip(rows, self._answer(task, select(batch, rows)), strict=True))
        return [answers[row] for row in range(len(batch))]

    def _answer(self, task: str, batch: Batch) -> list[Answer]:
        if task not in self.pool.names:
            return self.answer_by_base(batch)
        with self.pool.active(task) as model:
            decoded = self.generate(model, batch)
        return [self.to_answer(id_, row, task) for id_, row in zip(batch.ids, decoded, strict=True)]
