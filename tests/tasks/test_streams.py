"""Streams: every row is learned once, in the stage that was asked for."""

from collections import Counter
from dataclasses import replace

import pytest

from see_lightning.config.schema import OrderConfig
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.tasks.streams import blurry, in_stream, recurring
from see_lightning.tasks.task import Task


def task(name: str, size: int, tested: int = 4, held_out: int = 0, valid: int = 0) -> Task:
    def rows(kind: str, number: int) -> tuple[Example, ...]:
        return tuple(Example(f"{name}-{kind}-{i}", f"{name} {i}?", str(i), name) for i in range(number))

    test, aside = rows("test", tested), rows("aside", held_out)
    return Task(
        name,
        rows("train", size),
        test,
        "rouge_l",
        4,
        ("a notice",),
        aside,
        rows("valid", valid),
        reserved=3,
        context=99,
    )


TASKS = [task("qa", 100), task("qg", 31), task("sa", 7)]


def ids(tasks: list[Task], part: str = "train") -> list[str]:
    return [row.id for one in tasks for row in getattr(one, part)]


def origins(one: Task) -> Counter[str]:
    """How many training rows of a stage come from each task."""
    return Counter(row.id.partition("-")[0] for row in one.train)


@pytest.mark.parametrize("visits", [2, 3, 4])
def test_each_round_has_every_task_and_each_row_is_in_one_visit(visits):
    given = [task("qa", 100, 9, 5, 6), task("qg", 31, 4, 8, 4)]
    stages = recurring(given, visits)
    assert [one.name for one in stages] == [f"{t.name}_{n}" for n in range(1, visits + 1) for t in given]
    for part in ("train", "test", "held_out", "valid"):
        assert sorted(ids(stages, part)) == sorted(ids(given, part))
        for one in given:
            sizes = [len(getattr(stage, part)) for stage in stages if stage.name.startswith(one.name)]
            assert max(sizes) - min(sizes) <= 1
    for stage in stages:
        assert {row.task for row in (*stage.train, *stage.test, *stage.held_out)} == {stage.name}
        assert (stage.score, stage.max_new_tokens, stage.reserved, stage.context) == ("rouge_l", 4, 3, 99)
    assert [stage.notices for stage in stages] == [("a notice",)] * 2 + [()] * (2 * (visits - 1))


def test_the_rows_of_a_visit_depend_on_no_other_task():
    alone = {one.name: one for one in recurring(TASKS[:1], 3)}
    among = {one.name: one for one in recurring(TASKS[::-1], 3)}
    assert all(among[name] == alone[name] for name in alone)


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (task("sa", 2), "sa has 2 training rows, and each visit"),
        (task("sa", 9, 2), "sa has 2 test rows"),
        (task("sa", 9, 9, 1), "sa has 1 held-out rows"),
    ],
)
def test_more_visits_than_rows_are_refused(one, told):
    with pytest.raises(ConfigError, match=told):
        recurring([one], 3)


def test_a_share_of_each_task_is_dealt_evenly_to_the_other_stages():
    stages = blurry(TASKS, 0.3)
    assert sorted(ids(stages)) == sorted(ids(TASKS)), "every row once"
    assert [one.name for one in stages] == ["qa", "qg", "sa"]
    assert [origins(one) for one in stages] == [
        {"qa": 70, "qg": 4, "sa": 1}, {"qa": 15, "qg": 22, "sa": 1}, {"qa": 15, "qg": 5, "sa": 5},
    ]  # fmt: skip
    for stage, plain in zip(stages, TASKS, strict=True):
        assert {row.task for row in stage.train} == {stage.name}, "a method is not told where a row comes from"
        assert (stage.test, stage.held_out) == (plain.test, plain.held_out)
    first = [row.id.partition("-")[0] for row in stages[1].train[:19]]
    assert len(set(first)) > 1, "they are mixed"
    assert blurry(TASKS, 0.3) == stages


def test_equal_tasks_give_as_many_rows_as_they_get():
    stages = blurry([task("a", 40), task("b", 40), task("c", 40)], 0.1)
    assert [len(one.train) for one in stages] == [40, 40, 40]
    assert [origins(one)[one.name] for one in stages] == [36, 36, 36]


def test_a_share_of_all_is_refused_and_one_of_none_is_the_plain_order():
    with pytest.raises(ConfigError, match="none of the 7 training rows of sa"):
        blurry(TASKS, 0.95)
    assert [sorted(ids([one])) for one in blurry(TASKS, 0.0)] == [sorted(ids([one])) for one in TASKS]


def test_the_settings_choose_the_stream():
    names = [one.name for one in TASKS]
    assert in_stream(TASKS, OrderConfig("x", names)) == TASKS
    assert in_stream(TASKS, OrderConfig("x", names, "recurring", visits=3)) == recurring(TASKS, 3)
    assert in_stream(TASKS, OrderConfig("x", names, "blurry", share=0.2)) == blurry(TASKS, 0.2)
    made = OrderConfig("x", names, "recurring", visits=3)
    assert list(made.learned()) == [one.name for one in in_stream(TASKS, made)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"stream": "again"}, "order.stream must be one of none, recurring, blurry"),
        ({"stream": "recurring", "visits": 1}, "order.visits must be at least 2"),
        ({"stream": "blurry", "share": 1.5}, "order.share must be between 0 and 1"),
        ({"stream": "blurry", "tasks": ["qa"]}, "name at least two"),
    ],
)
def test_an_unusable_setting_is_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        OrderConfig(**{"name": "x", "tasks": ["qa", "sa"], **settings})


def test_rows_of_one_id_stay_apart_in_a_stage_of_several_tasks():
    numbered = [
        replace(one, train=tuple(replace(row, id=str((n + shift) % 10)) for n, row in enumerate(one.train)))
        for one, shift in ((task("qa", 10), 0), (task("qg", 10), 4), (task("sa", 10), 7))
    ]
    for stage, own in zip(blurry(numbered, 0.4), numbered, strict=True):
        assert len({row.id for row in stage.train}) == len(stage.train) == 10
        kept = [row.id for row in stage.train if row.prompt.startswith(own.name)]
        assert sorted(kept) == sorted(row.id for row in own.train[:6]), "its own rows keep their ids"
    assert any("/" in row.id for stage in blurry(numbered, 0.4) for row in stage.train)
    assert sorted(ids(blurry(TASKS, 0.4))) == sorted(ids(TASKS)), "where ids differ, they stay"
