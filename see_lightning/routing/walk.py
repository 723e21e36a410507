"""SEE's sequential routing (arXiv 2504.06664): experts are asked newest first, and the first that accepts answers."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from see_lightning.routing.router import Routed, Router
from see_lightning.routing.sequential_router import SequentialRouter
from see_lightning.routing.verdicts import Route
from see_lightning.tasks.batches import Queries

ROWS = 16  # prompts whose log-odds are computed together


class Deciding(Routed, Protocol):
    """A method whose experts give verdicts."""

    def sequential_router(self, queries: Queries, *, remember: bool = True) -> SequentialRouter:
        """A batch of queries before the experts; with ``remember`` it uses the response cache."""


def log_odds(method: Deciding, prompts: Sequence[Sequence[int]], orders: Sequence[Sequence[str]]) -> list[list[float]]:
    """For each prompt, the log-odds with which experts accept it, in nats; nothing is cached.

    Args:
        method: whose experts give verdicts.
        prompts: as ids.
        orders: for each prompt, the experts.
    """
    number = len(prompts)
    ids, ones = [str(place) for place in range(number)], [1] * number
    queries = Queries(list(map(list, prompts)), ids, [0] * number, ones, rows=ROWS, only_decide=True)
    router = method.sequential_router(queries, remember=False)
    return router.log_odds(orders)


class Verifying(Router):
    """A router whose experts accept or refuse a query by their verdicts; the base model answers what none accepts.

    The method continues an expert's answer from its verdict.

    Args:
        method: whose experts give verdicts; it keeps their thresholds.
    """

    needs = frozenset({"has_experts", "learns_refusals"})
    uses_thresholds = True
    asks_few = True

    def __init__(self, method: Deciding) -> None:
        super().__init__(method)
        self._deciding = method

    @abstractmethod
    def orders(self, queries: Queries) -> list[list[str]]:
        """For each query, the experts that are asked, in order; the first that accepts it answers."""

    def decide(self, queries: Queries) -> list[Route]:
        """The first expert in each query's order that accepts it, and the verdicts up to it; nothing is answered."""
        router = self._deciding.sequential_router(replace(queries, only_decide=True))
        return router.walk(self.orders(queries))

    def route(self, queries: Queries) -> list[str | None]:
        """The first expert in each query's order that accepts it."""
        return [one.expert for one in self.decide(queries)]


class Walk(Verifying):
    """The newest expert with a positive verdict; the base model where there is none.

    Args:
        method: whose experts give verdicts; it keeps their thresholds.
    """

    asks_few = False

    def orders(self, queries: Queries) -> list[list[str]]:
        """All experts, newest first."""
        return [self.method.pool.names[::-1]] * len(queries)
