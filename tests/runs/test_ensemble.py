"""A finished run as a library: where it computes, what it is asked, who answered; and how it is named."""

import copy
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from see_lightning.cli.ask import main as ask
from see_lightning.cli.publish import keep
from see_lightning.cli.runs import list_runs
from see_lightning.cli.runs import main as list_main
from see_lightning.cli.study import main as study
from see_lightning.engine.asking import Verdicts
from see_lightning.engine.ensemble import Ensemble, load_ensemble
from see_lightning.engine.latest import find_run
from see_lightning.errors import ConfigError, Refusal
from see_lightning.methods.seqft import SeqFt
from see_lightning.tasks.prompts import PromptTemplate
from tests.runs import toy

QUERIES = ["sky?", "sea?"]


@pytest.fixture(scope="module")
def loaded(base) -> Ensemble:
    return load_ensemble(toy.whole(base).directory, max_new_tokens=4)


# ---------------------------------------------------------------------------------------------- where it computes


def test_experts_are_restored_where_the_model_computes(base, monkeypatch):
    """A method's state is loaded onto the device of the base model, and nothing moves it later."""
    directory, order = toy.whole(base, "method=seqft").directory, []
    to, restore = SeqFt.to, SeqFt.restore
    monkeypatch.setattr(SeqFt, "to", lambda method, place: order.append(str(place)) or to(method, place))
    monkeypatch.setattr(
        SeqFt, "restore", lambda method, task, folder: order.append(task) or restore(method, task, folder)
    )
    load_ensemble(directory, device="cpu")
    assert order == ["cpu", *toy.TASKS]


@pytest.mark.parametrize(
    ("given", "kind"), [("bf16", torch.bfloat16), ("fp32", torch.float32), (torch.bfloat16, torch.bfloat16)]
)
def test_the_base_model_has_the_precision_that_is_asked_for(base, given, kind):
    ensemble = load_ensemble(toy.whole(base).directory, dtype=given, device="cpu", max_new_tokens=4)
    model = ensemble.method.pool.model
    assert {parameter.dtype for name, parameter in model.named_parameters() if "lora" not in name} == {kind}
    assert len(ensemble.answer(QUERIES)) == 2


def test_a_device_or_precision_that_there_is_not_is_refused_before_a_model_is_loaded(base, monkeypatch):
    monkeypatch.setattr("see_lightning.engine.ensemble.load_method", lambda *_: pytest.fail("a model was loaded"))
    for device in ("gpu", "cuda:99", "meta:x"):
        with pytest.raises(ConfigError, match=f"--device {device} cannot be used: "):
            load_ensemble(toy.whole(base).directory, device=device)
    for dtype in ("fp16", torch.float16):
        with pytest.raises(ConfigError, match="dtype must be one of bf16, fp32; got '.*16'"):
            load_ensemble(toy.whole(base).directory, dtype=dtype)


# ---------------------------------------------------------------------------------------------- what it is asked


def test_a_query_in_messages_is_the_query(loaded):
    plain = loaded.answer(QUERIES)
    assert loaded.answer([[{"role": "user", "content": query}] for query in QUERIES]) == plain
    assert loaded.answer([QUERIES[0], [{"role": "user", "content": QUERIES[1]}]]) == plain
    assert loaded.answer([]) == []


def test_a_system_prompt_reaches_the_model_where_the_template_has_a_place_for_it(loaded, monkeypatch):
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "sky?"}]
    with pytest.raises(ConfigError, match="a system prompt needs model.prompt=chat"):
        loaded.answer([messages])
    seen, answering, plain = [], loaded.method.answering, loaded.method.template
    chat = PromptTemplate(plain.tokenizer, style="chat", max_length=plain.max_length)
    monkeypatch.setattr(loaded.method, "template", chat)
    monkeypatch.setattr(
        loaded.method, "answering", lambda batch, decoder: seen.extend(batch.prompts) or answering(batch, decoder)
    )
    loaded.answer([messages, "sky?"])
    told = PromptTemplate(plain.tokenizer, style="chat", system_prompt="Be brief", max_length=plain.max_length)
    assert seen == [told.prompt_ids("sky?"), chat.prompt_ids("sky?")]
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "'messages' must be a list of messages"),
        ([{"role": "system", "content": "x"}], "messages end with one of the user's"),
        ([{"role": r, "content": "x"} for r in ("user", "assistant")], "messages end with one of the user's"),
        (
            [{"role": r, "content": "x"} for r in ("user", "system", "user")],
            "message 2 has the role system; only the first",
        ),
        ([{"role": r, "content": "x"} for r in ("user", "assistant", "user")], "several turns needs model.prompt=chat"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            "the content of message 1 must be a string, found a list",
        ),
        ([{"content": "x"}], "message 1 has no 'role'"),
        (["x"], "message 1 must be an object of role and content"),
    ],
)
def test_messages_that_no_expert_learned_to_answer_are_refused(loaded, messages, told):
    with pytest.raises(ConfigError, match=told):
        loaded.answer(["sky?", messages])


def test_a_single_chat_is_told_from_a_list_of_queries(loaded):
    with pytest.raises(TypeError, match=r"write answer\(\[messages\]\)"):
        loaded.answer([{"role": "user", "content": "sky?"}])


def test_verdicts_have_the_names_of_the_experts_that_were_asked(loaded, base):
    for reply in loaded.answer([*QUERIES, "nothing of the kind"]):
        asked = [name for name, _ in reply.verdicts.items()]
        assert asked == list(toy.TASKS)[::-1][: len(asked)]
        assert [reply.verdicts[name] for name in asked] == list(reply.verdicts)
        assert reply.verdicts == tuple(reply.verdicts)
        if reply.expert != "base":
            assert reply.verdicts[reply.expert] == reply.verdicts[-1] == "pos"
        else:
            assert reply.verdicts[-1] == "neither" or len(asked) == len(toy.TASKS)
    said = Verdicts(["neg", "pos"], ["ice", "sea"])
    assert (said[0], said["sea"], said[:1], "pos" in said) == ("neg", "pos", ("neg",), True)
    for copied in (copy.deepcopy(said), pickle.loads(pickle.dumps(said))):
        assert dict(copied.items()) == {"ice": "neg", "sea": "pos"}
    assert (json.dumps(said), repr(said)) == ('["neg", "pos"]', "Verdicts(ice='neg', sea='pos')")
    with pytest.raises((KeyError, TypeError)):
        said["sky"]


# ---------------------------------------------------------------------------------------------- how it is named


@pytest.fixture
def several(base, tmp_path) -> dict[str, Path]:
    """Three finished runs, of which the second is the newest, and one that is not finished."""
    root, found = tmp_path / "runs", {}
    for place, (name, key, order) in enumerate((("a", "0" * 8, "x"), ("b", "1" * 8, "x"), ("c", "2" * 8, "y"))):
        found[name] = root / order / "see" / key / "seed=3"
        shutil.copytree(toy.whole(base).directory, found[name])
        when = (100, 300, 200)[place]
        os.utime(found[name] / "results.json", (when, when))
    found["open"] = root / "x" / "see" / ("3" * 8) / "seed=3"
    shutil.copytree(toy.whole(base).directory, found["open"])
    (found["open"] / "results.json").unlink()
    return found | {"root": root}


def test_the_latest_run_is_the_one_that_was_finished_last(several):
    root = several["root"]
    for folder, name in ((root, "b"), (root / "x", "b"), (root / "x/see", "b"), (root / "y", "c")):
        assert find_run(folder / "latest") == several[name]
        assert find_run(str(folder / "latest")) == several[name]
    assert find_run(several["open"].parent / "latest") == several["open"], "where none is finished"
    with pytest.raises(Refusal, match="holds no run, so there is no latest one"):
        find_run(several["a"] / "tasks" / "latest")


def test_a_folder_of_one_run_is_that_run_and_one_of_several_is_refused_with_what_to_give(several, tmp_path):
    root = several["root"]
    assert find_run(several["a"]) == several["a"]
    assert find_run(several["a"].parent) == find_run(several["a"].parent.parent / ("0" * 8)) == several["a"]
    assert find_run(root / "y") == several["c"]
    with pytest.raises(Refusal, match=r"x holds 3 runs; give one of them, or .*x/latest for the one finished last"):
        find_run(root / "x")
    for nothing in (tmp_path / "nowhere", tmp_path / "nowhere/latest", tmp_path):
        if nothing != tmp_path:
            assert find_run(nothing) == nothing, "what needs a run says that there is none"
    (several["root"] / "latest").symlink_to(several["a"])
    assert find_run(root / "latest") == root / "latest", "a link of one's own is what it says"


def test_every_command_takes_the_latest_run(several, base, tmp_path, capsys):
    root = several["root"]
    assert load_ensemble(root / "latest").method.pool.names == list(toy.TASKS)
    ask([str(root / "y/latest"), "sky?", "--max-new-tokens", "3", "--dtype", "fp32", "--device", "cpu"])
    assert "(ice " in capsys.readouterr().out
    study([str(root / "y/see/latest"), "--orders", "newest"])
    assert str(several["c"] / "report.html") in capsys.readouterr().out
    kept = keep(root / "latest", tmp_path / "kept")
    assert (kept / "results.json").exists()


def test_runs_are_listed_the_newest_first_with_what_is_known_of_them(several, capsys):
    root = several["root"]
    (several["c"] / "results.json").write_text("{")
    found = list_runs([root])
    assert [run.path for run in found][-2:] == [several["b"], several["a"]]
    listed = {run.path: run for run in found}
    results = toy.read_results(several["a"])
    whole = listed[several["a"]]
    assert (whole.order, whole.method, whole.seed, whole.state) == ("jsonl", "see", "3", "finished")
    assert (results["metrics"]["AR"], results["metrics"]["BWT"]) == (whole.AR, whole.BWT)
    assert (listed[several["c"]].state, listed[several["c"]].order) == ("damaged", "y")
    assert listed[several["open"]].state == "unfinished, 3 stages trained"
    assert listed[several["open"]].AR is None
    list_main([str(root)])
    printed = capsys.readouterr().out
    assert all(str(run.path) in printed for run in found)
    with pytest.raises(SystemExit):
        list_main([str(several["a"] / "tasks")])
    assert "there is no run in" in capsys.readouterr().err
