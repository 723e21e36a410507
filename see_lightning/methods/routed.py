"""The router of a method: the method's own, or one that a run chooses."""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from see_lightning.methods.setup import Setup, Traits
from see_lightning.methods.training import Training
from see_lightning.routing.router import Router
from see_lightning.tasks.batches import Queries


class RoutedMethod(Training):
    """The part of a method that its router reads, and the choice of the router.

    Args:
        setup: model, template, optimizer settings and seed of the run.
    """

    traits: ClassVar[Traits] = Traits()
    #: The indicator before an accepted answer, with the blank behind it; empty for experts without verdicts.
    accept_prefix: str = ""
    #: The router that a run chooses; None for the method's own, which the method trains, saves and restores.
    chosen_router: Router | None = None

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        #: Exact costs of answering: prefills, decisions, decided_again (close decisions that were recomputed, each in a
        #: batch of its own), generations, new_tokens.
        self.counts: Counter[str] = Counter()
        #: Imported experts, oldest first, that have not learned to give verdicts, among others that have.
        self.never_refusing: list[str] = []

    @classmethod
    def router_for(cls, arguments: Mapping[str, Any]) -> type[Router]:
        """The class of ``own_router``, if the method has these arguments."""
        return cls.traits.router

    @classmethod
    def arguments_for(cls, router: type[Router]) -> dict[str, Any]:
        """Arguments of the method that choose a router, under which its runs have always been stored."""
        return {}

    @classmethod
    def trains_apart(cls, arguments: Mapping[str, Any]) -> bool:
        """Whether no expert depends on another one, if the method has these arguments; see ``Traits``."""
        return cls.traits.trains_apart

    @cached_property
    def own_router(self) -> Router:
        """The router if the run chooses none."""
        return self.traits.router(self)

    @property
    def router(self) -> Router:
        """Routes the queries of this run."""
        return self.chosen_router or self.own_router

    @property
    def needs_task_id(self) -> bool:
        """Whether queries must come with the name of their task."""
        return self.router.needs_task

    def route(self, queries: Queries) -> list[str | None]:
        """The adapter that answers each query, by its name in the pool; None is the base model.

        Raises:
            ConfigError: this method does not answer with one adapter of its pool.
        """
        return self.router.route(queries)

    def newest_first(self) -> list[str]:
        """The experts that give verdicts, in the order in which they are asked."""
        return [name for name in self.pool.names[::-1] if name not in self.never_refusing]

    def accept_prefix_of(self, adapter: str | None) -> str:
        """The indicator before an adapter's accepted answer, with the blank behind it; empty if it writes none."""
        return "" if adapter is None or adapter in self.never_refusing else self.accept_prefix

    def expert_of(self, task: str) -> str | None:
        """The expert that learned a task; None if there is none yet."""
        return task if task in self.pool.names else None
