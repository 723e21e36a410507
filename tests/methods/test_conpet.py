"""Static ConPET: how often each past row is drawn."""

from collections import Counter

import pytest

from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.methods.conpet import ConPet, drawn
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task
from tests.adapters import small

STORED = [["a"], ["b", "c"], list("defgh")]


def test_tasks_weigh_the_same_and_so_do_the_rows_of_a_task():
    size = 30000
    found = Counter(drawn(STORED, size, draw=1))
    for rows in STORED:
        for row in rows:
            mean = size / (len(STORED) * len(rows))
            assert abs(found[row] - mean) < 5 * mean**0.5, "within five standard deviations"
    assert found.total() == size
    assert drawn(STORED, 50, draw=1) == drawn(STORED, 50, draw=1) != drawn(STORED, 50, draw=2)


@pytest.mark.parametrize(
    "authors", [[5263, 2641, 2670, 1079, 1124, 1035, 1061, 1127], [2682, 1305, 1308, 549, 513, 532, 572, 539]]
)
def test_rows_are_drawn_as_often_as_by_the_authors_loader(authors):
    """``CustomLoader`` of preprocess/custom_loader.py, Raincleared-Song/ConPET, commit 1a37c13: 2,000 batches of 8 or 4 old rows."""
    found = Counter(drawn(STORED, sum(authors), draw=2))
    for row, theirs in zip("abcdefgh", authors, strict=True):
        assert abs(found[row] - theirs) < 4 * (found[row] + theirs) ** 0.5


@pytest.mark.parametrize(("old_per_new", "new", "old"), [(1.0, 8, 8), (1 / 3, 12, 4)])
def test_the_share_of_old_rows_is_that_of_the_authors_batches(old_per_new, new, old):
    """The numbers of new and old rows in its batches of 16, with ``batch_new_old_ratio`` 1 and 3."""
    task, past = (
        Task(name, tuple(Example(f"{name}-{n}", f"{n}?", "a", name) for n in range(new)), (), "rouge_l", 8)
        for name in ("sea", "sky")
    )
    memory = Memory(0)
    memory.add(past)
    setup = Setup(small.pool("shared"), small.TEMPLATE, OptimConfig(), 0)
    rows = ConPet(setup, ratio=0.5, resample="once", old_per_new=old_per_new).training_examples(task, memory)
    assert Counter(row.task for row in rows) == {"sea": new, "sky": old}
