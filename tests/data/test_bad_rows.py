"""Rows that no parser takes, or that a message could not hold: every reader names file and place, in one short line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from see_lightning.data import RowChecks
from see_lightning.data.cl_benchmark import ClBenchmarkReader
from see_lightning.data.general import general_rows
from see_lightning.data.hub import HubReader
from see_lightning.data.jsonl import JsonlReader
from see_lightning.data.natural_instructions import NaturalInstructionsReader
from see_lightning.data.reader import made
from see_lightning.data.ssr import SsrReader
from see_lightning.data.trace import TraceReader
from see_lightning.errors import Refusal

DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5_000
HALVES = ("train", "test")


def lines(*rows: str) -> str:
    return "".join(f"{row}\n" for row in rows)


def jsonl(folder: Path, value: str) -> tuple[Callable[[], object], str]:
    good = '{"prompt": "p", "answer": "a"}'
    (folder / "qa.train.jsonl").write_text(lines(good, f'{{"prompt": "q", "answer": {value}}}'))
    (folder / "qa.test.jsonl").write_text(lines('{"prompt": "t", "answer": "a"}'))
    return lambda: JsonlReader(folder).read("qa", RowChecks()), f"{folder}/qa.train.jsonl:2: "


def ssr(folder: Path, value: str) -> tuple[Callable[[], object], str]:
    good = '{"id": "1", "full_prompt": "p", "output": "a"}'
    (folder / "qa.train.json").write_text(lines(good, f'{{"id": "2", "full_prompt": "q", "output": {value}}}'))
    (folder / "qa.eval.json").write_text(lines('{"id": "3", "full_prompt": "t", "output": "a"}'))
    return lambda: SsrReader(folder).read("qa", RowChecks()), f"{folder}/qa.train.json:2: "


def trace(folder: Path, value: str) -> tuple[Callable[[], object], str]:
    (folder / "FOMC").mkdir()
    for half in HALVES:
        (folder / "FOMC" / f"{half}.json").write_text(
            f'[{{"prompt": "{half}", "answer": "a"}},\n{{"prompt": {value}}}]'
        )
    return lambda: TraceReader(folder).read("FOMC", RowChecks()), f"{folder}/FOMC/train.json:2: "


def cl_benchmark(folder: Path, value: str) -> tuple[Callable[[], object], str]:
    task = folder / "SC" / "yelp"
    task.mkdir(parents=True)
    (task / "labels.json").write_text('["a"]')
    for half in HALVES:
        (task / f"{half}.json").write_text(f'[{{"sentence": "{half}", "label": "a"}},\n{{"sentence": {value}}}]')
    return lambda: ClBenchmarkReader(folder).read("yelp", RowChecks()), f"{task}/train.json:2: "


def instructions(folder: Path, value: str) -> tuple[Callable[[], object], str]:
    (folder / "task1.json").write_text(f'{{"Definition": "d", "Instances": [\n{{"input": "i", "output": {value}}}]}}')
    reader = NaturalInstructionsReader(folder, published_at="there")
    return lambda: reader.read("task1", RowChecks()), f"{folder}/task1.json:2: "


def hub_json(folder: Path, value: str) -> tuple[Callable[[], object], str]:
    for half in HALVES:
        (folder / f"{half}.jsonl").write_text(lines('{"q": "p", "a": "x"}', f'{{"q": "q", "a": {value}}}'))
    reader = HubReader({"qa": {"path": str(folder), "prompt": "{q}", "answer": "a"}})
    return lambda: reader.read("qa", RowChecks()), f"{folder} train, row 2: "


def general(folder: Path, value: str) -> tuple[Callable[[], object], str]:
    (folder / "general.jsonl").write_text(lines('{"prompt": "p"}', f'{{"prompt": {value}}}'))
    return lambda: general_rows(str(folder / "general.jsonl")), f"{folder}/general.jsonl:2: "


READERS = [jsonl, ssr, trace, cl_benchmark, instructions, hub_json, general]


CASES = [
    (DEEP, "values nested 1000.. deep"),
    ("{" + '"a":{' * 100_000 + "}" * 100_001, "values nested 10000. deep"),
    (LONG, "a number of 5000 digits; at most 4300 can be read"),
]


@pytest.mark.parametrize(
    ("write", "value", "told"),
    # To the Hub's reader numbers are texts.
    [(write, *case) for write in READERS for case in CASES if (write, case[0]) != (hub_json, LONG)],
)
def test_what_the_parser_cannot_hold_is_told_with_file_and_line(tmp_path, write, value, told):
    read, place = write(tmp_path, value)
    with pytest.raises(Refusal, match=told) as refused:
        read()
    assert str(refused.value).startswith(place)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


MANY = json.dumps({f"key{n}": n for n in range(100_000)})


@pytest.mark.parametrize("write", [jsonl, ssr, general])
def test_a_message_names_a_few_of_very_many_keys(tmp_path, write):
    read, place = write(tmp_path, "1")
    Path(place.removesuffix(":2: ")).write_text(lines(MANY))
    with pytest.raises(Refusal, match="and [0-9]+ more") as refused:
        read()
    assert len(str(refused.value)) < 1000


def test_a_message_on_a_column_names_a_few_of_very_many_keys_and_columns(tmp_path):
    for half in HALVES:
        (tmp_path / f"{half}.jsonl").write_text(lines(f'{{"q": "p", "a": {MANY}}}'))
    for answer in ("a", "a.no", "{b}"):
        reader = HubReader({"qa": {"path": str(tmp_path), "prompt": "{q}", "answer": answer}})
        with pytest.raises(Refusal) as refused:
            reader.read("qa", RowChecks())
        assert len(str(refused.value)) < 1500


def test_a_table_of_very_many_columns_is_read_in_time_and_told_shortly(tmp_path):
    for half in HALVES:
        with (tmp_path / f"{half}.csv").open("w") as file:
            csv.writer(file).writerows([[f"c{n}" for n in range(100_000)], ["x"] * 100_000])
    reader = HubReader({"qa": {"path": str(tmp_path), "prompt": "{q}", "answer": "c1"}})
    with pytest.raises(Refusal, match="no column 'q'.*and 99960 more") as refused:
        reader.read("qa", RowChecks())
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "error", [RecursionError("x"), ValueError("x"), OverflowError("x"), UnicodeDecodeError("a", b"", 0, 1, "x")]
)
def test_whatever_goes_wrong_in_a_row_is_a_bad_row(error):
    def example():
        raise error

    row = made("f:3", example)
    assert (row.source, row.reason) == ("f:3", row.reason)
    assert type(error).__name__ in row.reason


def test_memory_that_runs_out_is_no_bad_row():
    def example():
        raise MemoryError

    with pytest.raises(MemoryError):
        made("f:3", example)


def test_a_typed_file_that_breaks_off_is_told_with_the_row(tmp_path):
    from datasets import Dataset

    for half in HALVES:
        Dataset.from_dict({"q": ["a", "b"], "a": ["x", "y"]}).to_parquet(tmp_path / f"{half}.parquet")
    reader = HubReader({"qa": {"path": str(tmp_path), "prompt": "{q}", "answer": "a"}})

    def broken(self):
        yield {"q": "a", "a": "x"}
        raise OSError("Couldn't deserialize thrift:\nno more bytes")

    with (
        patch.object(Dataset, "__iter__", broken),
        pytest.raises(Refusal, match="train, row 2: Couldn't deseri.*[^\n]$"),
    ):
        reader.read("qa", RowChecks())
