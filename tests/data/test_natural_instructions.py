"""Task files of Super-NaturalInstructions: prompts, both layouts, and what the published copies hold."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from see_lightning.data import Example, RowChecks
from see_lightning.data.natural_instructions import NaturalInstructionsReader
from see_lightning.errors import ConfigError, DataError


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


PUBLISHED = [
    {"input": " 1, 2 ", "output": "3"},
    {"input": "4 and 4?", "output": " 8!"},
    {"input": "x", "output": "y"},
]
NOW = "Now complete the following example -\nInput: "


@pytest.mark.parametrize(
    ("definition", "examples", "text", "prompt"),
    [
        (
            ["Say the sum"],
            PUBLISHED,
            " 2, 3 \n",
            "Definition: Say the sum.\n\n Positive Example 1 -\nInput: 1, 2.\n Output: 3.\n\n"
            f" Positive Example 2 -\nInput: 4 and 4?\n Output: 8!\n\n{NOW}2, 3.\nOutput: ",
        ),
        (
            [" Is it so? ", "other"],
            PUBLISHED[:1],
            "so.",
            f"Definition: Is it so?\n\n Positive Example 1 -\nInput: 1, 2.\n Output: 3.\n\n{NOW}so.\nOutput: ",
        ),
        ("Sum.", [], "", f"Definition: Sum.\n\n{NOW}.\nOutput: "),
        (
            ["Add"],
            [{"input": "", "output": " "}],
            "ä",
            f"Definition: Add.\n\n Positive Example 1 -\nInput: .\n Output: .\n\n{NOW}ä.\nOutput: ",
        ),
    ],
)
def test_prompts_are_those_of_tk_instructs_collator(
    tmp_path: Path, definition: object, examples: object, text: str, prompt: str
) -> None:
    train = content(instance(1, input=text), **{"Definition": definition, "Positive Examples": examples})
    row = in_folder(tmp_path, train, prompt="tk_instruct", positive_examples=2).read("task1_x", RowChecks()).train[0]
    assert row.prompt == prompt  # what the published collator makes of these inputs


def test_where_a_prompt_is_too_long_the_last_positive_examples_go_first_and_then_the_input(tmp_path: Path) -> None:
    train = content(instance(1, input="2, 3"), **{"Definition": "Say the sum", "Positive Examples": PUBLISHED})
    row = in_folder(tmp_path, train, prompt="tk_instruct", positive_examples=2).read("task1_x", RowChecks()).train[0]
    one = row.without_last_extra()
    assert one.prompt == (
        f"Definition: Say the sum.\n\n Positive Example 1 -\nInput: 1, 2.\n Output: 3.\n\n{NOW}2, 3.\nOutput: "
    )
    none = one.without_last_extra()
    assert none.prompt == f"Definition: Say the sum.\n\n{NOW}2, 3.\nOutput: "
    assert none.shortened(1).prompt == f"Definition: Say the sum.\n\n{NOW}2.\nOutput: "


@pytest.mark.parametrize(("style", "blanks"), [("plain", False), ("sapt", True), ("sapt_long", True)])
def test_blanks_around_inputs_and_answers_stay_where_sapt_leaves_them(tmp_path: Path, style: str, blanks: bool) -> None:
    train = content(instance(1, input=" in\n", output=[" out ", " or"]))
    row = in_folder(tmp_path, train, prompt=style).read("task1_x", RowChecks()).train[0]
    assert (" in\n" in row.prompt) == blanks
    assert row.references == ((" out ", " or") if blanks else ("out", "or"))


def test_all_outputs_are_references_and_the_first_is_trained_on(tmp_path: Path) -> None:
    train = content(instance(1, output=["b", "a", "b"]), instance(2, output="c"))
    first, second = in_folder(tmp_path, train).read("task1_x", RowChecks()).train
    assert (first.target, first.alternatives) == ("b", ("a",))
    assert second.references == ("c",)


@pytest.mark.parametrize("style", ["plain", "sapt", "sapt_long", "tk_instruct"])
def test_an_empty_input_or_output_is_read_as_published_and_told(tmp_path: Path, style: str) -> None:
    train = content(instance(1), instance(2, output=[""]), instance(3, input=" "), instance(4, output=["a", " "]))
    split = in_folder(tmp_path, train, prompt=style).read("task1_x", RowChecks())
    assert len(split.train) == 4
    place = f"{tmp_path}/task1_x/train.json, Instances, row"
    assert split.notices == (
        f"task1_x: 2 of 5 rows are read as published: the answer is empty; first {place} 2",
        f"task1_x: 1 of 5 rows are read as published: the input is empty; first {place} 3",
    )


@pytest.mark.parametrize("definition", [[], ""])
def test_a_file_of_the_long_sequence_may_have_no_definition(tmp_path: Path, definition: object) -> None:
    whole = content(instance(1), Definition=definition)
    split = in_folder(tmp_path, whole, prompt="sapt_long").read("task1_x", RowChecks())
    assert split.train[0].prompt == "input 1\nOutput: "
    path = tmp_path / "task1_x" / "train.json"
    assert split.notices == (f"task1_x: {path} has no definition, so its prompts begin without one",)


def test_fewer_positive_examples_than_asked_for_are_shown_and_told(tmp_path: Path) -> None:
    whole = content(instance(1), **{"Positive Examples": []})
    split = in_folder(tmp_path, whole, positive_examples=2).read("task1_x", RowChecks())
    assert split.train[0].prompt == "Do it.\n\ninput 1"
    assert split.notices == (f"task1_x: {tmp_path}/task1_x/train.json has 0 positive examples, of 2 to be shown",)


def test_a_row_without_an_id_is_named_by_its_place(tmp_path: Path) -> None:
    train = content(instance(1), {"input": "i", "output": "o"})
    assert in_folder(tmp_path, train).read("task1_x", RowChecks()).train[1].id == "task1_x-train-2"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"id": "a", "input": "i"}, "missing key 'output'; found: id, input"),
        (instance(2, output=[]), "'output' is an empty list"),
        (instance(2, output=[3]), "'output' must be a string, found int"),
        (instance(2, id="t-1"), "id 't-1' is used twice, first at {train}, Instances, row 1"),
        ("i", "a JSON str where an object is needed"),
    ],
)
def test_a_malformed_row_is_told_with_file_and_row(tmp_path: Path, row: object, told: str) -> None:
    train = tmp_path / "task1_x" / "train.json"
    with pytest.raises(DataError) as error:
        in_folder(tmp_path, content(instance(1), row)).read("task1_x", RowChecks())
    assert str(error.value).startswith(f"{train}, Instances, row 2: {told.format(train=train)}. Fix the row")


@pytest.mark.parametrize(
    ("whole", "told"),
    [
        ([], "a JSON list where an object with Instances is needed"),
        ({"Definition": "d"}, "missing key 'Instances'; found: Definition"),
        ({"Instances": []}, "missing key 'Definition'; found: Instances"),
        ({"Definition": "d", "Instances": {}}, ", Instances: a JSON dict where an array of rows is needed"),
        (content(instance(1), **{"Positive Examples": {}}), "'Positive Examples' is a JSON dict, a list is needed"),
        (content(instance(1), **{"Positive Examples": ["e"]}), "positive example 1 is a JSON str, an object is needed"),
        (content(instance(1), Definition=[]), "'Definition' is an empty list"),
    ],
)
def test_a_file_malformed_as_a_whole_is_told(tmp_path: Path, whole: object, told: str) -> None:
    with pytest.raises(DataError) as error:
        in_folder(tmp_path, whole, prompt="sapt", positive_examples=int("ositive" in told)).read("task1_x", RowChecks())
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


def test_of_one_file_the_first_rows_are_tested_as_in_citb(tmp_path: Path) -> None:
    rows = [instance(number) for number in range(60)] + [instance(99, input="input 3")]
    of = in_one_file(tmp_path, *rows, split="first", test_rows=10, train_rows=30)
    dev = [row.id for row in of.parts("task1_x")["dev"].rows if isinstance(row, Example)]
    assert dev == [f"t-{number}" for number in range(10, 20)]
    split = of.read("task1_x", RowChecks())
    assert [row.id for row in split.test] == [f"t-{number}" for number in range(10)]
    assert len(split.train) == 30
    assert ids(split.train) < {f"t-{number}" for number in range(20, 60)}
    assert split.notices[0].endswith(
        "was split as CITB does, by the order of its rows, into 30 training and 10 test rows"
    )
    assert of.read("task1_x", RowChecks()).train == split.train
    everything = in_one_file(tmp_path, *rows, split="first", test_rows=10).read("task1_x", RowChecks())
    assert ids(everything.train) == {f"t-{number}" for number in range(20, 60)}, (
        "an input of a test row is not trained on"
    )


def test_where_a_file_is_too_short_for_its_first_rows_a_fifth_is_tested(tmp_path: Path) -> None:
    split = in_one_file(tmp_path, *map(instance, range(10)), split="first", test_rows=5).read("task1_x", RowChecks())
    assert (ids(split.test), len(split.train)) == ({"t-0", "t-1"}, 6)


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
            r"benchmark\.reader\.prompt must be one of plain, sapt, sapt_long, tk_instruct; got 'spat'\. ",
        ),
        ({"split": "last"}, r"benchmark\.reader\.split must be one of hash, first; got 'last'"),
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
