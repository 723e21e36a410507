"""A run writes its page of answers when it finishes, and ``see-lightning report`` writes it and the report of any run again."""

import json
import re
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from see_lightning.cli.report import main
from see_lightning.reporting.answers.files import INDEX, kept_prompts
from tests.golden.runs import GOLDEN
from tests.runs import toy

OLD = Path("runs/jsonl/see/c61fefc4/seed=3")  # in the kept folder, see tests/golden/test_run_of_0_1.py


def content(folder: Path, name: str) -> Any:
    """The content of a file of data."""
    return json.loads(re.fullmatch(rf'answers\("{name}",(.*)\)\n', (folder / f"{name}.js").read_text(), re.DOTALL)[1])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(base, tmp_path):
    """A copy of a finished run, as it was written."""
    return Path(shutil.copytree(toy.whole(base).directory, tmp_path / "seed=3"))


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A run that version 0.1 wrote, with its data in the working directory."""
    shutil.copytree(GOLDEN / "run_of_0.1", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return OLD


def test_a_run_that_finishes_has_the_page_with_every_answer_and_the_report_leads_there(base, finished):
    page, index = content(finished / "answers", "page-1"), content(finished / "answers", "index")
    asked, final = toy.prompts(base), toy.read_answers(finished)["03-ice"]
    assert 'href="answers/index.html"' in (finished / "report.html").read_text()
    assert page["id"] == [record["id"] for record in final]
    beginnings = [
        beginning for task, beginning in zip(index["tasks"], index["beginnings"], strict=True) for _ in range(task[1])
    ]
    assert [one + other for one, other in zip(beginnings, page["prompt"], strict=True)] == [
        asked[id_] for id_ in page["id"]
    ]
    letters = {"pos": "p", "neg": "n", "neither": "x"}
    for number, (stage, records) in enumerate(toy.read_answers(finished).items()):
        columns = content(finished / "answers", f"after-{number + 1}")
        for record in records:
            row = page["id"].index(record["id"])
            text, verdicts = re.fullmatch(r"(\d+)([pnx]*)", page["after"][row][number]).groups()
            assert page["texts"][row][int(text)] == record["text"], (stage, record["id"])
            assert verdicts == "".join(letters[word] for word in record["verdicts"])
            assert (columns["score"][row], index["experts"][columns["expert"][row]]) == (
                record["score"],
                record["expert"],
            )
    known = {
        (one["expert"], one["id"]): one["log_odds"]
        for one in chain(*toy.read_answers(finished, "remembered").values())
        if one["log_odds"] is not None
    }
    assert any(page["log_odds"])
    for id_, all_ in zip(page["id"], page["log_odds"], strict=True):
        for expert, value, _ in all_:
            assert known[index["experts"][expert], id_] == pytest.approx(value, abs=1e-4)


def test_written_again_without_the_data_both_pages_are_the_same(finished, tmp_path, capsys):
    before = files(finished)
    settings = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text("broken: [")  # no data are read where the page has all prompts
    main([str(finished)])
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"{finished}/report.html", f"{finished}/answers/{INDEX}"]
    assert captured.err == ""
    (finished / "config.yaml").write_text(settings)
    after = files(finished)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} <= {".lock-holder"}
    main([str(finished), "--out", str(tmp_path / "out")])
    assert files(tmp_path / "out") == {
        name: before[name] for name in before if name == "report.html" or name.startswith("answers/")
    }
    assert {*files(finished)} == {*before}


def test_a_run_of_an_earlier_version_gets_the_page_with_prompts_from_its_data(old, capsys):
    assert not (old / "answers").exists()
    main([str(old)])
    assert capsys.readouterr().err == ""
    assert len(kept_prompts(old / "answers")) == 3 * toy.TESTED
    assert content(old / "answers", "index")["thresholds"]
    assert 'href="answers/index.html"' in (old / "report.html").read_text()


@pytest.mark.parametrize("gone", ["the data", "a row"])
def test_prompts_that_are_nowhere_are_counted_with_the_reason(old, capsys, gone):
    path = Path("data/sky.test.jsonl")
    if gone == "the data":
        shutil.rmtree("data")
    else:
        path.write_text(path.read_text().replace("sky", "skies", 1))
    main([str(old)])
    told = capsys.readouterr().err
    missing, reason = (12, "data") if gone == "the data" else (1, "the data have other rows now.")
    assert told.startswith(f"note: the prompts of {missing} of 12 test queries are not shown: ")
    assert reason in told
    assert len(told.splitlines()) == 1
    assert sum(isinstance(prompt, list) for prompt in content(old / "answers", "page-1")["prompt"]) == missing
    assert "are not here" in (old / "answers" / INDEX).read_text()


def test_a_folder_of_other_files_is_not_replaced(finished, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "answers").mkdir(parents=True)
    (out / "answers" / "mine.txt").write_text("mine")
    line = toy.refused(capsys, main, str(finished), "--out", str(out))
    assert f"{out}/answers has no index.html" in line
    assert files(out) == {"answers/mine.txt": b"mine"}
    assert "is the folder of a run" in toy.refused(capsys, main, str(finished), "--out", str(finished))


def test_a_run_that_is_not_finished_is_refused(finished, capsys):
    (finished / "results.json").unlink()
    assert "is not finished" in toy.refused(capsys, main, str(finished))
