"""A run directory that version 0.1 wrote: it is asked, reported, compared, studied and gone on with by this version.

The run has three tasks, thresholds, a variant of the queries, foreign queries, the losses of all steps, and the files of the commands
study, perplexity and transfer. Its command, a word a line, is in ``words.txt``; data and runs lie in its working directory.
"""

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import hydra
import pytest

from see_lightning import load_ensemble
from see_lightning.cli import compare, figures, perplexity, study, transfer
from see_lightning.config.overrides import translate
from see_lightning.config.search_path import CONF
from tests.golden.runs import GOLDEN, of_directory, processor
from tests.runs import toy

KEPT = GOLDEN / "run_of_0.1"
RUN = Path("runs/jsonl/see/c61fefc4/seed=3")
LAST = "03-ice"


@pytest.fixture(autouse=True)
def copied(tmp_path, monkeypatch):
    """A copy of the kept folder, which is the working directory."""
    shutil.copytree(KEPT, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def composed(*more):
    words = Path("words.txt").read_text(encoding="utf-8").splitlines()
    with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return hydra.compose("run", overrides=translate([*words, *more], several=False))


def test_the_same_command_finds_it_finished_and_reports_it(capsys):
    seen = toy.run(composed())
    assert (seen.directory, seen.fits, seen.methods) == (RUN, 0, [])
    assert capsys.readouterr().out.splitlines()[-1] == str(RUN / "results.json")


def test_it_is_loaded_and_answers_as_it_did():
    ensemble = load_ensemble(RUN, max_new_tokens=4)
    prompts = {
        f"{task}-test-{number}": json.loads(line)["prompt"]
        for task in toy.TASKS
        for number, line in enumerate(Path("data", f"{task}.test.jsonl").read_text().splitlines(), start=1)
    }
    records = toy.read_answers(RUN)[LAST]
    replies = ensemble.answer([prompts[record["id"]] for record in records])
    assert [reply.text for reply in replies] == [record["text"] for record in records]
    assert [reply.expert for reply in replies] == [record["expert"] for record in records]


def test_it_is_compared_drawn_and_studied(tmp_path):
    out = tmp_path / "out"
    compare.main(["runs", "--out", str(out)])
    assert "see" in (out / "comparison.csv").read_text(encoding="utf-8")
    figures.main(["runs", "--out", str(out)])
    assert [*out.glob("*.svg")]
    before = toy.read_results(RUN)
    study.main([str(RUN)])
    assert toy.read_results(RUN) == before


@pytest.mark.parametrize("command", [perplexity, transfer], ids=lambda module: module.__name__.rpartition(".")[2])
def test_what_was_measured_of_it_is_read_again(command):
    with patch.object(command, "measure", side_effect=AssertionError("measured again")):
        command.main([str(RUN)])


def test_it_goes_on_where_it_was_stopped():
    finished = of_directory(RUN)
    ledger = toy.read_file(RUN / "ledger.json")
    del ledger["stages"][LAST]["answers"]["ice"]  # the last answers of the last stage, as if it had been stopped there
    (RUN / "ledger.json").write_text(json.dumps(ledger))
    (RUN / "results.json").unlink()
    seen = toy.run(composed())
    assert (seen.directory, seen.fits) == (RUN, 0), "no expert is trained again"
    now = of_directory(RUN)
    apart = {name for name in finished if "/counts/" in name}  # what the second process asked again
    assert {name: now.get(name) for name in finished.keys() - apart} == {
        name: value for name, value in finished.items() if name not in apart
    }


def test_an_expert_that_was_not_trained_yet_is_trained_as_it_was():
    finished = of_directory(RUN)
    ledger = toy.read_file(RUN / "ledger.json")
    del ledger["stages"][LAST]
    (RUN / "ledger.json").write_text(json.dumps(ledger))
    shutil.rmtree(RUN / "tasks" / LAST)
    (RUN / "results.json").unlink()
    seen = toy.run(composed())
    assert (seen.directory, seen.fits) == (RUN, 1)
    now = of_directory(RUN)
    assert finished.keys() - now.keys() == {f"transfer_remembered/{LAST}"}, "made by another command"
    if processor() == (KEPT / "processor.txt").read_text().strip():
        weights = {name for name in finished if name.startswith(("weights/", "losses/", "answers/", "examples/"))}
        assert {name: now[name] for name in weights} == {name: finished[name] for name in weights}
