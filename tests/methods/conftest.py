"""What the tests of methods share: the tiny model, its template, and queries made by hand."""

from collections.abc import Callable, Sequence

import pytest

from see_lightning.adapters.pool import ExpertPool
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.datamodule import query_batch
from see_lightning.tasks.prompts import PromptTemplate
from tests.adapters import small


@pytest.fixture(scope="session")
def template() -> PromptTemplate:
    """Chat prompts of the tiny tokenizer."""
    return small.TEMPLATE


@pytest.fixture(scope="session")
def make_pool() -> Callable[..., ExpertPool]:
    """A pool around a fresh tiny base, its experts named and given random weights."""
    return small.pool


@pytest.fixture(scope="session")
def ask(template: PromptTemplate) -> Callable[..., Queries]:
    """A batch of queries; a query's id is its place."""

    def make(queries: Sequence[str], *, tasks: Sequence[str] = (), max_new_tokens: int = 12, rows: int = 16) -> Queries:
        return query_batch(queries, template, tasks=tasks, max_new_tokens=max_new_tokens, rows=rows)

    return make
