"""Whatever happens to a file that is final, it is found out, and named; never does the base model answer instead."""

import random
import shutil
from pathlib import Path

import pytest

from see_lightning import load_ensemble
from see_lightning.engine.ledger import Ledger
from see_lightning.errors import Refusal
from tests.runs import toy


def flip(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def zero(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    content[start : start + 512] = bytes(len(content[start : start + 512]))


def cut(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def swap(content: bytearray, draw: random.Random) -> None:
    middle = draw.randrange(1, len(content))
    content[:] = content[middle:] + content[:middle]


def read_everything(directory: Path) -> None:
    """What a user or the run itself would read of a finished run."""
    load_ensemble(directory)
    ledger = Ledger(directory).read()
    for stage in ledger.content["stages"]:
        ledger.answers(stage)
        ledger.remembered(stage)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A finished run, and its files that the ledger calls final."""
    directory = toy.whole(base, "method=see").directory
    read_everything(directory)
    ledger = Ledger(directory).read().content
    files = [
        f"tasks/{name}/{file}"
        for name, stage in ledger["stages"].items()
        for file in [*stage["trained"]["files"], "answers.jsonl", "remembered.jsonl"]
    ]
    written = {str(path.relative_to(directory)) for path in (directory / "tasks").rglob("*") if path.is_file()}
    assert set(files) == written, "a file of a stage is not guarded"
    return directory, files


@pytest.mark.parametrize("draw", range(100))
def test_any_damage_to_any_file_of_a_stage_is_found_and_the_file_named(whole, tmp_path, draw):
    directory, files = whole
    random_ = random.Random(draw)
    file = random_.choice(files)
    damaged = shutil.copytree(directory, tmp_path / "run")
    before = (damaged / file).read_bytes()
    content = bytearray(before)
    while content == before:
        random_.choice([flip, zero, cut, swap])(content, random_)
    (damaged / file).write_bytes(bytes(content))
    with pytest.raises(Refusal) as refused:
        read_everything(damaged)
    assert str(refused.value).startswith(f"{damaged / file} is damaged")


def test_a_damaged_ledger_is_named_too(whole, tmp_path):
    damaged = shutil.copytree(whole[0], tmp_path / "run")
    text = (damaged / "ledger.json").read_text()
    (damaged / "ledger.json").write_text(text[: len(text) // 2])
    with pytest.raises(Refusal, match=f"^{damaged / 'ledger.json'} is damaged"):
        read_everything(damaged)
