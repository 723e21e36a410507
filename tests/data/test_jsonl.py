"""A user's own files: what a line may be, and what is said of one that may not."""

import json
from pathlib import Path

import pytest

from see_lightning.data import Example, RowChecks
from see_lightning.data.jsonl import JsonlReader
from see_lightning.errors import DataError

GOOD = b'{"prompt": "Say a.", "answer": "a"}'
TEST = b'{"prompt": "Say b.", "answer": "b"}\n'


def write(folder: Path, train: bytes, test: bytes = TEST, task: str = "echo") -> JsonlReader:
    (folder / f"{task}.train.jsonl").write_bytes(train)
    (folder / f"{task}.test.jsonl").write_bytes(test)
    return JsonlReader(folder)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "caf\xe9", "answer": "a"}', "not UTF-8: byte 0xe9 at column 16"),
        (b'{"prompt": "Say', "invalid JSON: Unterminated string starting at at column 12"),
        (b"", "blank line"),
        (b" \t\r", "blank line"),
        (b'["Say a.", "a"]', "a JSON list where an object is needed"),
        (b"null", "a JSON NoneType where an object is needed"),
        (b'{"prompt": "Say c.", "output": "c"}', "missing key 'answer'; found: prompt, output, id"),
        (b'{"id": "x"}', "missing key 'prompt', 'answer'; found: id"),
        (b'{"prompt": "Say c.", "answer": 3}', "'answer' must be a string, found int"),
        (b'{"prompt": "Say c.", "answer": []}', "'answer' is an empty list"),
        (b'{"prompt": "Say c.", "answer": ["c", 3]}', "'answer' must be a string, found int"),
        (b'{"prompt": "Say c.", "answer": ["c", ""]}', "empty answer"),
        (b'{"prompt": ["Say c."], "answer": "c"}', "'prompt' must be a string, found list"),
        (b'{"prompt": "Say c.", "answer": null}', "'answer' must be a string, found NoneType"),
        (b'{"id": true, "prompt": "Say c.", "answer": "c"}', "'id' must be a string, found bool"),
        (
            b'{"prompt": "Say \\ud800.", "answer": "c"}',
            "'prompt' holds half a surrogate pair, which cannot be written as UTF-8",
        ),
        (b'{"prompt": "Say c.", "answer": " "}', "empty answer"),
        (b'{"prompt": "", "answer": "c"}', "empty prompt"),
        (b'{"prompt": "<<neg>> Say c.", "answer": "c"}', "the prompt contains the indicator '<<neg>>'"),
        (
            b'{"id": "echo-train-1", "prompt": "Say c.", "answer": "c"}',
            "id 'echo-train-1' is used twice, first at {train}:1",
        ),
    ],
)
def test_a_bad_line_stops_with_file_line_and_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    reader = write(tmp_path, GOOD + b"\n" + line + b"\n" + b'{"prompt": "Say d.", "answer": "d"}\n')
    train = tmp_path / "echo.train.jsonl"
    with pytest.raises(DataError) as error:
        reader.read("echo", RowChecks())
    assert str(error.value).startswith(f"{train}:2: {reason.replace('{train}', str(train))}. Fix the row")


def test_of_several_answers_the_first_is_trained_on_and_all_count(tmp_path: Path) -> None:
    row = write(tmp_path, b'{"prompt": "Say c.", "answer": ["c", "see", "c"]}').read("echo", RowChecks()).train[0]
    assert (row.target, row.alternatives, row.references) == ("c", ("see",), ("c", "see"))


def test_a_test_prompt_that_stands_in_train_is_named_with_both_places(tmp_path: Path) -> None:
    reader = write(tmp_path, GOOD + b"\n", TEST + b'{"prompt": " Say a. ", "answer": "other"}')
    with pytest.raises(DataError) as error:
        reader.read("echo", RowChecks())
    assert str(error.value).startswith(
        f"{tmp_path}/echo.test.jsonl:2: this test prompt is also in the training rows, at "
        f"{tmp_path}/echo.train.jsonl:1."
    )


def test_ids_default_to_task_half_and_line(tmp_path: Path) -> None:
    train = b"\n".join(
        [GOOD, b'{"id": "mine", "prompt": "Say c.", "answer": " c "}', b'{"id": 3, "prompt": "p", "answer": "q"}']
    )
    split = write(tmp_path, train).read("echo", RowChecks())
    assert split.train == (
        Example(id="echo-train-1", prompt="Say a.", target="a", task="echo"),
        Example(id="mine", prompt="Say c.", target=" c ", task="echo"),
        Example(id="3", prompt="p", target="q", task="echo"),
    )
    assert split.test == (Example(id="echo-test-1", prompt="Say b.", target="b", task="echo"),)
    assert [row.source for row in split.train] == [f"{tmp_path}/echo.train.jsonl:{line}" for line in (1, 2, 3)]


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n \n", b"\r\n\r\n"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path, end: bytes) -> None:
    assert len(write(tmp_path, GOOD + end).read("echo", RowChecks()).train) == 1


def test_windows_line_ends_and_unicode_line_separators_do_not_break_rows(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    train = json.dumps({"prompt": text, "answer": "é"}, ensure_ascii=False).encode() + b"\r\n" + GOOD + b"\r\n"
    split = write(tmp_path, train).read("echo", RowChecks())
    assert [(row.prompt, row.target) for row in split.train] == [(text, "é"), ("Say a.", "a")]


def test_a_skipped_line_keeps_the_numbers_of_the_lines_after_it(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"Say {n}.", "answer": str(n)}).encode() for n in range(1, 101)]
    lines[1] = b"{"
    split = write(tmp_path, b"\n".join(lines)).read("echo", RowChecks("skip"))
    assert [row.id for row in split.train[:3]] == ["echo-train-1", "echo-train-3", "echo-train-4"]
    assert split.notices == (
        f"echo: 1 of 101 rows skipped: first {tmp_path}/echo.train.jsonl:2: "
        "invalid JSON: Expecting property name enclosed in double quotes at column 2",
    )


def test_a_near_miss_of_a_task_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    reader = write(tmp_path, GOOD)
    write(tmp_path, GOOD, task="count")
    assert reader.tasks() == ["count", "echo"]
    with pytest.raises(DataError, match=r"^no task 'ecco'; did you mean 'echo'\? There are: count, echo$"):
        reader.read("ecco", RowChecks())
    with pytest.raises(DataError, match=r"^no task 'translate'\. There are: count, echo$"):
        reader.read("translate", RowChecks())


def test_a_missing_folder_is_answered_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        JsonlReader(tmp_path / "nowhere").read("echo", RowChecks())
    assert str(error.value) == (
        f"{tmp_path}/nowhere holds no <task>.train.jsonl. Write <task>.train.jsonl and <task>.test.jsonl, with lines "
        'like {"prompt": "...", "answer": "..."}, and set benchmark.reader.folder=DIR. Files may also be .jsonl, .json, '
        ".csv, .tsv or .parquet, or a folder <task> of save_to_disk with the splits train and test"
    )


def test_a_missing_test_file_is_named(tmp_path: Path) -> None:
    reader = write(tmp_path, GOOD)
    (tmp_path / "echo.test.jsonl").unlink()
    with pytest.raises(DataError, match=r"^echo: no file .*/echo\.test\.jsonl$"):
        reader.read("echo", RowChecks())


def test_an_empty_file_is_no_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^echo: no training rows"):
        write(tmp_path, b"\n").read("echo", RowChecks())
