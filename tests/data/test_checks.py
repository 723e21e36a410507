"""Every kind of bad row stops the run with its place and reason, or is counted and reported."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from see_lightning.data import BadRow, Example, RowChecks
from see_lightning.errors import DataError

REMEDY = ". Fix the row, or set data.on_bad_row=skip to leave out up to 1 % of the rows of a task"


def example(number: int, *, prompt: str = "", target: str = "an answer", name: str = "") -> Example:
    return Example(
        id=name or f"id-{number}", prompt=prompt or f"prompt {number}", target=target, task="qa", source=f"f:{number}"
    )


def many(first: int, last: int) -> list[Example | BadRow]:
    return [example(number) for number in range(first, last + 1)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (BadRow("f:7", "blank line"), "f:7: blank line"),
        (example(7, prompt=" \n"), "f:7: empty prompt"),
        (example(7, target="\t"), "f:7: empty answer"),
        (example(7, prompt="say <<pos>> now"), "f:7: the prompt contains the indicator '<<pos>>'"),
        (example(7, target="<<neg>>"), "f:7: the answer contains the indicator '<<neg>>'"),
        (example(7, name="id-2"), "f:7: id 'id-2' is used twice, first at f:2"),
        (example(7, prompt=" prompt 3 "), "f:7: this test prompt is also in the training rows, at f:3"),
    ],
)
def test_a_bad_test_row_stops_with_its_place_and_reason(bad: Example | BadRow, message: str) -> None:
    with pytest.raises(DataError) as error:
        RowChecks().split("qa", train=many(1, 4), test=[example(6), bad])
    assert str(error.value) == message + REMEDY


def test_a_malformed_row_that_its_publisher_reads_is_kept_and_told() -> None:
    odd = [replace(example(n, target=" "), remark="the answer is empty") for n in (5, 6)]
    split = RowChecks().split("qa", train=[*many(1, 4), *odd], test=many(7, 8))
    assert split.train[-2:] == tuple(odd)
    assert split.notices == ("qa: 2 of 8 rows are read as published: the answer is empty; first f:5",)
    with pytest.raises(DataError, match="f:9: the answer contains the indicator"):
        RowChecks().split("qa", train=[replace(example(9, target="<<pos>>"), remark="odd")], test=many(7, 8))


def test_an_id_used_twice_within_the_training_rows_stops() -> None:
    with pytest.raises(DataError, match=r"^f:3: id 'id-1' is used twice, first at f:1\."):
        RowChecks().split("qa", train=[example(1), example(2), example(3, name="id-1")], test=many(4, 5))


def test_a_prompt_may_come_twice_in_training_and_the_same_id_in_two_tasks() -> None:
    checks = RowChecks()
    train = [example(1), example(2, prompt="prompt 1")]
    assert checks.split("qa", train=train, test=many(3, 3)).train == tuple(train)
    assert checks.split("qg", train=train, test=many(3, 3)).notices == ()


def test_other_indicators_are_looked_for_when_they_are_given() -> None:
    checks = RowChecks(indicators=("[yes]",))
    assert checks.split("qa", train=[example(1, target="<<pos>>")], test=many(2, 2)).train[0].target == "<<pos>>"
    with pytest.raises(DataError, match=r"the answer contains the indicator '\[yes\]'"):
        checks.split("qa", train=[example(1, target="oh [yes]")], test=many(2, 2))


def test_test_rows_may_stand_in_training_rows_that_nobody_is_trained_on() -> None:
    rows = many(1, 3)
    twice = [replace(row, id=f"test {row.id}") for row in rows]
    with pytest.raises(DataError, match="is also in the training rows"):
        RowChecks().split("qa", train=rows, test=twice)
    assert RowChecks(trained_on=False).split("qa", train=rows, test=twice).test == tuple(twice)


def test_good_rows_keep_their_order_and_their_text() -> None:
    train, test = [example(2, prompt="  b "), example(1)], [example(4), example(3)]
    split = RowChecks().split("qa", train=train, test=test)
    assert split.train == tuple(train)
    assert split.test == tuple(test)
    assert split.notices == ()


def test_skipped_rows_are_left_out_and_reported() -> None:
    train = [*many(1, 150), BadRow("f:151", "blank line"), *many(152, 200)]
    split = RowChecks("skip").split("qa", train=train, test=[*many(201, 299), example(300, target="")])
    assert [row.id for row in split.train] == [f"id-{n}" for n in range(1, 201) if n != 151]
    assert len(split.test) == 99
    assert split.notices == ("qa: 2 of 300 rows skipped: first f:151: blank line",)


@pytest.mark.parametrize("rows", [199, 200])
def test_more_than_one_row_in_a_hundred_skipped_stops(rows: int) -> None:
    bad = [BadRow("f:x", "reason a"), BadRow("f:y", "reason b")]
    train = [*many(1, rows - 2 - 50), *bad]

    def read() -> tuple[str, ...]:
        return RowChecks("skip").split("qa", train=train, test=many(1000, 1049)).notices

    if rows == 200:
        assert read() == ("qa: 2 of 200 rows skipped: first f:x: reason a",)
    else:
        with pytest.raises(DataError) as error:
            read()
        assert str(error.value) == (
            "qa: 2 of 199 rows skipped: first f:x: reason a. That is more than 1 % of the rows: fix the files"
        )


def test_rows_refused_after_reading_count_to_the_same_limit() -> None:
    checks = RowChecks("skip")
    checks.split("qa", train=[*many(1, 149), BadRow("f:150", "blank line")], test=many(151, 200))
    checks.bad("qa", "f:9", "900 tokens, the model takes 512")
    assert checks.notices("qa") == ("qa: 2 of 200 rows skipped: first f:150: blank line",)
    checks.bad("qa", "f:10", "900 tokens, the model takes 512")
    with pytest.raises(DataError, match=r"^qa: 3 of 200 rows skipped"):
        checks.notices("qa")


def test_reading_a_task_again_does_not_count_its_bad_rows_twice() -> None:
    checks = RowChecks("skip")
    for _ in range(3):
        split = checks.split("qa", train=[*many(1, 99), BadRow("f:100", "blank line")], test=many(101, 110))
    assert split.notices == ("qa: 1 of 110 rows skipped: first f:100: blank line",)


def test_tasks_are_counted_apart() -> None:
    checks = RowChecks("skip")
    checks.split("qa", train=[*many(1, 99), BadRow("f:100", "blank line")], test=many(101, 110))
    assert checks.split("qg", train=many(1, 9), test=many(11, 12)).notices == ()
    assert checks.notices("never read") == ()


@pytest.mark.parametrize(("train", "test", "half"), [([], many(1, 1), "training"), (many(1, 1), [], "test")])
def test_a_task_without_rows_stops(train: list[Example], test: list[Example], half: str) -> None:
    with pytest.raises(DataError, match=f"^qa: no {half} rows; a task needs at least one$"):
        RowChecks().split("qa", train=train, test=test)


def test_an_unknown_policy_is_refused() -> None:
    make: Callable[..., RowChecks] = RowChecks
    with pytest.raises(ValueError, match=r"^on_bad_row is 'drop'; allowed are: stop, skip$"):
        make(on_bad_row="drop")
