"""Task files of Super-NaturalInstructions: prompts, both layouts, and what the published copies hold."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from see_lightning.config import ConfigError
from see_lightning.data import DataError, Example, RowChecks
from see_lightning.data.natural_instructions import NaturalInstructionsReader


def instance(number: int, **other: object) -> dict[str, object]:
    return {"id": f"t-{number}", "input": f"input {number}", "output": [f"output {number}"], **other}


def content(*instances: object, **other: object) -> dict[str, object]:
    examples = [{"input": " i1 ", "output": "o1 ", "explanation": "e"}, {"input": "i2", "output": ["o2"]}]
    return {"Definition": ["Do it. "], "Positive Examples": examples, "Instances": list(instances), **other}


def reader(folder: Path, **settings: Any) -> NaturalInstructionsReader:
    return NaturalInstructionsReader(folder, published_at="https://example.org, folder tasks", **settings)


def in_folder(folder: Path, train: object, **settings: Any) -> NaturalInstructionsReader:
    (folder / "task1_x").mkdir()
    for half, whole in (("train", train), ("test", content(instance(99)))):
        (folder / "task1_x" / f"{half}.json").write_text(json.dumps(whole), encoding="utf-8")
    return reader(folder, **settings)


def in_one_file(folder: Path, *instances: object, **settings: Any) -> NaturalInstructionsReader:
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "task1_x.json").write_text(json.dumps(content(*instances)), encoding="utf-8")
    return reader(folder, **settings)


@pytest.mark.parametrize(
    ("settings", "prompt"),
    [
        ({}, "Do it.\n\ninput 1"),
        ({"prompt": "sapt"}, "Definition: Do it.\n\nNow complete the following example -\nInput: input 1\nOutput: "),
        ({"prompt": "sapt_long"}, "Do it.\ninput 1\nOutput: "),
        (
            {"prompt": "sapt", "positive_examples": 2},
            "Definition: Do it.\n\nPositive Example 1 -\nInput: i1\nOutput: o1\n\nPositive Example 2 -\nInput: i2\nOutput: o2\n\n"
            "Now complete the following example -\nInput: input 1\nOutput: ",
        ),
    ],
)
def test_a_prompt_is_put_letter_by_letter_so(tmp_path: Path, settings: dict[str, Any], prompt: str) -> None:
    split = in_folder(tmp_path, content(instance(1)), **settings).read("task1_x", RowChecks())
    assert split.train == (Example("t-1", prompt, "output 1", "task1_x"),)
    assert split.train[0].source == f"{tmp_path}/task1_x/train.json, Instances, row 1"


@pytest.mark.parametrize("definition", ["Do it.", [" Do it.\n", "Do another."]])
@pytest.mark.parametrize("output", ["{a} ", ["{a}"], [" {a}", "other"]])
def test_a_string_or_the_first_of_a_list_counts_without_blanks(
    tmp_path: Path, definition: object, output: object
) -> None:
    train = content(instance(1, input=" with {braces} ", output=output), Definition=definition)
    row = in_folder(tmp_path, train).read("task1_x", RowChecks()).train[0]
    assert (row.prompt, row.target) == ("Do it.\n\nwith {braces}", "{a}")


def test_a_row_without_an_id_is_named_by_its_place(tmp_path: Path) -> None:
    train = content(instance(1), {"input": "i", "output": "o"})
    assert in_folder(tmp_path, train).read("task1_x", RowChecks()).train[1].id == "task1_x-train-2"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"id": "a", "input": "i"}, "missing key 'output'; found: id, input"),
        (instance(2, output=[]), "'output' must be a string, found list"),
        (instance(2, output=[3]), "'output' must be a string, found int"),
        (instance(2, output=" "), "empty answer"),
        (instance(2, input="\n"), "empty input"),
        (instance(2, id="t-1"), "id 't-1' is used twice, first at {train}, Instances, row 1"),
        ("i", "a JSON str where an object is needed"),
    ],
)
def test_a_malformed_row_is_told_with_file_and_row(tmp_path: Path, row: object, told: str) -> None:
    train = tmp_path / "task1_x" / "train.json"
    with pytest.raises(DataError) as error:
        in_folder(tmp_path, content(instance(1), row)).read("task1_x", RowChecks())
    assert str(error.value).startswith(f"{train}, Instances, row 2: {told.format(train=train)}. Mend the row")


@pytest.mark.parametrize(
    ("whole", "told"),
    [
        ([], "a JSON list where an object with Instances is needed"),
        ({"Definition": "d"}, "missing key 'Instances'; found: Definition"),
        ({"Instances": []}, "missing key 'Definition'; found: Instances"),
        ({"Definition": "d", "Instances": {}}, ", Instances: a JSON dict where an array of rows is needed"),
        (
            content(instance(1), **{"Positive Examples": []}),
            "0 positive examples, 1 are asked for; set benchmark.reader.pos",
        ),
    ],
)
def test_a_file_malformed_as_a_whole_is_told(tmp_path: Path, whole: object, told: str) -> None:
    with pytest.raises(DataError) as error:
        in_folder(tmp_path, whole, positive_examples=int("are asked" in told)).read("task1_x", RowChecks())
    assert str(error.value).startswith(str(tmp_path / "task1_x" / "train.json"))
    assert told in str(error.value)


def ids(rows: tuple[Example, ...]) -> set[str]:
    return {row.id for row in rows}


def test_one_file_is_split_by_its_inputs_alone(tmp_path: Path) -> None:
    rows = [instance(number) for number in range(200)]
    split = in_one_file(tmp_path, *rows, test_rows=30).read("task1_x", RowChecks())
    assert (len(split.train), len(split.test)) == (170, 30)
    assert ids(split.train) | ids(split.test) == {f"t-{number}" for number in range(200)}
    assert split.notices == (
        f"task1_x: {tmp_path}/tasks/task1_x.json was split by a hash of its inputs into 170 training and 30 test rows",
    )
    reversed_, otherwise = rows[::-1], {"prompt": "sapt", "positive_examples": 2}
    again = in_one_file(tmp_path, *reversed_, test_rows=30, **otherwise).read("task1_x", RowChecks())
    assert [row.id for row in again.test] == [row.id for row in split.test]
    assert [row.id for row in again.train] == [row.id for row in split.train]


def test_a_longer_test_half_holds_the_shorter_one_and_fewer_training_rows_are_the_first(tmp_path: Path) -> None:
    rows = [instance(number) for number in range(200)]
    short = in_one_file(tmp_path, *rows, test_rows=10, train_rows=50).read("task1_x", RowChecks())
    long = in_one_file(tmp_path, *rows, test_rows=20).read("task1_x", RowChecks())
    assert ids(short.test) < ids(long.test)
    assert len(short.train) == 50
    assert short.train[10:] == long.train[:40]


def test_rows_of_one_input_stay_together_and_a_fifth_at_most_is_tested(tmp_path: Path) -> None:
    rows = [instance(number, input=f"input {number // 4}") for number in range(40)]
    split = in_one_file(tmp_path, *rows).read("task1_x", RowChecks())
    assert (len(split.train), len(split.test)) == (32, 8)
    assert len({row.prompt for row in split.test}) == 2


def test_a_bad_row_of_one_file_is_told(tmp_path: Path) -> None:
    rows = [instance(number) for number in range(10)] + [{"id": "x", "input": "y"}]
    with pytest.raises(DataError, match=r"tasks/task1_x\.json, Instances, row 11: missing key 'output'"):
        in_one_file(tmp_path, *rows).read("task1_x", RowChecks())


def test_a_missing_folder_or_task_is_answered_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looked for in .*/none, where there is neither <task>/train\.json nor "
                       r"tasks/<task>\.json\. Put the files of https://example\.org, folder tasks into DIR/none"):  # fmt: skip
        reader(tmp_path / "none").tasks()
    of = in_one_file(tmp_path, *map(instance, range(10)))
    with pytest.raises(
        DataError, match=r"^no task 'task1_y'; did you mean 'task1_x'\? There are: task1_x\. Put the files of"
    ):
        of.read("task1_y", RowChecks())


def test_of_very_many_tasks_only_some_are_named(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    for number in range(60):
        (tmp_path / "tasks" / f"task{number:02d}.json").write_text("{}")
    with pytest.raises(DataError, match=r"^no task 'qa'\. There are: task00, .* task39 and 20 more\. Put the files"):
        reader(tmp_path).read("qa", RowChecks())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"prompt": "spat"},
            r"benchmark\.reader\.prompt must be one of plain, sapt, sapt_long; got 'spat'\. Did you mean 's",
        ),
        ({"positive_examples": -1}, r"benchmark\.reader\.positive_examples must be at least 0; got -1"),
        ({"test_rows": 0}, r"benchmark\.reader\.test_rows must be at least 1; got 0"),
        ({"train_rows": 0}, r"benchmark\.reader\.train_rows must be at least 1; got 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        reader(tmp_path, **settings)


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "train", "test"),
    [
        ("task073_commonsenseqa_answer_generation", 975, 100),
        ("task1572_samsum_summary", 160, 20),
        ("task363_sst2_polarity_classification", 1000, 100),
    ],
)
def test_the_published_files_are_read_whole_and_without_blanks(task: str, train: int, test: int) -> None:
    folder = Path(os.environ["SEE_DATA"]) / "natural_instructions"
    split = reader(folder, positive_examples=2).read(task, RowChecks())
    assert (len(split.train), len(split.test), split.notices) == (train, test, ())
    assert all(text == text.strip() for row in split.train + split.test for text in (row.prompt, row.target))
    assert len({row.prompt for row in split.train}) == train
