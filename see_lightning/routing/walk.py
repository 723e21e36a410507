"""SEE's sequential routing (arXiv 2504.06664): experts are asked newest first, and the first that accepts answers."""

from dataclasses import replace
from typing import Protocol

from see_lightning.routing.router import Routed, Router
from see_lightning.routing.sequential_router import SequentialRouter
from see_lightning.tasks.batches import Queries


class Deciding(Routed, Protocol):
    """A method whose experts give verdicts."""

    def sequential_router(self, queries: Queries) -> SequentialRouter:
        """A batch of queries before the experts."""


class Walk(Router):
    """The newest expert with a positive verdict; the base model where there is none.

    Args:
        method: whose experts give verdicts; it keeps their thresholds.
    """

    needs = frozenset({"has_experts", "learns_refusals"})

    def __init__(self, method: Deciding) -> None:
        super().__init__(method)
        self._deciding = method

    def route(self, queries: Queries) -> list[str | None]:
        """The expert with which each query's walk ends; nothing is answered."""
        return [one.expert for one in self._deciding.sequential_router(replace(queries, only_decide=True)).walk()]
