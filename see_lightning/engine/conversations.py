"""Refuses methods and routers that take queries for single texts, where rows have conversations."""

from collections.abc import Iterable, Iterator

from omegaconf import DictConfig

from see_lightning.config.identity import method_name
from see_lightning.engine.router import router_name, routers_in
from see_lightning.errors import ConfigError
from see_lightning.methods.lookup import method_class
from see_lightning.routing.argmax import Argmax
from see_lightning.tasks.task import Task
from see_lightning.tasks.variants import AS_IS, INPUT_ONLY


def check_conversations(cfg: DictConfig, tasks: Iterable[Task]) -> None:
    """Refuse rows with earlier turns or a system prompt of their own where a method or router would lose these.

    Args:
        cfg: composed.
        tasks: all whose queries are trained on or answered.

    Raises:
        ConfigError: the method or the router takes queries for single texts; the message names a row and what to type.
    """
    reason = next(_unfit(cfg), None)
    if reason is None:
        return
    for task in tasks:
        for row in task.every_row:
            if row.context:
                has = "earlier turns" if row.turns else "a system prompt of its own"
                raise ConfigError(f"{row.source or row.id} has {has}, but {reason}.")


def _unfit(cfg: DictConfig) -> Iterator[str]:
    """Why the method or its router cannot take conversations, and what to type."""
    if not method_class(cfg.method).traits.takes_conversations:
        yield f"method={method_name(cfg)} keeps queries as single texts; choose another method, such as method=see"
    if cfg.method.get("second_chance") == "on":
        yield "method.second_chance=on takes queries for a definition and an input; leave it out"
    if INPUT_ONLY in (cfg.method.get("wordings") or ()):
        yield f"method.wordings takes queries for a definition and an input; write method.wordings=[{AS_IS}]"
    for router, node in routers_in(cfg.router) if cfg.router is not None else ():
        if not router.takes_conversations:
            yield f"router={router_name(cfg)} reads queries as single texts; choose another router, such as router=walk"
        # Argmax takes its wordings from rows, whose turns stay.
        if INPUT_ONLY in (node.get("wordings") or ()) and not issubclass(router, Argmax):
            yield f"router.wordings takes queries for a definition and an input; write router.wordings=[{AS_IS}]"
