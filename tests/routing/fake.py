"""What a router knows of a method, around a small pool."""

from collections import Counter
from types import SimpleNamespace

from see_lightning.adapters.pool import ExpertPool
from tests.adapters import small


def method_on(pool: ExpertPool) -> SimpleNamespace:
    """A method with the pool's experts, whose answers begin at once."""
    return SimpleNamespace(pool=pool, template=small.TEMPLATE, counts=Counter(), run_seed=0, accept_prefix="")


def prompt_of(text: str) -> tuple[int, ...]:
    """The tokens of a query's prompt."""
    return tuple(small.TEMPLATE.prompt_ids(text))
