"""Rehearsal: how many past examples a later task sees, and that nothing else moves which ones."""

from collections import Counter
from fractions import Fraction

import pytest

from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.tasks.memory import Memory, num_rehearsed
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
