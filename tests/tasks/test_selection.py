"""Validation rows: from the benchmark's own split, or held out from the training rows, and never rows of another kind."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import Example
from see_lightning.data.jsonl import JsonlReader
from see_lightning.data.reader import Part
from see_lightning.data.split import Split
from see_lightning.errors import ConfigError, DataError
from see_lightning.tasks.selection import content
from see_lightning.tasks.task import Benchmark, Task, merge


def rows(kind: str, prompts: Sequence[str]) -> tuple[Example, ...]:
    return tuple(Example(f"qa-{kind}-{n}", prompt, "a", "qa", source=f"{kind}:{n}") for n, prompt in enumerate(prompts))


class Given:
    """A reader of rows that were never in a file."""

    def __init__(self, train: Sequence[str], test: Sequence[str], **more: Sequence[Example | BadRow]) -> None:
        self.split = Split(rows("train", train), rows("test", test))
        self.more = more

    def tasks(self) -> list[str]:
        return ["qa"]

    def parts(self, task: str) -> dict[str, Part]:
        return {name: Part(part) for name, part in self.more.items()}

    def read(self, task: str, checks: RowChecks) -> Split:
        return checks.split(task, self.split.train, self.split.test)


TRAIN, TEST = [f"train {n}?" for n in range(100)], [f"test {n}?" for n in range(10)]
OWN = [f"own {n}?" for n in range(20)]


def task(reader: Given, valid: int, train: int | None = None, held_out: int = 0, on_bad_row: str = "stop") -> Task:
    settings = {"name": "mine", "version": "1", "licence": "none", "citation": "none"}
    benchmark = Benchmark(**settings, reader=reader, tasks={"qa": {"score": "accuracy"}})
    return benchmark.task(
        "qa",
        checks=RowChecks(on_bad_row),
        tokens=len,
        train_size=train,
        test_size=None,
        held_out=held_out,
        valid_size=valid,
    )


def contents(some: Sequence[Example]) -> set[str]:
    return {content(row.prompt) for row in some}


def test_without_a_split_of_their_own_they_are_training_rows_that_are_not_trained_on():
    one = task(Given(TRAIN, TEST), 12)
    assert len(one.valid) == 12
    assert sorted(row.prompt for row in (*one.train, *one.valid)) == sorted(TRAIN)
    assert one.notices == ()


@pytest.mark.parametrize("held_out", [0, 7])
def test_the_rows_that_are_trained_on_are_those_of_a_run_without_validation_if_there_are_enough(held_out):
    given = Given(TRAIN, TEST)
    without, fewer, more = (task(given, valid, 60, held_out) for valid in (0, 5, 33))
    assert without.train == fewer.train == more.train
    assert without.held_out == fewer.held_out == more.held_out
    assert contents(fewer.valid) < contents(more.valid)
    assert not contents(more.valid) & contents((*more.train, *more.held_out, *more.test))
    assert task(given, 33, 60, held_out).valid == more.valid


def test_without_a_train_size_the_others_keep_their_order():
    given = Given(TRAIN, TEST)
    assert task(given, 40).train == task(given, 0).train[:60]


def test_rows_that_repeat_their_prompt_are_no_longer_trained_on_and_no_test_prompt_is_taken():
    again = [f" {prompt} " for prompt in TRAIN]
    one = task(Given([*TRAIN, *again], TEST), 10)
    assert len(contents(one.valid)) == len(one.valid) == 10
    assert len(one.train) == 180
    assert not contents(one.valid) & contents(one.train)


@pytest.mark.parametrize(
    ("train", "valid", "told"),
    [
        (None, 100, r"^valid_size=100 rows of qa were to be held out from its training rows, but it has 100, and at least one is"
                    r" needed to train on; give valid_size=99 or less\.$"),
        (95, 10, r"^train_size=95 and valid_size=10, but qa has 100 training rows, of which 90 are left after the validation"
                 r" rows are held out; give train_size=90 or less, or a smaller valid_size\.$"),
    ],
)  # fmt: skip
def test_too_few_training_rows_are_told_with_what_to_type(train, valid, told):
    with pytest.raises(ConfigError, match=told):
        task(Given(TRAIN, TEST), valid, train)


def test_the_largest_size_that_a_message_names_is_possible():
    assert len(task(Given(TRAIN, TEST), 99).train) == 1
    assert len(task(Given(TRAIN, TEST), 10, 90).train) == 90


@pytest.mark.parametrize("part", ["validation", "valid", "eval", "dev"])
def test_a_benchmark_s_own_split_is_drawn_from_and_leaves_the_training_rows(part):
    given = Given(TRAIN, TEST, **{part: rows(part, OWN)})
    one, more = task(given, 5), task(given, 20)
    assert one.train == task(given, 0).train
    assert contents(one.valid) < contents(more.valid) == set(OWN)
    assert one.valid == more.valid[:5]
    with pytest.raises(ConfigError, match=rf"^valid_size=21, but qa-{part} has 20 rows; give valid_size=20 or less\.$"):
        task(given, 21)


def test_rows_of_the_split_that_are_training_or_test_rows_are_left_out_and_counted():
    one = task(Given(TRAIN, TEST, dev=rows("dev", [*OWN, TRAIN[3], f"{TEST[1]} "])), 20)
    assert contents(one.valid) == set(OWN)
    (notice,) = one.notices
    assert notice.startswith("qa: 2 of 22 rows of its split dev were left out")
    assert "instead" not in notice


def test_a_split_that_equals_the_test_rows_chooses_nothing():
    one = task(Given(TRAIN, TEST, dev=rows("dev", TEST)), 6)
    assert contents(one.valid) < set(TRAIN)
    assert len(one.train) == 94
    (notice,) = one.notices
    assert notice.endswith("training or test rows; its validation rows are held out from its training rows instead")


def test_a_bad_row_of_the_split_stops_a_run_that_uses_it_or_is_counted_once():
    bad = BadRow("dev:7", "blank line")
    given = Given(TRAIN, TEST, dev=[*rows("dev", OWN), bad])
    assert task(given, 0).valid == ()
    with pytest.raises(DataError, match="^dev:7: blank line"):
        task(given, 5)
    assert task(given, 20, on_bad_row="skip").notices == ("qa: 1 of 131 rows skipped: first dev:7: blank line",)


def test_an_id_of_the_split_that_another_row_has_is_refused():
    with pytest.raises(DataError, match="id 'qa-train-0' is used twice"):
        task(Given(TRAIN, TEST, dev=[Example("qa-train-0", "new?", "a", "qa", source="dev:1")]), 1)


def test_a_task_of_all_tasks_has_the_validation_rows_of_all():
    one = task(Given(TRAIN, TEST), 3)
    assert merge([one, one]).valid == one.valid * 2


def test_validation_rows_are_a_part_of_the_data():
    given = Given(TRAIN, TEST, dev=rows("dev", OWN))
    assert task(given, 0).digest() != task(given, 5).digest() != task(given, 6).digest()


@pytest.mark.parametrize("spelling", ["validation", "valid", "dev"])
def test_files_of_ones_own_may_have_validation_rows(tmp_path: Path, spelling: str):
    for half in ("train", "test", spelling):
        line = json.dumps({"prompt": f"{half}?", "answer": "a"})
        (tmp_path / f"t.{half}.jsonl").write_text(f"{line}\n")
    (row,) = JsonlReader(tmp_path).parts("t")["validation"].rows
    assert (row.id, row.prompt) == ("t-validation-1", f"{spelling}?")
    (tmp_path / "t.valid.csv").write_text("prompt,answer\n1?,a\n")
    parts = JsonlReader(tmp_path).parts("t")  # a run without validation rows reads neither
    assert len(list(parts["train"].rows)) == 1
    with pytest.raises(DataError, match=r"both have its validation rows; keep one of them$"):
        list(parts["validation"].rows)
