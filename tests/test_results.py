"""What RESULTS.md says is what the kept results say, and these tell nothing of the machine they were made on."""

import json
import re

import pytest

from see_lightning.cli.figures import main as draw
from see_lightning.config.search_path import CONF
from see_lightning.reporting.markdown import fill
from see_lightning.reporting.runs import find_runs

ROOT = CONF.parent
KEPT, _ = find_runs([ROOT / "results"])


def test_the_tables_are_those_of_the_kept_results():
    document = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    filled, left_out = fill(document, ROOT / "results")
    assert filled == document, "make results"
    assert not left_out


def test_the_pictures_are_those_of_the_kept_results(tmp_path):
    draw([str(ROOT / "results"), "--out", str(tmp_path)])
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.csv")}
    kept = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "results").glob("*.csv")}
    assert drawn == kept, "make results"
    assert {path.name for path in tmp_path.glob("*.svg")} == {path.name for path in (ROOT / "results").glob("*.svg")}


def test_there_are_results():
    assert KEPT


@pytest.mark.parametrize("path", KEPT, ids=lambda path: str(path.parent.relative_to(ROOT / "results")))
def test_a_kept_result_names_its_command_and_a_clean_commit_and_no_machine(path):
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["command"].startswith("python run.py")
    assert "paths." not in results["command"]
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in results["commits"])
    for beside in path.parent.iterdir():
        texts = re.findall(r"(?:^|[ =\"'])((?:/|~/|\.\./)[\w.][^\s\"']*)", beside.read_text(encoding="utf-8"))
        assert set(texts) <= {"~/.cache/see_lightning"}, "a path of a machine"
