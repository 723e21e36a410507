"""A run, a loaded ensemble and PEFT alone give the same answers, and tell who gave them."""

import torch
from peft import PeftModel

from see_lightning import load_ensemble
from see_lightning.methods.method import Method
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.datamodule import query_batch
from tests.adapters import small
from tests.runs import toy

NAMES = list(toy.TASKS)
POS = "++"


def test_a_loaded_ensemble_answers_as_the_run_did(whole, base):
    ensemble = load_ensemble(whole.directory, max_new_tokens=4)
    *_, last = toy.read_answers(whole.directory).values()
    data = whole.methods[0].template  # the order in which the run asked: longest prompt first
    told = ensemble.method.needs_task_id
    prompts = toy.prompts(base)
    for task in NAMES:
        expected = {answer["id"]: answer for answer in last if answer["task"] == task}
        asked = [id_ for id_ in prompts if id_.startswith(f"{task}-")]
        ids = sorted(asked, key=lambda id_: (-len(data.prompt_ids(prompts[id_])), id_))
        replies = ensemble.answer([prompts[id_] for id_ in ids], task=task if told else None)
        assert len(replies) == toy.TESTED
        for id_, reply in zip(ids, replies, strict=True):
            record = expected[id_]
            assert (reply.text, reply.expert, list(reply.verdicts)) == (
                record["text"],
                record["expert"],
                record["verdicts"],
            )


def test_peft_alone_loads_every_expert_and_says_what_it_said_in_the_run(whole, base):
    (method,) = whole.methods
    answers, prompts, checked = toy.read_answers(whole.directory), toy.prompts(base), 0
    for stage, folder in whole.trained_stages():
        if not method.traits.trains:
            assert not (folder / "adapter_model.safetensors").exists()
            checked += 1
            continue
        model = PeftModel.from_pretrained(tiny_model(), folder).eval()
        if not method.traits.peft_loadable:
            checked += 1
            continue
        expert = stage.split("-", 1)[1] if method.traits.has_experts else None
        for record in answers[stage]:
            if record["expert"] == expert:
                limit = 4 + len(POS) * method.traits.learns_refusals
                said = small.alone(model, method.template.prompt_ids(prompts[record["id"]]), limit)
                text = method.template.text(said.ids)
                if method.traits.learns_refusals:
                    assert text.lstrip().startswith(POS)
                    text = text.lstrip().removeprefix(POS).removeprefix(" ")
                assert record["text"] == text + getattr(method, "bang", "")
                assert record["truncated"] == (not said.ended)
                checked += 1
    assert checked > 0 or method.traits.schedule == "frozen"


def test_who_would_answer_is_told_without_an_answer(whole, base):
    ensemble = load_ensemble(whole.directory, max_new_tokens=4)
    method, prompts = ensemble.method, toy.prompts(base)
    *_, last = toy.read_answers(whole.directory).values()
    for task in NAMES:
        records = [answer for answer in last if answer["task"] == task]
        told = [task] * len(records) if method.needs_task_id else []
        queries = query_batch([prompts[one["id"]] for one in records], method.template, tasks=told, max_new_tokens=4)
        method.counts.clear()
        with torch.inference_mode():
            adapters = method.route(queries)
        assert method.counts["generations"] == 0
        if method.traits.has_experts or method.traits.schedule == "frozen":
            assert [adapter or "base" for adapter in adapters] == [one["expert"] for one in records]
        else:
            assert set(adapters) <= (set(method.pool.names) if method.traits.trains else {None})


def test_answers_say_who_gave_them(whole):
    method: Method = whole.methods[0]
    for number, stage in enumerate(toy.read_answers(whole.directory).values(), start=1):
        born = NAMES[:number] if method.traits.schedule == "sequential" else NAMES
        for record in stage:
            if method.traits.learns_refusals:
                assert set(record["verdicts"]) <= {"pos", "neg", "neither"}
                accepted = record["verdicts"][-1] == "pos"
                # Newest first: whoever accepted is as far back as there are verdicts.
                assert record["expert"] == (born[-len(record["verdicts"])] if accepted else "base")
                assert set(record["verdicts"][:-1]) <= {"neg"}, "only a refusal passes a query on"
            elif method.needs_task_id:
                assert record["expert"] == (record["task"] if record["task"] in born else "base")
            else:
                experts = (
                    born if method.traits.has_experts else ["base" if method.traits.schedule == "frozen" else None]
                )
                assert record["expert"] in experts
                assert record["verdicts"] == []


def test_what_nobody_accepts_is_answered_word_for_word_by_the_base_model(whole, base, method):
    plain = (
        toy.whole(base, "method=base", *method[1:])
        if whole.methods[0].pool.header_ids
        else toy.whole(base, "method=base")
    )
    spoken = {r["id"]: r["text"] for r in toy.read_answers(plain.directory)["00-base"]}
    for stage in toy.read_answers(whole.directory).values():
        for record in stage:
            if record["expert"] == "base":
                assert record["text"] == spoken[record["id"]]


def test_what_is_remembered_is_what_was_said_in_the_walks(whole, base):
    method = whole.methods[0]
    kept = toy.read_answers(whole.directory, "remembered")
    answers = toy.read_answers(whole.directory)
    assert bool(kept) == method.traits.has_experts
    lines = [record for stage in kept.values() for record in stage]
    said = {(record["expert"], record["id"]): record for record in lines}
    assert len({record["key"] for record in lines}) == len(said)
    for number, stage in enumerate(answers.values(), start=1):
        for record in stage if said else ():
            given = said[record["expert"], record["id"]]
            assert [given[field] for field in ("task", "text", "score", "truncated")] == [
                record[field] for field in ("task", "text", "score", "truncated")
            ]
            for expert, verdict in zip(NAMES[:number][::-1], record["verdicts"], strict=False):
                assert said[expert, record["id"]]["verdict"] == verdict
    if method.traits.learns_refusals:
        ids = toy.prompts(base)
        assert said.keys() >= {(expert, id_) for expert in NAMES for id_ in ids}, "every expert decides on every query"
        refused = [one for one in said.values() if one["verdict"] in ("neg", "neither")]
        assert all(one["text"] is one["score"] is one["truncated"] is None for one in refused)
        assert all((one["verdict"] is one["log_odds"] is None) == (one["expert"] == "base") for one in said.values())
        assert all(one["margin"] >= 0 for one in said.values() if one["verdict"])
