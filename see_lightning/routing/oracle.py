"""The task is given with each query: the upper bound of routing."""

from see_lightning.routing.router import Router
from see_lightning.tasks.batches import Queries


class Oracle(Router):
    """The expert of the task that a query comes with; the base model where that task has none yet."""

    needs_task = True

    def route(self, queries: Queries) -> list[str | None]:
        """Each query's own task's expert."""
        return [self.method.expert_of(task) for task in queries.tasks]
