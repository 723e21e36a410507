"""Streams: every row once, in the stages that were asked for, and nothing hangs on what else there is."""

import re
from collections import Counter

import pytest

from see_lightning.tasks.streams import Stage, blurry, recurring

SIZES = {"qa": 100, "qg": 31, "sa": 7}


def trained(stages: list[Stage]) -> Counter[tuple[str, int]]:
    """How often each row is trained on, over all stages."""
    return Counter((task, row) for stage in stages for task, rows in stage.rows.items() for row in rows)


EVERY_ROW_ONCE = Counter((task, row) for task, size in SIZES.items() for row in range(size))


def test_a_task_that_comes_back_brings_other_rows_and_all_of_them_in_the_end():
    order = ["qa", "qg", "qa", "sa", "qg", "qa"]
    stages = recurring(SIZES, order, run_seed=0)
    assert [stage.task for stage in stages] == order
    assert all(list(stage.rows) == [stage.task] for stage in stages)
    assert trained(stages) == EVERY_ROW_ONCE
    assert [len(stage.rows["qa"]) for stage in stages if stage.task == "qa"] == [34, 33, 33]
    assert [len(stage.rows["qg"]) for stage in stages if stage.task == "qg"] == [16, 15]


def test_one_visit_gets_every_row_in_order():
    assert recurring(SIZES, ["sa"], run_seed=3) == [Stage("sa", {"sa": tuple(range(7))})]


def test_a_tasks_visits_hang_on_the_seed_and_on_nothing_of_other_tasks():
    rows = [stage.rows for stage in recurring(SIZES, ["qa", "qg", "qa"], run_seed=0) if stage.task == "qa"]
    assert rows == [
        stage.rows for stage in recurring(SIZES, ["sa", "qa", "sa", "qa"], run_seed=0) if stage.task == "qa"
    ]
    assert rows != [stage.rows for stage in recurring(SIZES, ["qa", "qg", "qa"], run_seed=1) if stage.task == "qa"]


@pytest.mark.parametrize(("order", "told"), [
    (["sa"] * 8, "sa has 7 training rows, and 8 visits need at least one each"),
    (["xx"], "xx has 0 training rows, and 1 visits"),
])  # fmt: skip
def test_more_visits_than_rows_are_refused(order, told):
    with pytest.raises(ValueError, match=told):
        recurring(SIZES, order, run_seed=0)


def test_a_share_of_each_task_is_dealt_evenly_to_the_other_stages():
    stages = blurry(SIZES, ["qa", "qg", "sa"], share=0.3, run_seed=0)
    assert trained(stages) == EVERY_ROW_ONCE
    sizes = [{task: len(rows) for task, rows in stage.rows.items()} for stage in stages]
    assert [counts[stage.task] for counts, stage in zip(sizes, stages, strict=True)] == [70, 22, 5]
    assert (sizes[1]["qa"], sizes[2]["qa"]) == (15, 15)
    assert sorted([sizes[0]["qg"], sizes[2]["qg"]]) == [4, 5]
    assert (sizes[0]["sa"], sizes[1]["sa"]) == (1, 1)


def test_without_a_share_every_stage_is_its_task_alone():
    stages = blurry(SIZES, ["sa", "qa"], share=0.0, run_seed=0)
    assert stages == [Stage("sa", {"sa": tuple(range(7))}), Stage("qa", {"qa": tuple(range(100))})]


def test_with_the_whole_share_a_stage_holds_only_rows_of_others():
    stages = blurry(SIZES, ["qa", "qg"], share=1.0, run_seed=0)
    assert [{task: len(rows) for task, rows in stage.rows.items()} for stage in stages] == [
        {"qa": 0, "qg": 31}, {"qa": 100, "qg": 0},
    ]  # fmt: skip


def test_a_single_task_keeps_its_rows():
    assert blurry(SIZES, ["sa"], share=0.5, run_seed=0) == [Stage("sa", {"sa": tuple(range(7))})]


def test_which_rows_leave_a_task_is_random_and_seeded_by_names():
    def kept(order: list[str], run_seed: int = 0) -> tuple[int, ...]:
        return next(stage.rows["qa"] for stage in blurry(SIZES, order, 0.3, run_seed) if stage.task == "qa")

    assert kept(["qa", "qg"]) == kept(["sa", "qg", "qa"])
    assert kept(["qa", "qg"]) != kept(["qa", "qg"], run_seed=1)
    assert kept(["qa", "qg"]) != tuple(range(70))


@pytest.mark.parametrize(("order", "share", "told"), [
    (["qa", "qa"], 0.1, "order names one of them twice"),
    (["qa", "xx"], 0.1, "xx has no size"),
    (["qa"], 1.5, "share must be between 0 and 1; got 1.5"),
])  # fmt: skip
def test_a_stream_that_cannot_be_is_refused(order, share, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        blurry(SIZES, order, share, run_seed=0)
