"""SEE's sequential routing (arXiv 2504.06664): experts are asked newest first, and the first that accepts answers."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from see_lightning.routing.router import Routed, Router
from see_lightning.routing.sequential_router import SequentialRouter
from see_lightning.routing.verdicts import Route
from see_lightning.tasks.batches import Queries

ROWS = 16  # prompts whose log-odds are computed together
BEGINNING = 32  # tokens that prompts have in common to be read as a group; those of a template alone are fewer


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
    places, queries = _only_decided(prompts)
    router = method.sequential_router(queries, remember=False)
    found = dict(zip(places, router.log_odds([orders[place] for place in places]), strict=True))
    return [found[place] for place in range(len(prompts))]


def accepted_share(method: Deciding, prompts: Sequence[Sequence[int]], expert: str) -> float:
    """Share of prompts that an expert accepts by its verdict, with its threshold if it has one, 0..1; nothing is cached.

    Args:
        method: whose experts give verdicts.
        prompts: as ids, at least one.
        expert: its name.
    """
    _, queries = _only_decided(prompts)
    routes = method.sequential_router(queries, remember=False).walk([[expert]] * len(prompts))
    return sum(route.expert == expert for route in routes) / len(prompts)


def _only_decided(prompts: Sequence[Sequence[int]]) -> tuple[list[int], Queries]:
    """Prompts as queries that experts only decide on, and the place of each query among the prompts."""
    groups = groups_by_beginning(prompts)
    # Prompts of one group and of about one length are read together: padding costs as much as text.
    places = sorted(range(len(prompts)), key=lambda place: (groups[place], len(prompts[place])))
    return places, Queries(
        [list(prompts[place]) for place in places],
        list(map(str, places)),
        [groups[place] for place in places],
        [1] * len(places),
        rows=ROWS,
        only_decide=True,
    )


def groups_by_beginning(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The number of each prompt's group: the same first tokens, such as those of a definition, are read once for a group.

    Args:
        prompts: as ids. Those that begin with the same ``BEGINNING`` tokens as at least ``ROWS`` of them form a group;
            the others are group 0.

    >>> groups_by_beginning([[1], *[[2] * BEGINNING + [n] for n in range(ROWS)], [3]]) == [0, *[1] * ROWS, 0]
    True
    """
    beginnings = [tuple(prompt[:BEGINNING]) for prompt in prompts]
    common = [ids for ids, times in Counter(beginnings).items() if times >= ROWS and len(ids) == BEGINNING]
    numbers = {ids: number for number, ids in enumerate(common, start=1)}
    return [numbers.get(ids, 0) for ids in beginnings]


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


def needs_every_verdict(router: type[Router]) -> bool:
    """Whether a router asks every expert for verdicts, so that none may be without."""
    return "learns_refusals" in router.needs and router is not Walk


class Walk(Verifying):
    """The newest expert with a positive verdict; the base model where there is none.

    Args:
        method: whose experts give verdicts; it keeps their thresholds.
    """

    asks_few = False

    def orders(self, queries: Queries) -> list[list[str]]:
        """All experts, newest first."""
        return [self.method.newest_first()] * len(queries)
