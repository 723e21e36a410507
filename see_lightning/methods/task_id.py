"""Methods whose setting ``task_id`` chooses the router; their run keys contain that setting."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from see_lightning.config.checks import one_of
from see_lightning.methods.method import ExpertMethod
from see_lightning.methods.setup import Setup
from see_lightning.routing.centroid import Centroid
from see_lightning.routing.router import Router


class TaskIdMethod(ExpertMethod):
    """A method with a centroid for each task, which it learns and saves under every router.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        task_id: one of ``TASK_ID``.
    """

    #: Value of ``task_id`` -> router.
    TASK_ID: ClassVar[dict[str, type[Router]]]

    def __init__(self, setup: Setup, task_id: str) -> None:
        super().__init__(setup)
        one_of("method.task_id", task_id, self.TASK_ID)
        self.task_id, self.keys = task_id, Centroid(self)

    @classmethod
    def router_for(cls, arguments: Mapping[str, Any]) -> type[Router]:
        """The router of a ``task_id``."""
        return cls.TASK_ID.get(arguments["task_id"], cls.traits.router)

    @classmethod
    def arguments_for(cls, router: type[Router]) -> dict[str, Any]:
        """The ``task_id`` of a router."""
        words = [word for word, meant in cls.TASK_ID.items() if meant is router]
        return {"task_id": words[0]} if words else {}

    @cached_property
    def own_router(self) -> Router:
        """The router of ``task_id``; the centroid router has the centroids that the method has learned."""
        router = self.TASK_ID[self.task_id]
        return self.keys if router is Centroid else router(self)
