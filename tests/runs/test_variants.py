"""A run's own queries put otherwise: they move no number of the run, and their own are what the experts say."""

import json
import re
import shutil
import zlib
from functools import cache
from unittest.mock import patch

import pytest

from see_lightning.data.example import Example
from see_lightning.engine import launch, session, start
from see_lightning.engine.ledger import Ledger, LedgerError
from see_lightning.errors import ConfigError
from see_lightning.evaluation.evaluate import prompt_sha
from tests.nightly import all_but
from tests.runs import toy

SETTINGS = [("method=see",), ("method=see", *toy.ACTIVATED), ("method=seqft",), ("method=stl",)]
ASKED = ("input_only", "paraphrased")


def run(base, runs, *settings):
    return toy.run(toy.compose(toy.defined_in(base), runs, *toy.DEFINED, *settings))


@cache
def whole_run(base, *settings):
    """An undisturbed run that is asked both variants, made once."""
    return run(base, base / "variants" / f"{zlib.crc32(repr(settings).encode()):08x}", *settings, *toy.VARIANTS)


def without_variants(kept):
    results = {name: value for name, value in kept["results.json"].items() if name != "variants"}
    config = {name: value for name, value in results["config"].items() if name != "variants"}
    config["benchmark"] = {name: value for name, value in config["benchmark"].items() if name != "paraphrases"}
    files = {name: value for name, value in kept.items() if not name.rpartition("/")[2].startswith(ASKED)}
    return {**files, "results.json": {**results, "config": config}}


@pytest.mark.parametrize("settings", all_but(SETTINGS[1:2], SETTINGS), ids=lambda s: " ".join(s[:2]))
def test_a_finished_run_is_asked_without_training_and_ends_as_if_asked_at_once(base, tmp_path, settings):
    at_once = whole_run(base, *settings)
    later = run(base, tmp_path / "later", *settings)
    plain = toy.kept(later.directory)
    assert without_variants(toy.kept(at_once.directory)) == without_variants(plain)
    later = run(base, tmp_path / "later", *settings, *toy.VARIANTS)
    assert (later.fits, len(later.methods)) == (0, 1)
    assert toy.kept(later.directory) == toy.kept(at_once.directory)
    assert {name: value for name, value in plain.items() if name != "results.json"}.items() <= toy.kept(
        later.directory
    ).items()
    before = (later.directory / "results.json").read_bytes()
    for more in (toy.VARIANTS, ("variants=[input_only]",), ()):
        again = run(base, tmp_path / "later", *settings, *more)
        assert (again.fits, again.methods) == (0, [])
        assert (later.directory / "results.json").read_bytes() == before


@pytest.mark.nightly
def test_asked_beside_foreign_queries_neither_moves_the_other_and_both_stay(base, tmp_path):
    foreign = tmp_path / "foreign" / "far"
    foreign.mkdir(parents=True)
    for half, size in (("train", 1), ("test", 5)):
        rows = [{"id": f"{half}-{n}", "input": f"fog{n}?", "output": "q"} for n in range(size)]
        (foreign / f"{half}.json").write_text(
            json.dumps({"Definition": ["fog"], "Instances": rows, "Positive Examples": []})
        )
    ood = ("ood=folder", f"ood.dir={foreign.parent}")
    both = toy.read_results(run(base, tmp_path / "both", *ood, *toy.VARIANTS).directory)
    one = toy.read_results(run(base, tmp_path / "one", *ood).directory)
    assert both["ood"] == one["ood"]
    assert "variants" not in one
    for place, first, then in ((tmp_path / "a", ood, toy.VARIANTS), (tmp_path / "b", toy.VARIANTS, ood)):
        run(base, place, *first)
        second = run(base, place, *then)
        results = toy.read_results(second.directory)
        assert (results["ood"], results["variants"]) == (both["ood"], both["variants"])
        assert "Put otherwise" in (second.directory / "report.html").read_text()
        assert run(base, place, *then, *first).methods == []


@pytest.mark.nightly
def test_interrupted_after_whatever_became_final_it_ends_as_if_it_had_not_been(base, tmp_path):
    whole = whole_run(base, *SETTINGS[0])
    run(base, tmp_path / "broken")
    commit, interruptions = Ledger.commit, 0

    def commit_and_stop(ledger):
        commit(ledger)
        raise InterruptedError

    noted = session.start_run

    def start_run(*given, **named):
        with patch.object(Ledger, "commit", commit):
            noted(*given, **named)

    with patch.object(Ledger, "commit", commit_and_stop), patch.object(session, "start_run", start_run):
        while True:
            try:
                resumed = run(base, tmp_path / "broken", *toy.VARIANTS)
                break
            except InterruptedError:
                interruptions += 1
    assert interruptions == len(ASKED) * len(toy.TASKS)
    assert toy.kept(resumed.directory) == toy.kept(whole.directory)


@pytest.mark.nightly
def test_killed_at_every_step_of_every_commit_it_ends_as_if_it_had_not_been(base, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "commit", lambda: "one and the same")
    whole = run(base, tmp_path / "whole", "variants=[input_only]")
    run(base, tmp_path / "killed")
    cfg = toy.compose(toy.defined_in(base), tmp_path / "killed", *toy.DEFINED, "variants=[input_only]")

    def attempt() -> None:
        toy.kill_where_new(tmp_path / "diary")
        launch.launch(cfg, "test")

    ends = [toy.forked(attempt, tmp_path / "log")]
    while ends[-1] == -9 and len(ends) < 100:
        ends.append(toy.forked(attempt, tmp_path / "log"))
    assert ends[-1] == 0, (tmp_path / "log").read_text()[-2000:]
    killed = toy.kinds_of((tmp_path / "diary").read_text().splitlines())
    assert {
        (step, f"{kind}.jsonl") for step in ("half", "written") for kind in ("input_only", "input_only_remembered")
    } < killed
    (directory,) = [path.parent for path in (tmp_path / "killed").rglob("results.json")]
    assert toy.kept(directory) == toy.kept(whole.directory)


@pytest.mark.nightly
@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[3]], ids=lambda s: " ".join(s[:2]))
def test_two_ranks_find_what_one_finds(base, tmp_path, settings):
    calm = (*settings, "adapter.dropout=0", "model.dtype=fp32", *toy.DEFINED[:1], "optim.lr=4e-3", *toy.VARIANTS)
    data = toy.defined_in(base)
    alone = toy.read_results(toy.run(toy.compose(data, tmp_path / "one", *calm)).directory)["variants"]
    cfg = toy.compose(data, tmp_path / "two", *calm, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    log = tmp_path / "log"
    assert toy.ended(toy.start_ranks(2, lambda: launch.launch(cfg, "test"), log)) == [0, 0], log.read_text()[-3000:]
    (path,) = (tmp_path / "two").rglob("results.json")
    assert toy.read_results(path.parent)["variants"] == alone


def test_several_paraphrases_are_variants_of_their_own(base, tmp_path):
    texts = toy.PARAPHRASES.replace("'say sky'", "['say sky','blue']").replace("'a sea'", "['a sea','wet']")
    three = texts.replace("'now: ice'", "['now: ice','cold']")
    both = run(base, tmp_path / "both", "variants=[paraphrased_2,paraphrased,input_only]", three)
    found, one = toy.read_results(both.directory)["variants"], toy.read_results(whole_run(base, *SETTINGS[0]).directory)
    assert found["asked"] == ["input_only", "paraphrased", "paraphrased_2"]
    assert found["paraphrases_2"] == {"sky": "blue", "sea": "wet", "ice": "cold"}
    for name in ("input_only", "paraphrased", "paraphrases"):
        assert found[name] == one["variants"][name], "a further paraphrase moves no other variant"
    answers = toy.read_answers(both.directory, "paraphrased_2")["03-ice"]
    asked = [prompt_sha(Example("", f"blue\n\nsky{n}?", "", "sky")) for n in range(104, 108)]
    assert sorted(row["prompt_sha"] for row in answers if row["task"] == "sky") == sorted(asked)
    assert run(base, tmp_path / "both", "variants=[paraphrased]", toy.PARAPHRASES).methods == [], "the same text"
    assert run(base, tmp_path / "both", "variants=[paraphrased_2]", three).methods == []
    other = run(base, tmp_path / "both", "variants=[paraphrased_2]", three.replace("blue", "azure"))
    assert (other.fits, len(other.methods)) == (0, 1)
    with pytest.raises(ConfigError, match=r"benchmark.paraphrases.ice holds 1 of the 2 texts"):
        run(base, tmp_path / "refused", "variants=[paraphrased_2]", texts)


@pytest.mark.nightly
def test_other_paraphrases_are_asked_anew_and_only_they_count(base, tmp_path):
    other = ("variants=[paraphrased]", toy.PARAPHRASES.replace("say sky", "blue"))
    first = run(base, tmp_path / "changed", *toy.VARIANTS)
    before = toy.read_results(first.directory)["variants"]["input_only"]
    second = run(base, tmp_path / "changed", *other)
    at_once = run(base, tmp_path / "once", *other)
    assert (second.fits, second.directory) == (0, first.directory)
    one, whole = (toy.read_results(seen.directory)["variants"] for seen in (second, at_once))
    assert one.pop("input_only") == before, "asked before, and not anew"
    assert one == {**whole, "asked": ["input_only", "paraphrased"]}
    assert one["paraphrases"]["sky"] == "blue"
    lines = toy.read_answers(second.directory, "paraphrased")["03-ice"]
    assert [line["task"] for line in lines].count("sky") == 2 * toy.TESTED
    assert [line["task"] for line in lines].count("ice") == toy.TESTED, "what is asked as before is not asked again"


def test_a_run_that_grows_is_asked_again_after_its_new_last_task(base, tmp_path):
    short = run(base, tmp_path / "runs", "order.tasks=[sky,sea]", *toy.VARIANTS)
    assert list(toy.read_answers(short.directory, "input_only")) == ["02-sea"]
    shutil.copytree(tmp_path / "runs", tmp_path / "spoilt")
    grown, whole = run(base, tmp_path / "runs", *toy.VARIANTS), whole_run(base, *SETTINGS[0])
    assert grown.fits == 1
    results = [toy.read_results(seen.directory) for seen in (grown, whole)]
    assert results[0]["variants"] == results[1]["variants"]
    assert results[0]["matrix"] == results[1]["matrix"]
    (said,) = (tmp_path / "spoilt").rglob("input_only.jsonl")
    said.write_text(said.read_text().replace("sky", "fog"))
    with pytest.raises(LedgerError, match=f"{re.escape(str(said))} is damaged"):
        run(base, tmp_path / "spoilt", *toy.VARIANTS)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["variants=[input_olny]"],
            "variants must be one of input_only, paraphrased, paraphrased_2, .*; got 'input_olny'.*input_only",
        ),
        (["variants=[paraphrased]"], r"variants=\[paraphrased\]: benchmark.paraphrases.sky is not set"),
        (
            ["variants=[paraphrased_2]", toy.PARAPHRASES],
            r"variants=\[paraphrased_2\]: benchmark.paraphrases.sky holds 1 of",
        ),
        (["variants=[paraphrased]", "+benchmark.paraphrases={sky:a,sea:b}"], r"benchmark.paraphrases.ice is not set"),
    ],
)
def test_variants_that_cannot_be_asked_are_refused_before_anything_is_trained(base, tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        run(base, tmp_path, *more)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_prompts_without_a_definition_are_refused_before_anything_is_trained(base, tmp_path):
    with pytest.raises(ConfigError, match=r"variants=\[input_only\]: the 4 training prompts of sky have no definition"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, "variants=[input_only]"))
    assert not list(tmp_path.rglob("*.safetensors"))
