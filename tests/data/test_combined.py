"""Several readers as one: every task is read by its own, and errors name the source."""

import json
from pathlib import Path

import pytest

from see_lightning.data import RowChecks
from see_lightning.data.combined import CombinedReader
from see_lightning.data.jsonl import JsonlReader
from see_lightning.errors import DataError


def written(folder: Path, *tasks: str, answer: str = "yes") -> JsonlReader:
    folder.mkdir(exist_ok=True)
    for task in tasks:
        for half, numbers in (("train", (1, 2, 3)), ("test", (4, 5))):
            rows = [{"prompt": f"{task} {number}?", "answer": answer} for number in numbers]
            (folder / f"{task}.{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlReader(folder)


def test_a_task_is_what_its_own_reader_reads(tmp_path: Path) -> None:
    one, two = written(tmp_path / "one", "sky", "sea"), written(tmp_path / "two", "ice", answer="no")
    reader = CombinedReader({"one": one, "two": two})
    assert reader.tasks() == [*one.tasks(), *two.tasks()]
    for task, own in (("sky", one), ("ice", two)):
        assert reader.read(task, RowChecks()) == own.read(task, RowChecks())
        parts = {name: list(part.rows) for name, part in reader.parts(task).items()}
        assert parts == {name: list(part.rows) for name, part in own.parts(task).items()}


def test_an_error_begins_with_the_name_of_the_source(tmp_path: Path) -> None:
    one, two = written(tmp_path / "one", "sky"), written(tmp_path / "two", "ice", answer="")
    reader = CombinedReader({"one": one, "two": two})
    with pytest.raises(DataError, match=r"^two: .*ice\.train\.jsonl:1: empty answer"):
        reader.read("ice", RowChecks())
    assert reader.read("sky", RowChecks()).train


def test_a_task_of_two_sources_is_refused_and_the_others_are_read(tmp_path: Path) -> None:
    reader = CombinedReader(
        {"one": written(tmp_path / "one", "sky", "sea"), "two": written(tmp_path / "two", "sky", "ice")}
    )
    with pytest.raises(DataError, match="^sky: one and two have a task of this name; leave one of these sources out$"):
        reader.parts("sky")
    assert reader.tasks().count("sky") == 1
    assert reader.read("ice", RowChecks()).train


def test_a_source_without_files_stops_only_what_is_read_from_it(tmp_path: Path) -> None:
    there, absent = written(tmp_path / "one", "sky"), JsonlReader(tmp_path / "nowhere")
    reader = CombinedReader({"one": there, "two": absent})
    assert reader.tasks() == ["sky"]
    with pytest.raises(DataError, match=r"^no task 'ice'\. There are: sky\. two: .*nowhere"):
        reader.read("ice", RowChecks())
    with pytest.raises(DataError, match="^two: .*nowhere"):
        CombinedReader({"two": absent}).tasks()
