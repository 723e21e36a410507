"""O-LoRA's files: the prompts that it makes of them, and what the published copies hold."""

import json
import os
from pathlib import Path

import pytest

from see_lightning.data import Example, RowChecks
from see_lightning.data.cl_benchmark import ClBenchmarkReader
from see_lightning.errors import DataError


def write(folder: Path, kind: str, task: str, train: object, labels: object = ("good", "bad")) -> ClBenchmarkReader:
    place = folder / kind / task
    place.mkdir(parents=True)
    test = [{"label": labels[0] if isinstance(labels, (list, tuple)) and labels else "", "sentence": "A test."}]
    for name, content in (("train", train), ("dev", test), ("test", test), ("labels", labels)):
        (place / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return ClBenchmarkReader(folder)


ROWS = [{"label": "good", "sentence": "Title: x\nText: fine.\n"}, {"sentence": "Poor.", "label": "bad"}]


def test_the_prompt_is_question_options_sentence_answer(tmp_path: Path) -> None:
    split = write(tmp_path, "SC", "yelp", ROWS).read("yelp", RowChecks())
    assert split.train == (
        Example(
            "yelp-train-1",
            "What is the sentiment of the following paragraph? Choose one from the option.\nOption: good, bad \n"
            "Title: x\nText: fine.\n\nAnswer:",
            "good",
            "yelp",
        ),
        Example(
            "yelp-train-2",
            "What is the sentiment of the following paragraph? Choose one from the option.\nOption: good, bad \nPoor.\nAnswer:",
            "bad",
            "yelp",
        ),
    )
    assert split.train[1].source == f"{tmp_path}/SC/yelp/train.json, row 2"


def test_the_sentence_of_copa_holds_its_question(tmp_path: Path) -> None:
    rows = [{"label": "A", "sentence": "Which? Choose one between A and B.\nA: x\nB: y"}]
    split = write(tmp_path, "COPA", "COPA", rows, ["A", "B"]).read("COPA", RowChecks())
    assert split.train[0].prompt == "Which? Choose one between A and B.\nA: x\nB: y\nAnswer:"


def test_the_tasks_name_is_in_the_prompt_only_if_asked_for(tmp_path: Path) -> None:
    bare = write(tmp_path, "TC", "agnews", ROWS).read("agnews", RowChecks()).train[0].prompt
    named = ClBenchmarkReader(tmp_path, task_name=True).read("agnews", RowChecks()).train[0].prompt
    assert named == f"Task:TC\nDataset:agnews\n{bare}"
    assert "agnews" not in bare


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"label": "good"}, "row 2: missing key 'sentence'; found: label"),
        ({"label": 1, "sentence": "s"}, "row 2: 'label' must be a string, found int"),
        ("s", "row 2: a JSON str where an object is needed"),
    ],
)
def test_a_malformed_row_is_told_with_file_and_row(tmp_path: Path, row: object, told: str) -> None:
    reader = write(tmp_path, "SC", "yelp", [ROWS[0], row])
    with pytest.raises(DataError) as error:
        reader.read("yelp", RowChecks())
    assert str(error.value).startswith(f"{tmp_path}/SC/yelp/train.json, {told}. Fix the row")


@pytest.mark.parametrize(
    ("label", "sentence", "remark"),
    [
        ("-", "s", "the label '-' is none of labels.json, so none of the options is right"),
        ("", "s", "the label '' is none of labels.json, so none of the options is right"),
        ("good", " ", "the sentence is empty"),
        ("-", "", "the sentence is empty, and the label '-' is none of labels.json, so none of the options is right"),
    ],
)
def test_a_row_that_o_lora_reads_all_the_same_is_read_and_told(
    tmp_path: Path, label: str, sentence: str, remark: str
) -> None:
    rows = [*ROWS, {"label": label, "sentence": sentence}]
    split = write(tmp_path, "SC", "yelp", rows).read("yelp", RowChecks())
    assert split.train[-1].target == label
    assert split.train[-1].prompt.endswith(f"\n{sentence}\nAnswer:")
    assert split.notices[-1].endswith(f"rows are read as published: {remark}; first {split.train[-1].source}")


def test_a_test_sentence_that_stands_in_train_is_left_out_and_a_long_one_may_be_cut(tmp_path: Path) -> None:
    reader = write(tmp_path, "SC", "yelp", [*ROWS, {"label": "bad", "sentence": "not  in test"}])
    test = tmp_path / "SC" / "yelp" / "test.json"
    test.write_text(json.dumps([{"label": "bad", "sentence": "not  in test"}, {"label": "bad", "sentence": "here"}]))
    split = reader.read("yelp", RowChecks())
    assert [row.id for row in split.test] == ["yelp-test-2"]
    assert split.notices[0].startswith(
        "yelp: 1 of 2 test rows were left out, since their prompts are also in the training rows"
    )
    assert split.test[0].shortened(2).prompt == split.test[0].prompt.replace("here", "he")


@pytest.mark.parametrize("labels", [[], {"good": 1}, ["good", 1]])
def test_labels_that_are_no_array_of_strings_are_refused(tmp_path: Path, labels: object) -> None:
    with pytest.raises(DataError, match=r"/SC/yelp/labels\.json: an array of at least one string is needed"):
        write(tmp_path, "SC", "yelp", ROWS, labels).read("yelp", RowChecks())


def test_a_type_without_a_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no prompt for tasks of type 'SA'; there are: TC, SC, NLI, QQP, BoolQA"):
        write(tmp_path, "SA", "yelp", ROWS).read("yelp", RowChecks())


def test_a_missing_folder_or_task_is_answered_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^O-LoRA's tasks were looked for in .*/cl_benchmark, where there is no "
                       r"<type>/<task>/train\.json\. Put the files of https://github\.com/cmnfriend/O-LoRA, folder "
                       r"CL_Benchmark into DIR/cl_benchmark and set the environment variable SEE_DATA=DIR"):  # fmt: skip
        ClBenchmarkReader(tmp_path / "cl_benchmark").tasks()
    reader = write(tmp_path, "SC", "yelp", ROWS)
    with pytest.raises(DataError, match=r"^no task 'help'; did you mean 'yelp'\? There are: yelp\. Put the files of "):
        reader.read("help", RowChecks())


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "train", "test", "labels"),
    [
        ("agnews", 4000, 7600, {"World", "Sports", "Business", "Science or Technology"}),
        ("RTE", 2000, 277, {"contradiction", "entailment"}),
        ("CB", 250, 56, {"contradiction", "entailment", "neutral"}),
        ("COPA", 400, 100, {"A", "B"}),
    ],
)
def test_the_published_files_are_read_whole(task: str, train: int, test: int, labels: set[str]) -> None:
    split = ClBenchmarkReader(Path(os.environ["SEE_DATA"]) / "cl_benchmark").read(task, RowChecks())
    assert (len(split.train), len(split.test), split.notices) == (train, test, ())
    assert {row.target for row in split.train} == labels
    assert all(row.prompt.endswith("\nAnswer:") for row in split.train + split.test)
