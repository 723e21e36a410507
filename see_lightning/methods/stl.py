"""Single-task learning: one expert per task, told which task a query belongs to. SEE's "AvgSTL".

The oracle of routing: what an ensemble of the same experts would score if it never erred.
"""

from see_lightning.methods.method import ExpertMethod
from see_lightning.methods.setup import Traits
from see_lightning.tasks.batches import Queries


class Stl(ExpertMethod):
    """Experts without indicators; a task that has no expert yet is the base model's."""

    traits = Traits(has_experts=True, told=True)

    def route(self, queries: Queries) -> list[str | None]:
        """Each query's own task's expert."""
        return [task if task in self.pool.names else None for task in queries.tasks]
