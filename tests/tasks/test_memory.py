"""Rehearsal: how many past examples a later task sees, and that nothing else moves which ones."""

from collections import Counter
from fractions import Fraction

import pytest

from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.tasks.memory import Memory, even_level, even_shares, num_rehearsed
from see_lightning.tasks.task import Task


def task(name: str, size: int) -> Task:
    rows = tuple(Example(id=f"{name}-{i}", prompt=f"{name} {i}?", target=str(i), task=name) for i in range(size))
    return Task(name=name, train=rows, test=rows[:1], score="rouge_l", max_new_tokens=4)


QA, QG, SA = task("qa", 30), task("qg", 40), task("sa", 7)


def memory(*past: Task, run_seed: int = 0) -> Memory:
    made = Memory(run_seed)
    for one in past:
        made.add(one)
    return made


def drawn(of: Memory, later: str, past: str, *, ratio: float = 0.2, resample: str = "per_task") -> list[str]:
    return [e.id for e in of.rehearse(task(later, 3), ratio=ratio, resample=resample) if e.task == past]


@pytest.mark.parametrize("size", [0, 1, 2, 7, 99, 120, 2000])
@pytest.mark.parametrize("ratio", [0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.99, 1.0])
def test_a_share_is_the_nearest_number_of_examples_and_at_least_one(ratio, size):
    exact = Fraction(ratio) * size
    kept = num_rehearsed(ratio, size)
    if ratio == 0 or size == 0:
        assert kept == 0
    elif exact < Fraction(1, 2):
        assert kept == 1
    else:
        assert abs(kept - exact) <= Fraction(1, 2) + Fraction(1, 10**9)
    assert kept <= size


@pytest.mark.parametrize("resample", ["per_task", "once"])
def test_a_least_number_holds_for_each_past_task_as_far_as_it_has_so_many(resample):
    past = memory(QA, QG, SA)
    for ratio, counts in ((0.01, {"qa": 12, "qg": 12, "sa": 7}), (0.4, {"qa": 12, "qg": 16, "sa": 7}), (0.0, {})):
        examples = past.rehearse(task("sum", 3), ratio=ratio, resample=resample, at_least=12)
        assert Counter(e.task for e in examples) == counts
        assert len({e.id for e in examples}) == len(examples)
    without = past.rehearse(task("sum", 3), ratio=0.4, resample=resample)
    assert [e for e in without if e.task == "qg"] == [
        e for e in past.rehearse(task("sum", 3), ratio=0.4, resample=resample, at_least=12) if e.task == "qg"
    ]


@pytest.mark.parametrize("resample", ["per_task", "once"])
def test_a_task_sees_its_share_of_each_past_one_the_oldest_first_and_none_twice(resample):
    past = memory(QA, QG, SA)
    examples = past.rehearse(task("sum", 3), ratio=0.1, resample=resample)
    assert [e.task for e in examples] == ["qa"] * 3 + ["qg"] * 4 + ["sa"]
    assert len({e.id for e in examples}) == len(examples)
    assert set(examples) <= {*QA.train, *QG.train, *SA.train}


def test_the_first_task_and_a_ratio_of_zero_rehearse_nothing():
    assert memory().rehearse(QA, ratio=1.0, resample="per_task") == []
    assert memory(QA, QG).rehearse(SA, ratio=0.0, resample="per_task") == []


def test_a_ratio_of_one_rehearses_everything():
    assert set(memory(QA, SA).rehearse(QG, ratio=1.0, resample="per_task")) == {*QA.train, *SA.train}


def test_a_fresh_draw_differs_for_every_later_task_and_a_fixed_one_does_not():
    past = memory(QA)
    assert drawn(past, "sum", "qa") != drawn(past, "trans", "qa")
    assert drawn(past, "sum", "qa", resample="once") == drawn(past, "trans", "qa", resample="once")
    assert len(drawn(past, "sum", "qa", resample="once")) == 6


def test_a_larger_ratio_does_not_see_less():
    past = memory(QA)
    assert len(drawn(past, "sum", "qa", ratio=0.5)) == 15
    assert set(drawn(past, "sum", "qa", ratio=0.1, resample="once")) < set(
        drawn(past, "sum", "qa", ratio=1.0, resample="once")
    )


@pytest.mark.parametrize("resample", ["per_task", "once"])
def test_what_is_drawn_from_a_task_hangs_on_no_other_task_and_on_no_earlier_draw(resample):
    alone, among = memory(QG), memory(QA, QG, SA)
    among.rehearse(task("dsg", 3), ratio=0.5, resample=resample)
    assert drawn(alone, "sum", "qg", resample=resample) == drawn(among, "sum", "qg", resample=resample)
    assert drawn(memory(SA, QG), "sum", "qg", resample=resample) == drawn(alone, "sum", "qg", resample=resample)


@pytest.mark.parametrize("resample", ["per_task", "once"])
def test_a_resumed_run_draws_what_the_first_one_drew_and_another_seed_does_not(resample):
    first, again, other = memory(QA, QG), memory(QA, QG), memory(QA, QG, run_seed=1)
    assert drawn(first, "sum", "qg", resample=resample) == drawn(again, "sum", "qg", resample=resample)
    assert drawn(first, "sum", "qg", resample=resample) != drawn(other, "sum", "qg", resample=resample)


def test_a_way_to_draw_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="must be one of per_task, once; got 'per_tsk'. Did you mean 'per_task'"):
        memory(QA).rehearse(QG, ratio=0.1, resample="per_tsk")


WANTED = [[12] * 23, [12, 12, 3, 0, 40], [1, 2, 3, 4, 5], [7], []]


@pytest.mark.parametrize("most", [1, 2, 5, 22, 23, 24, 48, 67, 300])
@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_shares_fill_the_limit_and_differ_by_one_among_tasks_that_want_more(wanted, most):
    for draw in range(5):
        shares = even_shares(wanted, most, draw)
        assert sum(shares) == min(most, sum(wanted))
        assert all(0 <= share <= number for share, number in zip(shares, wanted, strict=True))
        unmet = [share for share, number in zip(shares, wanted, strict=True) if share < number]
        if unmet:
            assert max(shares) - min(unmet) <= 1
            assert min(unmet) == even_level(wanted, most)
        assert shares == even_shares(wanted, most, draw)


def test_the_draw_gives_what_is_left_to_every_task_alike():
    gains = Counter()
    for draw in range(400):
        gains.update(place for place, share in enumerate(even_shares([12] * 8, 2, draw)) if share)
    assert gains.total() == 800
    assert set(gains) == set(range(8))
    assert all(60 < gain < 140 for gain in gains.values())


def test_a_limit_bounds_the_examples_of_all_past_tasks_together_and_keeps_a_part_of_those_without_it():
    past = [task(f"t{number}", 30) for number in range(9)] + [SA]
    for resample in ("per_task", "once"):
        for most in (1, 4, 10, 48, 120):
            whole = memory(*past).rehearse(QA, ratio=0.1, resample=resample, at_least=12)
            part = memory(*past).rehearse(QA, ratio=0.1, resample=resample, at_least=12, at_most=most)
            assert len(part) == min(most, 9 * 12 + 7)
            assert set(part) <= set(whole)
            assert [one for one in whole if one in part] == part, "the oldest task first"
            again = memory(*past)
            again.rehearse(QG, ratio=0.5, resample=resample)
            assert again.rehearse(QA, ratio=0.1, resample=resample, at_least=12, at_most=most) == part


def test_without_more_examples_than_the_limit_nothing_changes():
    past = memory(QA, QG, SA)
    wanted = past.rehearse(task("sum", 3), ratio=0.1, resample="per_task", at_least=12)
    assert past.rehearse(task("sum", 3), ratio=0.1, resample="per_task", at_least=12, at_most=len(wanted)) == wanted


@pytest.mark.parametrize("most", [3, 24, 48])
def test_a_fixed_buffer_under_a_limit_only_loses_rows_as_tasks_come(most):
    past = [task(f"t{number}", 30) for number in range(23)]
    before = set()
    for size, newest in enumerate(past, start=1):
        rows = set(memory(*past[:size]).rehearse(QA, ratio=0.1, resample="once", at_least=12, at_most=most))
        assert {one.task for one in rows - before} <= {newest.name}
        before = rows


def test_the_tasks_that_get_a_row_more_differ_between_later_tasks_but_not_those_of_a_fixed_buffer():
    past = memory(*(task(f"t{number}", 30) for number in range(10)))

    def seen(later: str, resample: str) -> tuple[str, ...]:
        return tuple(one.task for one in past.rehearse(task(later, 3), ratio=1, resample=resample, at_most=3))

    assert len({seen(later, "per_task") for later in "abcdef"}) > 1
    assert len({seen(later, "once") for later in "abcdef"}) == 1
