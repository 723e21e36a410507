"""Static ConPET: how often each past row is drawn."""

from collections import Counter

from see_lightning.methods.conpet import drawn


def test_tasks_weigh_the_same_and_so_do_the_rows_of_a_task():
    stored = [["a"], ["b", "c"], list("defgh")]
    size = 30000
    found = Counter(drawn(stored, size, draw=1))
    for rows in stored:
        for row in rows:
            mean = size / (len(stored) * len(rows))
            assert abs(found[row] - mean) < 5 * mean**0.5, "within five standard deviations"
    assert found.total() == size
    assert drawn(stored, 50, draw=1) == drawn(stored, 50, draw=1) != drawn(stored, 50, draw=2)
