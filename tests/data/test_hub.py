"""Data sets as the ``datasets`` library holds them, here in folders: columns become prompt and answer."""

import builtins
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from see_lightning.config import ConfigError
from see_lightning.data import DataError, Example, RowChecks, Split
from see_lightning.data.hub import HubReader

PROMPT = "Good or bad?\n\n{title}: {text}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def rows(first: int, last: int, **other: list[Any]) -> dict[str, list[Any]]:
    numbers = range(first, last + 1)
    plain = {
        "title": [f"t{n}" for n in numbers],
        "text": [f"x{{{n}}}" for n in numbers],
        "label": [n % 2 for n in numbers],
    }
    return {**plain, **other}


def in_json(folder: Path, train: dict[str, list[Any]], test: dict[str, list[Any]]) -> Path:
    for name, columns in (("train", train), ("test", test)):
        lines = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


def in_csv(folder: Path, train: dict[str, list[Any]], test: dict[str, list[Any]]) -> Path:
    for name, columns in (("train", train), ("test", test)):
        Dataset.from_dict(columns).to_csv(folder / f"{name}.csv")
    return folder


def in_parquet(folder: Path, train: dict[str, list[Any]], test: dict[str, list[Any]]) -> Path:
    for name, columns in (("train", train), ("test", test)):
        Dataset.from_dict(columns).to_parquet(folder / f"{name}.parquet")
    return folder


def on_disk(folder: Path, train: dict[str, list[Any]], test: dict[str, list[Any]]) -> Path:
    DatasetDict(train=Dataset.from_dict(train), test=Dataset.from_dict(test)).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def read(folder: Path, checks: RowChecks | None = None, **settings: Any) -> Split:
    source = {"path": str(folder), "prompt": PROMPT, "answer": "label", "labels": {0: "bad", "1": "good"}, **settings}
    return HubReader({"mood": source}).read("mood", checks or RowChecks())


@pytest.mark.parametrize("write", [in_json, in_csv, in_parquet, on_disk])
def test_columns_become_prompt_and_answer_in_whatever_form_they_are_kept(tmp_path: Path, write: Any) -> None:
    folder = write(tmp_path, rows(1, 3), rows(4, 5))
    split = read(folder)
    assert split.train == tuple(
        Example(f"mood-train-{n}", f"Good or bad?\n\nt{n}: x{{{n}}}", ("bad", "good")[n % 2], "mood") for n in (1, 2, 3)
    )
    assert [row.id for row in split.test] == ["mood-test-1", "mood-test-2"]
    assert split.train[2].source == f"{folder} train, row 3"


def test_the_names_that_a_data_set_has_for_its_labels_are_the_answers(tmp_path: Path) -> None:
    features = Features(
        {"title": Value("string"), "text": Value("string"), "label": ClassLabel(names=["sad", "merry"])}
    )
    halves = {
        half: Dataset.from_dict(rows(*ends), features=features) for half, ends in (("train", (1, 2)), ("dev", (3, 3)))
    }
    DatasetDict(halves).save_to_disk(str(tmp_path / "saved"))
    split = read(tmp_path / "saved", labels=None, test="dev")
    assert [row.target for row in split.train + split.test] == ["merry", "sad", "merry"]
    assert [row.target for row in read(tmp_path / "saved", test="dev").train] == ["good", "bad"]


def test_an_answer_without_labels_is_its_text(tmp_path: Path) -> None:
    folder = in_json(tmp_path, rows(1, 2, label=[7, 2.5]), rows(3, 3, label=[1.0]))
    assert [row.target for row in read(folder, labels=None).train] == ["7.0", "2.5"]
    assert [row.target for row in read(folder, labels=None, answer="title").train] == ["t1", "t2"]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"label": [0, -1]}, "train, row 2: the answer -1 has no word in labels, which has: 0, 1"),
        ({"text": ["x", None]}, "train, row 2: column 'text' is empty"),
        ({"label": [0, None]}, "train, row 2: column 'label' is empty"),
        ({"title": ["<<pos>>", "t"]}, "train, row 1: the indicator '<<pos>>' stands in the prompt"),
    ],
)
def test_a_row_that_is_no_example_is_told_with_split_and_row(tmp_path: Path, other: dict[str, Any], told: str) -> None:
    folder = in_parquet(tmp_path, rows(1, 2, **other), rows(3, 3))
    with pytest.raises(DataError) as error:
        read(folder)
    assert str(error.value).startswith(f"{folder} {told}. Mend the row")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"prompt": "{titel}"},
            r"mood: .* has no column 'titel'\. Did you mean 'title'\? There are: title, text, label",
        ),
        ({"answer": "mood"}, r"mood: .* has no column 'mood'\."),
        (
            {"test": "tset"},
            r"mood: the split 'tset' of .* cannot be read: Unknown split \"tset\".*See benchmark\.reader\.",
        ),
        (
            {"path": "/no/such/folder"},
            r"mood: the split 'train' of /no/such/folder cannot be read: Couldn't find any .* \(HF_HOME\)",
        ),
        (
            {"path": "owner/no-such-set"},
            r"mood: the split 'train' of owner/no-such-set cannot be read: .* needs the data in",
        ),
    ],
)
def test_what_cannot_be_read_is_told_with_what_to_set(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    folder = in_parquet(tmp_path, rows(1, 2), rows(3, 3))
    with pytest.raises(DataError, match=told):
        read(folder, **settings)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (
            {"path": "p", "prompt": "{q}"},
            r"benchmark\.reader\.datasets\.mood\.answer is not set; every data set needs path",
        ),
        (
            {"path": "p", "promt": "q"},
            r"benchmark\.reader\.datasets\.mood takes no 'promt'\. Did you mean 'prompt'\? It",
        ),
    ],
)
def test_a_source_with_an_argument_too_many_or_too_few_is_refused(node: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        HubReader({"mood": node})


def test_a_task_that_is_not_configured_is_refused() -> None:
    reader = HubReader({"mood": {"path": "p", "prompt": "{q}", "answer": "a"}})
    assert reader.tasks() == ["mood"]
    with pytest.raises(DataError, match=r"^no task 'moood'; did you mean 'mood'\? There are: mood$"):
        reader.read("moood", RowChecks())


def test_without_the_library_it_is_told_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *arguments: Any, **settings: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return plain(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"pip install 'see-lightning\[hub\]'"):
        read(tmp_path)
