"""Text files in the encodings that editors write, read everywhere alike."""

import json
import shutil
from pathlib import Path

import hydra
import pytest

from see_lightning.config.search_path import CONF, register
from see_lightning.data import RowChecks
from see_lightning.data.cl_benchmark import ClBenchmarkReader
from see_lightning.data.general import general_rows
from see_lightning.data.jsonl import JsonlReader
from see_lightning.data.natural_instructions import NaturalInstructionsReader
from see_lightning.data.reader import Reader
from see_lightning.data.ssr import SsrReader
from see_lightning.data.tables import csv_rows
from see_lightning.data.trace import TraceReader
from see_lightning.errors import DataError
from see_lightning.files.text import read_text

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


def lines(*rows: dict[str, str]) -> str:
    return "\n".join(map(json.dumps, rows))


def files(task: str) -> dict[str, tuple[Reader, dict[str, str]]]:
    """Of each reader, itself and its files by name."""
    halves = [[{"prompt": f"{half} é?", "answer": "é"}] for half in ("train", "test")]
    ssr = [{"id": "1", "full_prompt": "a", "output": "é"}], [{"id": "2", "full_prompt": "b", "output": "é"}]
    cl = [json.dumps([{"sentence": half, "label": "é"}]) for half in ("train", "test")]
    ni = [
        json.dumps({"Definition": "d", "Instances": [{"id": half, "input": half, "output": ["é"]}]})
        for half in ("train", "test")
    ]
    return {
        "jsonl": (JsonlReader, {f"{task}.train.jsonl": lines(*halves[0]), f"{task}.test.jsonl": lines(*halves[1])}),
        "ssr": (SsrReader, {f"{task}.train.json": lines(*ssr[0]), f"{task}.eval.json": lines(*ssr[1])}),
        "trace": (
            TraceReader,
            {f"{task}/train.json": json.dumps(halves[0]), f"{task}/test.json": json.dumps(halves[1])},
        ),
        "cl_benchmark": (
            ClBenchmarkReader,
            {f"TC/{task}/train.json": cl[0], f"TC/{task}/test.json": cl[1], f"TC/{task}/labels.json": '["é"]'},
        ),
        "natural_instructions": (
            lambda folder: NaturalInstructionsReader(folder, published_at="there"),
            {f"{task}/train.json": ni[0], f"{task}/test.json": ni[1]},
        ),
    }


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", files("a"))
def test_every_reader_reads_every_mark_of_the_byte_order(tmp_path: Path, name: str, encoding: str) -> None:
    reader, contents = files("a")[name]
    for place, content in contents.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(content.encode(encoding))
    split = reader(tmp_path).read("a", RowChecks())
    assert [row.target for row in (*split.train, *split.test)] == ["é", "é"]
    assert not any("\ufeff" in row.prompt for row in split.train)


def test_files_put_together_have_several_marks(tmp_path: Path) -> None:
    for half in ("train", "test"):
        rows = [lines({"prompt": f"{half} {n}", "answer": "x"}) for n in range(3)]
        (tmp_path / f"a.{half}.jsonl").write_text("\n".join("\ufeff" + row for row in rows), encoding="utf-8")
    assert len(JsonlReader(tmp_path).read("a", RowChecks()).train) == 3


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_instructions_of_ones_own_are_read_likewise(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "own.jsonl").write_text(lines({"prompt": "Say é", "answer": "-"}), encoding=encoding)
    assert [row.prompt for row in general_rows(str(tmp_path / "own.jsonl"))] == ["Say é"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_configuration_files_are_read_likewise_with_their_package(tmp_path: Path, encoding: str) -> None:
    register()
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    mine = "# @package _global_\n# é\nratio: 0.3\noptim: {epochs: 7}\n"
    (conf / "experiment" / "mine.yaml").write_text(mine, encoding=encoding)
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        cfg = hydra.compose("run", overrides=["experiment=mine", "order=pocket_5", "model=tiny"])
    assert (cfg.ratio, cfg.optim.epochs) == (0.3, 7)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff\xfea\x00b", "not UTF-16, as its first bytes say"),
        ("{}".encode("utf-16-le"), "neither UTF-8 nor marked as UTF-16; save it as UTF-8"),
        (b"caf\xe9", "not UTF-8: byte 0xe9 at column 4"),
    ],
)
def test_another_encoding_is_told_in_one_line(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DataError, match=told) as refused:
        read_text(tmp_path / "f")
    assert str(tmp_path / "f") in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["q;a\n1;2\n", '"q";"a"\n"1";"2"\n', "q\ta\n1\t2\n"])
def test_a_csv_with_other_separators_is_told_of_them(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(DataError, match="columns seem to be separated by"):
        list(csv_rows(tmp_path / "train.csv"))
