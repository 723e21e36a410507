"""An evaluation that remembers: what is on disk is not computed again, and nothing damaged is taken for whole."""

import json
import shutil
from unittest.mock import patch

import pytest

from see_lightning import load_ensemble
from see_lightning.adapters.pool import ExpertPool
from see_lightning.cli import study
from see_lightning.engine import launch
from see_lightning.engine.ledger import Ledger, LedgerError
from see_lightning.evaluation.sari import sari_of
from tests.runs import toy

SETTINGS = [pytest.param((), id="ordinary"), pytest.param(toy.ACTIVATED, id="activated")]


def copied(base, runs, *settings):
    """A finished run in another place, and the configuration that goes on with it."""
    whole = toy.whole(base, "method=see", *settings).directory
    directory = runs / toy.place_of(whole)
    shutil.copytree(whole, directory)
    (directory / "results.json").unlink()
    return directory, toy.compose(toy.data_in(base), runs, "method=see", *settings)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_second_evaluation_computes_nothing(base, tmp_path, settings):
    directory, cfg = copied(base, tmp_path, *settings)
    path = directory / "ledger.json"
    ledger = toy.read_file(path)
    answers = directory / "tasks" / "03-ice" / "answers.jsonl"
    written = answers.read_bytes()
    ledger["stages"]["03-ice"]["answers"] = {}  # as if it had not been evaluated, but all had been said
    path.write_text(json.dumps(ledger))
    answers.unlink()

    def asked(call):
        pytest.fail("the model was asked")

    with patch.object(ExpertPool, "choose_reading", return_value=None), toy.count_model_calls(asked):
        seen = toy.run(cfg)
    assert answers.read_bytes() == written
    assert seen.fits == 0
    blocks = Ledger(directory).read().stage("03-ice")["answers"].values()
    assert [block["counts"] for block in blocks] == [{}] * 3


def test_a_score_that_reads_the_prompt_is_computed_from_the_answers_alone(base, tmp_path):
    cfg = toy.compose(toy.data_in(base), tmp_path, "benchmark.default.score=sari_trace", "order.tasks=[sky,sea]")
    directory = toy.run(cfg).directory
    records = [record for records in toy.read_answers(directory).values() for record in records]
    assert {record["id"]: record["prompt"] for record in records}.items() <= toy.prompts(base).items()
    assert all(r["score"] == sari_of(r["prompt"], r["text"], [r["target"]]) for r in records)
    assert any(r["score"] != sari_of("", r["text"], [r["target"]]) for r in records)
    assert "prompt" not in toy.read_answers(toy.whole(base, "method=see").directory)["03-ice"][0]


@pytest.mark.parametrize("stage", ["01-sky", "03-ice"])
def test_a_damaged_memory_is_refused_by_name(base, tmp_path, stage):
    directory, cfg = copied(base, tmp_path)
    ledger = toy.read_file(directory / "ledger.json")
    del ledger["stages"]["03-ice"]["answers"]["ice"]
    (directory / "ledger.json").write_text(json.dumps(ledger))
    path = directory / "tasks" / stage / "remembered.jsonl"
    path.write_text(path.read_text().replace('"verdict": "', '"verdict": "x', 1))
    with pytest.raises(LedgerError, match=f"^{path} is damaged: the answers to '"):
        launch.launch(cfg, "test")
    assert not (directory / "results.json").exists()


def test_a_shorter_run_with_a_damaged_memory_is_not_grown_from(base, tmp_path):
    data = toy.data_in(base)
    shorter = toy.run(toy.compose(data, tmp_path, "order.tasks=[sky]"))
    path = shorter.directory / "tasks" / "01-sky" / "remembered.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(LedgerError, match=f"^{path} is damaged"):
        toy.run(toy.compose(data, tmp_path, "order.tasks=[sky,ice]"))


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_grown_run_asks_old_experts_about_the_new_task_alone(base, tmp_path, settings):
    """Its memory holds what they said before: decisions are experts x prompts, as in a whole run."""
    data, choice = toy.data_in(base), ("method=see", *settings)
    toy.run(toy.compose(data, tmp_path, *choice, "order.tasks=[sky,sea]"))
    grown = toy.run(toy.compose(data, tmp_path, *choice))
    assert grown.fits == 1
    lines = toy.read_answers(grown.directory, "remembered")
    pairs = [(line["expert"], line["id"]) for stage in lines.values() for line in stage if line["log_odds"] is not None]
    assert set(pairs) == {(expert, id_) for expert in toy.TASKS for id_ in toy.prompts(base)}
    assert toy.read_results(grown.directory)["counts"]["decisions"] == 3 * 12
    assert toy.kept(grown.directory) == toy.kept(toy.whole(base, *choice).directory)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_study_may_have_every_answer_written_after_which_every_order_is_exact(base, tmp_path, settings, capsys):
    directory = shutil.copytree(toy.whole(base, "method=see", *settings).directory, tmp_path / "run")
    before = toy.kept(directory)

    def unknown(*arguments: str) -> dict[str, int]:
        study.main([str(directory), "--orders", "newest,oldest,random:3", *arguments])
        rows = json.loads((directory / "study.json").read_text())["rows"]
        return {row["order"]: row["unknown"] for row in rows if row["threshold"] is None}

    open_before = unknown()
    assert any(open_before.values()), "the run wrote every answer that there is"
    assert set(unknown("--answer").values()) == {0}
    assert not capsys.readouterr().err.startswith("0 further answers were generated")
    after = toy.kept(directory)
    remembered = "tasks/03-ice/remembered.jsonl"
    assert after[remembered].startswith(before[remembered])
    assert {name: content for name, content in after.items() if name != remembered} == {
        name: content for name, content in before.items() if name != remembered
    }
    assert set(unknown("--answer").values()) == {0}
    assert capsys.readouterr().err.startswith("0 further answers were generated")
    assert toy.kept(directory) == after


def test_answers_written_for_a_study_are_those_that_each_voice_gives_alone(base, tmp_path):
    directory = shutil.copytree(toy.whole(base, "method=see").directory, tmp_path / "run")
    study.main([str(directory), "--answer"])
    ensemble = load_ensemble(directory, max_new_tokens=4)
    lines = [line for stage in toy.read_answers(directory, "remembered").values() for line in stage]
    written = {(line["expert"], line["id"]): line["text"] for line in lines if line["text"] is not None}
    prompts = toy.prompts(base)
    accepted = {(line["expert"], line["id"]) for line in lines if line["verdict"] == "pos"}
    assert written.keys() == accepted | {("base", id_) for id_ in prompts}
    pool = ensemble.method.pool
    for (expert, id_), text in written.items():
        everyone = list(pool.names)
        pool.names[:] = [name for name in everyone if name == expert]  # nobody else is there to be asked
        (reply,) = ensemble.answer([prompts[id_]])
        pool.names[:] = everyone
        assert (reply.text, reply.expert) == (text, expert)
