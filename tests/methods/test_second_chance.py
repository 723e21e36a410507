"""The prompt of a second chance: a task's definition once, and the query's input behind it."""

from types import SimpleNamespace

import pytest

from see_lightning.methods.second_chance import SecondChance
from see_lightning.tasks.bodies import query_of
from tests.adapters import small

OPENING = "Write the sum.\n\nGive digits alone.\n\n"


@pytest.mark.parametrize(
    ("query", "again"),
    [
        (f"{OPENING}10 and 11", None),
        ("Add.\n\n10 and 11", f"{OPENING}10 and 11"),
        ("10 and 11", f"{OPENING}10 and 11"),
    ],
)
def test_a_definition_of_several_paragraphs_is_not_repeated(query, again):
    chance = SecondChance(SimpleNamespace(template=small.TEMPLATE, pool=small.pool(), run_seed=0, counts={}))
    chance.by = SimpleNamespace(kept={"sum": {}}, route=lambda queries: ["sum"] * len(queries))
    chance.openings["sum"] = OPENING
    found = [query_of(small.TEMPLATE, one.prompt) for one in chance.choose(small.queries([query]))]
    assert found == ([] if again is None else [again])
