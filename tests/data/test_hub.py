"""Data sets as the ``datasets`` library holds them, here in folders: columns become prompt and answer."""

import builtins
import gzip
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from see_lightning.data import Example, RowChecks, Split
from see_lightning.data.hub import HubReader
from see_lightning.errors import ConfigError, DataError

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
    assert [row.target for row in read(folder, labels=None).train] == ["7", "2.5"]
    assert [row.target for row in read(folder, labels=None, answer="title").train] == ["t1", "t2"]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"label": [0, -1]}, "train, row 2: the answer -1 has no word in labels, which has: 0, 1"),
        ({"text": ["x", None]}, "train, row 2: column 'text' is empty"),
        ({"label": [0, None]}, "train, row 2: column 'label' is empty"),
        ({"title": ["<<pos>>", "t"]}, "train, row 1: the prompt contains the indicator '<<pos>>'"),
    ],
)
def test_a_row_that_is_no_example_is_told_with_split_and_row(tmp_path: Path, other: dict[str, Any], told: str) -> None:
    folder = in_parquet(tmp_path, rows(1, 2, **other), rows(3, 3))
    with pytest.raises(DataError) as error:
        read(folder)
    assert str(error.value).startswith(f"{folder} {told}. Fix the row")


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


CELLS = ["None", "001", "1e3", "true", "NA", "nan", "1.50", "2024-01-01", "null", "-", " x "]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz"])
def test_cells_are_texts_as_they_stand(tmp_path: Path, encoding: str, ending: str) -> None:
    between = "\t" if ending == "tsv" else ","
    for half, cells in (("train", CELLS), ("test", ["é"])):
        lines = ["title,text,label".replace(",", between)]
        lines += [between.join((f"{half}{n}", '"a ""b"", c\n\nd"', cell)) for n, cell in enumerate(cells)]
        content = "\n".join([*lines, "", ""]).encode(encoding)
        (tmp_path / f"{half}.{ending}").write_bytes(gzip.compress(content) if ending == "csv.gz" else content)
    split = read(tmp_path, labels=None)
    assert [row.target for row in split.train] == CELLS
    assert split.train[0].prompt == 'Good or bad?\n\ntrain0: a "b", c\n\nd'
    assert split.test[0].target == "é"


def test_an_empty_cell_is_an_empty_text_and_as_an_answer_refused(tmp_path: Path) -> None:
    for half in ("train", "test"):
        (tmp_path / f"{half}.csv").write_text(f"title,text,label\n{half},,yes\n", encoding="utf-8")
    assert read(tmp_path, labels=None).train[0].prompt == "Good or bad?\n\ntrain: "
    with pytest.raises(DataError, match="row 1: empty answer"):
        read(tmp_path, labels=None, answer="text")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("title,text,label\na,b\n", "row 1: 2 cells under 3 columns"),
        ("title,text,label\na,b,c,d\n", "row 1: 4 cells under 3 columns"),
        ('title,text,label\na,"b,c\n', r"train\.csv:2: invalid CSV"),
        ("title,title,label\na,b,c\n", "two columns are named 'title'"),
    ],
)
def test_a_malformed_csv_file_is_told(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "train.csv").write_text(content)
    (tmp_path / "test.csv").write_text("title,text,label\nx,y,z\n")
    with pytest.raises(DataError, match=told):
        read(tmp_path, labels=None)


def test_numbers_and_dates_of_json_files_are_spelled_as_they_stand(tmp_path: Path) -> None:
    spelled = ["7", "1.50", "1e3", '"2024-01-01"', '"007"', "12345678901234567890"]
    lines = [f'{{"title": "t{n}", "text": "x", "label": {value}}}' for n, value in enumerate(spelled)]
    (tmp_path / "train.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    (tmp_path / "test.json").write_text('[{"title": "t", "text": "y", "label": 0.10}]')
    split = read(tmp_path, labels=None)
    assert [row.target for row in split.train] == [value.strip('"') for value in spelled]
    assert split.test[0].target == "0.10"


MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


@pytest.mark.parametrize("write", [in_json, in_parquet, on_disk])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            {"text": ["R0"], "start": [3]},
            r"an object \(dict with text, start\); name the text in it, such as label\.text\.0",
        ),
        (MESSAGES, r"a list of 2; name the text in it, such as label\.0\.(role|content)"),
        (["a", "b"], r"a list of 2; name the text in it, such as label\.0, label\.1"),
        (True, r"true or false \(bool\); give the words for it, labels: \{true"),
    ],
)
def test_a_column_without_text_is_refused_with_its_kind(tmp_path: Path, write: Any, value: Any, told: str) -> None:
    folder = write(tmp_path, rows(1, 2, label=[value, value]), rows(3, 3, label=[value]))
    for settings in ({}, {"prompt": "{label}", "answer": "title"}):
        with pytest.raises(DataError, match=f"train, row 1: column 'label' holds no text but {told}"):
            read(folder, RowChecks("skip"), labels=None, **settings)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"ab", "bytes"),
        (datetime(2024, 1, 1), "datetime"),
        (2.5, r"a number \(float\); give a format, such as {label:.1f}, or give the words for it"),
    ],
)
def test_values_that_only_typed_files_hold_are_refused_too(tmp_path: Path, value: Any, told: str) -> None:
    folder = in_parquet(tmp_path, rows(1, 2, label=[value, value]), rows(3, 3, label=[value]))
    with pytest.raises(DataError, match=f"column 'label' holds no text but {told}"):
        read(folder, labels=None)


def test_images_are_no_text_and_need_not_be_decoded_beside_text(tmp_path: Path) -> None:
    features = Features({"title": Value("string"), "text": Value("string"), "label": Image()})
    halves = {
        half: Dataset.from_dict(rows(n, n, label=[{"bytes": b"no image", "path": None}]), features=features)
        for n, half in enumerate(("train", "test"))
    }
    DatasetDict(halves).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="column 'label' of .* holds no text but Images"):
        read(tmp_path / "saved", labels=None)
    assert read(tmp_path / "saved", labels=None, answer="title").train[0].target == "t0"


@pytest.mark.parametrize("write", [in_json, in_parquet, on_disk])
def test_a_path_reaches_the_text_inside_a_column(tmp_path: Path, write: Any) -> None:
    value = {"text": ["R0", "R1"], "turns": MESSAGES}
    folder = write(tmp_path, rows(1, 2, label=[value, value]), rows(3, 3, label=[value]))
    split = read(folder, labels=None, prompt="{title} {label.turns.0.content}", answer="label.text.1")
    assert (split.train[0].prompt, split.train[0].target) == ("t1 Hi", "R1")
    assert read(folder, labels=None, answer="{label.text.0}, {title}").train[0].target == "R0, t1"
    with pytest.raises(DataError, match=r"row 1: 'label\.text' is a list of 2, in which there is no '2'"):
        read(folder, labels=None, answer="label.text.2")
    with pytest.raises(DataError, match=r"row 1: 'label' has no 'txt', only text, turns"):
        read(folder, labels=None, answer="label.txt.0")


def test_a_format_makes_text_of_a_number(tmp_path: Path) -> None:
    for write in (in_json, in_parquet):
        folder = write(tmp_path, rows(1, 2, label=[2.5, 1.0]), rows(3, 3, label=[1.25]))
        assert [row.target for row in read(folder, labels=None, answer="{label:.2f}").train] == ["2.50", "1.00"]
        for file in tmp_path.iterdir():
            file.unlink()


def test_labels_name_true_and_false_as_every_file_spells_them(tmp_path: Path) -> None:
    for write in (in_json, in_csv, in_parquet):
        folder = write(tmp_path, rows(1, 2, label=[True, False]), rows(3, 3, label=[True]))
        assert [row.target for row in read(folder, labels={True: "yes", False: "no"}).train] == ["yes", "no"]
        for file in tmp_path.iterdir():
            file.unlink()
