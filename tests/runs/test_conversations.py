"""Runs on conversations: trained, evaluated and asked as a library; refused where a method or router would lose the turns."""

import json
from pathlib import Path

import pytest

from see_lightning.engine.ensemble import load_ensemble
from see_lightning.engine.ledger import Ledger
from see_lightning.errors import ConfigError
from see_lightning.evaluation.evaluate import prompt_sha
from tests.runs import toy

CHAT = ("model.prompt=chat", "order.tasks=[sky,sea]")


def write_chats(folder: Path, *, system: bool = True, turns: bool = True) -> Path:
    """The toy's tasks as conversations; every last message is the toy's prompt."""
    toy.write_tasks(folder)
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        chats = []
        for row in rows:
            first = [("system", "Be brief.")] if system else []
            before = [("user", f"{row['prompt'][:3]}?"), ("assistant", "Say more.")] if turns else []
            said = [*first, *before, ("user", row["prompt"]), ("assistant", row["answer"])]
            chats.append({"messages": [{"role": role, "content": content} for role, content in said]})
        path.write_text("".join(json.dumps(row) + "\n" for row in chats))
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    return write_chats(tmp_path_factory.mktemp("chats") / "data")


def test_conversations_train_and_are_evaluated_turn_by_turn(chats, tmp_path):
    cfg = toy.compose(chats, tmp_path / "runs", *CHAT, "benchmark.reader.train_on=all")
    seen = toy.run(cfg)
    directory = seen.directory
    lines = (directory / "tasks" / "01-sky" / "examples.jsonl").read_text().splitlines()
    rows = {row["id"]: row for row in map(json.loads, lines)}
    assert len(rows) == 2 * toy.TASKS["sky"], "each answer of a conversation is an example"
    assert rows["sky-train-1-turn-1"] == {
        "id": "sky-train-1-turn-1", "task": "sky", "system": "Be brief.", "prompt": "sky?", "target": "++ Say more.",
    }  # fmt: skip
    assert rows["sky-train-1"]["turns"] == [{"query": "sky?", "answer": "Say more."}]
    (method,) = seen.methods
    (task,) = [one for one in method_tasks(cfg) if one.name == "sea"]
    answers = [json.loads(line) for line in (directory / "tasks" / "02-sea" / "answers.jsonl").read_text().splitlines()]
    shas = {row["id"]: row["prompt_sha"] for row in answers if row["task"] == "sea"}
    assert shas == {row.id: prompt_sha(row) for row in task.test}
    ensemble = load_ensemble(directory, max_new_tokens=4)
    replies = {
        row.id: ensemble.method.template.conversation_ids(row.prompt, row.system, row.turns) for row in task.test
    }
    assert len({tuple(ids) for ids in replies.values()}) == toy.TESTED
    assert method.template.digest() == ensemble.method.template.digest()
    assert toy.run(cfg).fits == 0, "the same command finds the finished run"


def method_tasks(cfg):
    from see_lightning.config.validation import validate
    from see_lightning.engine.build import build_tasks, build_template

    config = validate(cfg)
    return build_tasks(cfg, config, build_template(config))


def test_a_run_on_messages_is_asked_with_messages(tmp_path):
    data = write_chats(tmp_path / "data", turns=False)
    directory = toy.run(toy.compose(data, tmp_path / "runs", *CHAT, "optim.epochs=20")).directory
    ensemble = load_ensemble(directory, max_new_tokens=4)
    answers = [json.loads(line) for line in (directory / "tasks" / "02-sea" / "answers.jsonl").read_text().splitlines()]
    messages = {
        f"{task}-test-{number}": json.loads(line)["messages"][:-1]
        for task in ("sky", "sea")
        for number, line in enumerate((data / f"{task}.test.jsonl").read_text().splitlines(), start=1)
    }
    replies = ensemble.answer([messages[row["id"]] for row in answers])
    assert [(reply.text, reply.expert) for reply in replies] == [(row["text"], row["expert"]) for row in answers]
    assert {row["expert"] for row in answers} - {"base"}, "an expert answers"


def test_all_answers_are_another_run_and_the_last_ones_are_the_default(chats, tmp_path):
    first = toy.run(toy.compose(chats, tmp_path / "runs", *CHAT, "order.tasks=[sky]")).directory
    again = toy.run(toy.compose(chats, tmp_path / "runs", *CHAT, "order.tasks=[sky]", "benchmark.reader.train_on=last"))
    assert (again.directory, again.fits) == (first, 0)
    other = toy.run(toy.compose(chats, tmp_path / "runs", *CHAT, "order.tasks=[sky]", "benchmark.reader.train_on=all"))
    assert (other.directory == first, other.fits) == (False, 1)
    counts = [toy.read_results(one)["counts"]["train_examples"] for one in (first, other.directory)]
    assert counts == [[4], [8]]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["method=icl_replay"], r"method=icl_replay keeps queries as single texts; choose another method, such as method=see\."),
        (["method=lamol"], "method=lamol keeps queries as single texts"),
        (["method=ssr"], "method=ssr keeps queries as single texts"),
        (["method.second_chance=on"], r"method\.second_chance=on takes queries for a definition and an input; leave it out\."),
        (["method=any_ssr"], r"method\.wordings takes queries for a definition and an input; write method\.wordings=\[as_is\]\."),
        (["router=knn"], r"router\.wordings takes queries for a definition and an input; write router\.wordings=\[as_is\]\."),
        (["router=description"], r"router=description reads queries as single texts; choose another router, such as router=walk\."),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["turns", "system"])
def test_what_would_lose_a_conversation_is_refused_before_training(tmp_path, settings, told, kind):
    data = write_chats(tmp_path / "data", system=kind == "system", turns=kind == "turns")
    has = "earlier turns" if kind == "turns" else "a system prompt of its own"
    with pytest.raises(ConfigError, match=rf"\.jsonl:\d+ has {has}, but {told}"):
        toy.run(toy.compose(data, tmp_path / "runs", *CHAT, *settings))


def test_the_ledger_sees_a_changed_turn(chats, tmp_path):
    data = write_chats(tmp_path / "data")
    cfg = toy.compose(data, tmp_path / "runs", *CHAT, "order.tasks=[sky]")
    before = Ledger(toy.run(cfg).directory).read().content["about"]["data"]
    path = data / "sky.train.jsonl"
    path.write_text(path.read_text().replace("Say more.", "Say less."))
    (task,) = method_tasks(cfg)
    assert task.digest() != before["sky"]
