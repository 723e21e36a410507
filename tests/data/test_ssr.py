"""SSR's files: which serve as training rows, and the published split as it is."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from see_lightning.data import RowChecks, Split
from see_lightning.data.ssr import SsrReader
from see_lightning.errors import DataError

HOLES = ("qg", "sum")
WHOLE = ("dsg", "expl", "para", "pe", "pos", "qa", "sa", "trans")


def write(folder: Path, name: str, first: int, last: int) -> None:
    rows = (
        {"id": f"t-{n}", "input": f"i{n}", "output": f"o{n}", "full_prompt": f"Do.\n\ni{n}", "task_name": "task000_x"}
        for n in range(first, last + 1)
    )
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def test_prompt_is_the_full_prompt_and_target_the_output_in_file_order(tmp_path: Path) -> None:
    write(tmp_path, "qa.train.json", 1, 5)
    write(tmp_path, "qa.train.smp01.json", 1, 2)
    write(tmp_path, "qa.train.smp001.json", 5, 5)
    write(tmp_path, "qa.eval.json", 6, 7)
    split = SsrReader(tmp_path).read("qa", RowChecks())
    assert [(row.id, row.prompt, row.target) for row in split.train] == [
        (f"t-{n}", f"Do.\n\ni{n}", f"o{n}") for n in range(1, 6)
    ]
    assert [row.id for row in split.test] == ["t-6", "t-7"]
    assert split.notices == ()


def test_the_two_samples_stand_in_for_a_missing_training_file_and_say_so(tmp_path: Path) -> None:
    write(tmp_path, "qg.train.smp01.json", 1, 4)
    write(tmp_path, "qg.train.smp001.json", 8, 9)
    write(tmp_path, "qg.eval.json", 6, 7)
    split = SsrReader(tmp_path).read("qg", RowChecks())
    assert [row.id for row in split.train] == ["t-1", "t-2", "t-3", "t-4", "t-8", "t-9"]
    assert split.notices == (
        f"qg: {tmp_path}/qg.train.json is missing; the 6 rows of qg.train.smp01.json and qg.train.smp001.json are the "
        "training rows. The whole file is at https://github.com/DeepLearnXMU/SSR, folder data/ni-cus0.12/split",
    )


def test_one_sample_alone_does_not_stand_in(tmp_path: Path) -> None:
    write(tmp_path, "qg.train.smp01.json", 1, 4)
    write(tmp_path, "qg.eval.json", 6, 7)
    with pytest.raises(DataError, match=r"^qg: no file .*/qg\.train\.json$"):
        SsrReader(tmp_path).read("qg", RowChecks())


def test_a_row_without_an_id_is_a_bad_row(tmp_path: Path) -> None:
    write(tmp_path, "qa.eval.json", 6, 7)
    (tmp_path / "qa.train.json").write_text('{"full_prompt": "p", "answer": "a"}')
    with pytest.raises(DataError, match=r"qa\.train\.json:1: missing key 'id', 'output'; found: full_prompt, answer\."):
        SsrReader(tmp_path).read("qa", RowChecks())


def test_a_missing_folder_is_answered_with_where_to_look_and_what_to_set(tmp_path: Path) -> None:
    folder = tmp_path / "ssr_ni_split"
    with pytest.raises(DataError) as error:
        SsrReader(folder).tasks()
    assert str(error.value) == (
        f"SSR's data were looked for in {folder}, where there is no <task>.eval.json. Put the files of "
        "https://github.com/DeepLearnXMU/SSR, folder data/ni-cus0.12/split into DIR/ssr_ni_split and set the "
        "environment variable SEE_DATA=DIR, or paths.data=DIR"
    )


def published(task: str) -> Split:
    return SsrReader(Path(os.environ["SEE_DATA"]) / "ssr_ni_split").read(task, RowChecks())


@pytest.mark.data
def test_the_published_split_holds_the_ten_tasks() -> None:
    assert SsrReader(Path(os.environ["SEE_DATA"]) / "ssr_ni_split").tasks() == sorted((*HOLES, *WHOLE))


@pytest.mark.data
@pytest.mark.parametrize("task", WHOLE)
def test_a_published_task_has_2000_training_and_500_test_rows(task: str) -> None:
    split = published(task)
    assert (len(split.train), len(split.test), split.notices) == (2000, 500, ())
    assert all(text == text.strip() for row in split.train + split.test for text in (row.prompt, row.target))


@pytest.mark.data
@pytest.mark.parametrize("task", HOLES)
def test_a_task_whose_training_file_is_missing_has_220_training_rows(task: str) -> None:
    folder = Path(os.environ["SEE_DATA"]) / "ssr_ni_split"
    if (folder / f"{task}.train.json").is_file():
        pytest.skip(f"{task}.train.json is there")
    split = published(task)
    assert (len(split.train), len(split.test)) == (220, 500)
    assert split.notices[0].startswith(f"{task}: {folder}/{task}.train.json is missing; the 220 rows of ")


@pytest.mark.data
@pytest.mark.parametrize(("task", "labels"), [("sa", ("positive", "negative")), ("pos", ("True", "False"))])
def test_the_label_tasks_are_balanced_and_sorted_by_label(task: str, labels: tuple[str, str]) -> None:
    split = published(task)
    assert [row.target for row in split.train] == [labels[0]] * 1000 + [labels[1]] * 1000
    assert Counter(row.target for row in split.test) == dict.fromkeys(labels, 250)
