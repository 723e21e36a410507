"""TRACE's files: texts as they stand, the body that may be cut, and what the published copies hold."""

import json
import os
from pathlib import Path

import pytest

from see_lightning.data import Example, RowChecks
from see_lightning.data.trace import TraceReader
from see_lightning.errors import DataError

# The prompts of the published files, around the text that may be cut.
PROMPTS = {
    "C-STANCE": (
        "判断以下文本对指定对象的态度，选择一项：A.支持，B.反对，C.中立。输出A，B或者C。\n文本：\n",
        "\n对象：\n某人\n态度：",
    ),
    "FOMC": (
        "What is the monetary policy stance for the following text? A. dovish, B. hawkish, C. neutral. Choose one from A, B "
        "and C.\nText:\n",
        "\nStance:",
    ),
    "MeetingBank": ("Write a summary of the following meeting transcripts.\nMeeting transcripts:\n", "\nSummary:"),
    "ScienceQA": (
        "Choose an answer for the following question and give your reasons.\n\nQuestion:\n",
        "\n\nChoices:\nA. one\nB. two\n\nAnswer:",
    ),
    "NumGLUE-cm": ("Solve the following math problem.\nQuestion:\n", "\nAnswer:"),
    "NumGLUE-ds": ("Solve the following math problem.\nQuestion:\n", "\nAnswer:"),
    "20Minuten": (
        "Provide a simplified version of the following paragraph in German.\n\nParagraph:\n",
        "\n\nSimplification:",
    ),
}


def write(folder: Path, task: str, train: object, test: object) -> TraceReader:
    (folder / task).mkdir()
    for half, rows in (("train", train), ("test", test)):
        text = rows if isinstance(rows, str) else json.dumps(rows, ensure_ascii=False)
        (folder / task / f"{half}.json").write_text(text, encoding="utf-8")
    return TraceReader(folder)


def row(prompt: str, answer: str = "a") -> dict[str, str]:
    return {"prompt": prompt, "answer": answer}


def test_texts_are_taken_as_they_stand_and_ids_count_the_rows(tmp_path: Path) -> None:
    split = write(tmp_path, "FOMC", [row(" p \n", " A"), row("q")], [row("r")]).read("FOMC", RowChecks())
    assert split.train == (
        Example("FOMC-train-1", " p \n", " A", "FOMC"),
        Example("FOMC-train-2", "q", "a", "FOMC"),
    )
    assert split.test == (Example("FOMC-test-1", "r", "a", "FOMC"),)
    assert split.train[1].source == f"{tmp_path}/FOMC/train.json, row 2"


@pytest.mark.parametrize("task", PROMPTS)
def test_the_body_stands_between_instruction_and_what_is_asked(tmp_path: Path, task: str) -> None:
    before, behind = PROMPTS[task]
    reader = write(tmp_path, task, [row(f"{before}first and last{behind}")], [row("r")])
    shortened = reader.read(task, RowChecks()).train[0].shortened(5)
    assert shortened.prompt == f"{before}first{behind}"


def test_of_code_to_be_continued_the_end_is_kept(tmp_path: Path) -> None:
    reader = write(tmp_path, "Py150", [row("<s> import os <EOL> os . getcwd ( ) <EOL>")], [row("r")])
    assert reader.read("Py150", RowChecks()).train[0].shortened(20).prompt == "s . getcwd ( ) <EOL>"


@pytest.mark.parametrize(("task", "prompt"), [("FOMC", "Stance? Text: none"), ("Other", "Question:\nwhat?\nAnswer:")])
def test_a_prompt_of_another_form_has_no_body(tmp_path: Path, task: str, prompt: str) -> None:
    assert write(tmp_path, task, [row(prompt)], [row("r")]).read(task, RowChecks()).train[0].body is None


def test_an_empty_answer_is_read_as_trace_reads_it_and_told(tmp_path: Path) -> None:
    split = write(tmp_path, "FOMC", [row("p"), row("q", "")], [row("r", " ")]).read("FOMC", RowChecks())
    assert [example.target for example in split.train + split.test] == ["a", "", " "]
    first = f"{tmp_path}/FOMC/train.json, row 2"
    assert split.notices == (f"FOMC: 2 of 3 rows are read as published: the answer is empty; first {first}",)


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ([row("p"), {"prompt": "q"}], "{train}, row 2: missing key 'answer'; found: prompt"),
        ([row("p"), ["q", "a"]], "{train}, row 2: a JSON list where an object is needed"),
        ([{"prompt": "p", "answer": 3}], "{train}, row 1: 'answer' must be a string, found int"),
        ({"rows": []}, "{train}: a JSON dict where an array of rows is needed"),
        ("[", "{train}:1: invalid JSON: Expecting value at column 2"),
        ([], "FOMC: no training rows; a task needs at least one"),
    ],
)
def test_a_malformed_file_is_told_with_file_and_row(tmp_path: Path, train: object, told: str) -> None:
    reader = write(tmp_path, "FOMC", train, [row("r")])
    with pytest.raises(DataError) as error:
        reader.read("FOMC", RowChecks())
    assert str(error.value).startswith(told.format(train=tmp_path / "FOMC" / "train.json"))


def test_a_missing_folder_task_or_file_is_answered_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^TRACE was looked for in .*/trace_500, where there is no <Task>/train.json\. Put "
                       r"the files of https://github.com/zjwang21/TRACE, .* into DIR/trace_500 and set .* SEE_DATA=DIR"):  # fmt: skip
        TraceReader(tmp_path / "trace_500").tasks()
    reader = write(tmp_path, "FOMC", [row("p")], [row("r")])
    with pytest.raises(DataError, match=r"^no task 'FOMS'; did you mean 'FOMC'\? There are: FOMC\. Put the files of "):
        reader.read("FOMS", RowChecks())
    (tmp_path / "FOMC" / "test.json").unlink()
    with pytest.raises(DataError, match=r"^FOMC: no file .*/FOMC/test\.json$"):
        reader.read("FOMC", RowChecks())


def test_test_rows_that_stand_in_train_are_left_out_and_told_however_many(tmp_path: Path) -> None:
    test = [row("p "), row("r"), row("q", "b")]
    split = write(tmp_path, "FOMC", [row("p"), row("q")], test).read("FOMC", RowChecks())
    assert split.test == (Example("FOMC-test-2", "r", "a", "FOMC"),)
    assert split.notices == (
        "FOMC: 2 of 3 test rows were left out, since their prompts are also in the training rows; published numbers count them",
    )


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "train", "test"), [("NumGLUE-cm", 500, 81), ("ScienceQA", 500, 100), ("Py150", 500, 95)]
)
def test_the_published_files_are_read_less_the_test_rows_that_leak(task: str, train: int, test: int) -> None:
    split = TraceReader(Path(os.environ["SEE_DATA"]) / "trace_500").read(task, RowChecks())
    assert (len(split.train), len(split.test)) == (train, test)
    assert len(split.notices) == (task == "Py150")
    assert all(example.body for example in split.train + split.test)
