"""Every method keeps every promise: those of ``conf/method``, and one written a moment ago."""

import inspect
import json
import math
import shutil
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from see_lightning import load_ensemble, perplexity
from see_lightning.engine import build
from see_lightning.engine.ledger import Ledger
from see_lightning.evaluation.scores import score_fn
from see_lightning.experts import files
from see_lightning.methods.method import Method
from see_lightning.models.tiny import tiny_model
from see_lightning.refusals import CONF
from see_lightning.tasks.batches import collate
from see_lightning.tasks.datamodule import query_batch
from tests.experts import small
from tests.runs import toy

NAMES = list(toy.TASKS)
POS = "++"


@pytest.fixture
def whole(base, method):
    """An undisturbed run of the method."""
    return toy.whole(base, *method)


def trained_stages(directory):
    """Name and expert's folder of every stage that trained something."""
    stages = Ledger(directory).read().content["stages"]
    return [(name, directory / "tasks" / name / "expert") for name, stage in stages.items() if stage["trained"]]


def test_there_are_methods_to_be_tested():
    assert {"see", "seqft", "replay", "mtl", "stl", "base"} <= {path.stem for path in (CONF / "method").glob("*.yaml")}


def test_experts_do_not_move_once_they_are_trained(whole, tmp_path):
    (method,) = whole.methods
    ledger = Ledger(whole.directory).read()
    stages = trained_stages(whole.directory)
    assert len(stages) == {"sequential": 3, "joint": 1, "frozen": 0}[method.schedule]
    if method.has_experts:
        assert method.pool.names == [name.split("-", 1)[1] for name, _ in stages]
    for name, _ in stages:
        ledger.verified(name)  # on disk: still the bytes that the training left
    in_memory = zip(method.pool.names[::-1], stages[::-1], strict=False)  # one adapter is that of the last stage
    for expert, (_, folder) in in_memory:
        files.save(method.pool, expert, tmp_path / expert)
        held, saved = (load_file(place / "adapter_model.safetensors") for place in (tmp_path / expert, folder))
        assert held.keys() == saved.keys() != set()
        assert all(torch.equal(held[key], saved[key]) for key in saved)
    different = {folder.joinpath("adapter_model.safetensors").read_bytes() for _, folder in stages}
    assert len(different) == len(stages), "a stage that changes no weight has not trained"
    assert method.pool.kept.held == 0, "prompts of the last stage are still held"
    assert (method.pool.kept.tokens_read > 0) == (bool(method.pool.header_ids) and method.schedule != "frozen")


def test_the_base_model_does_not_move(whole):
    model = whole.methods[0].pool.model
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    weights = {
        name.replace(".base_layer", ""): weight for name, weight in inner.state_dict().items() if "lora_" not in name
    }
    given = tiny_model().state_dict()
    assert weights.keys() == given.keys()
    assert all(torch.equal(weights[name], given[name]) for name in given)


def test_the_same_seed_gives_the_same_run(whole, base, method, tmp_path):
    again = toy.run(toy.compose(toy.data_in(base), tmp_path, *method))
    assert again.steps == whole.steps
    assert toy.kept(again.directory) == toy.kept(whole.directory)


def test_another_seed_trains_in_another_order_and_is_asked_the_same(whole, base, method, tmp_path):
    other = toy.run(toy.compose(toy.data_in(base), tmp_path, *method, "seed=2"))
    assert other.directory.parent.name == whole.directory.parent.name, "the seed is no part of the run key"
    if whole.methods[0].schedule != "frozen":
        assert other.steps != whole.steps

    def asked(seen):
        return {
            stage: [(a["id"], a["prompt_sha"], a["target"]) for a in answers]
            for stage, answers in toy.read_answers(seen.directory).items()
        }

    assert asked(other) == asked(whole)


def test_the_command_repeated_after_every_interruption_ends_with_the_same_run(whole, base, method, tmp_path):
    """Each attempt makes one thing final and is then broken off, so that every stage is taken up from the disk."""
    cfg = toy.compose(toy.data_in(base), tmp_path, *method)
    resumed, interruptions = toy.broken_off(cfg)
    stages = Ledger(whole.directory).read().content["stages"].values()
    # A task that is tested at a stage is final together with what was remembered of it; others have that alone.
    tasks = [s["answers"].keys() | s.get("remembered", {}).keys() for s in stages]
    assert interruptions == 1 + sum(bool(s["trained"]) for s in stages) + sum(map(len, tasks))
    assert toy.kept(resumed.directory) == toy.kept(whole.directory)


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


def test_queries_put_otherwise_are_answered_as_the_loaded_ensemble_answers_them(base, method, tmp_path):
    run = toy.run(toy.compose(toy.defined_in(base), tmp_path, *method, *toy.DEFINED, *toy.VARIANTS))
    results, ensemble = toy.read_results(run.directory), load_ensemble(run.directory, max_new_tokens=4)
    template, told = ensemble.method.template, ensemble.method.needs_task_id
    similar = score_fn("edit_similarity")
    assert results["variants"]["asked"] == ["input_only", "paraphrased"]
    assert results["variants"]["paraphrases"] == toy.WORDS
    for variant, tasks in toy.put_otherwise(base).items():
        (said,) = toy.read_answers(run.directory, variant).values()
        found, scores, by = results["variants"][variant], {}, {}
        for task, queries in tasks.items():
            # In the order in which the run asked: longest prompt first.
            ids = sorted(queries, key=lambda id_: (-len(template.prompt_ids(queries[id_][0])), id_))
            replies = ensemble.answer([queries[id_][0] for id_ in ids], task=task if told else None)
            records = {record["id"]: record for record in said if record["task"] == task}
            assert records.keys() == queries.keys()
            for id_, reply in zip(ids, replies, strict=True):
                record = records[id_]
                assert (record["text"], record["expert"]) == (reply.text, reply.expert)
                assert record["verdicts"] == list(reply.verdicts)
            scores[task] = sum(
                similar(reply.text, queries[id_][1]) for id_, reply in zip(ids, replies, strict=True)
            ) / len(ids)
            by[task] = [reply.expert for reply in replies]
        assert found["scores"] == pytest.approx(scores, abs=1e-4)
        assert found["AR"] == pytest.approx(sum(scores.values()) / len(NAMES), abs=1e-4)
        if "routing" not in results:
            assert found["routing_accuracy"] is found["base_share"] is found["confusion"] is None
            continue
        queries = sum(map(len, by.values()))
        assert found["routing_accuracy"] == sum(by[task].count(task) for task in NAMES) / queries
        assert found["base_share"] == sum(by[task].count("base") for task in NAMES) / queries
        assert found["confusion"] == [[by[task].count(expert) for expert in (*NAMES, "base")] for task in NAMES]


def test_peft_alone_loads_every_expert_and_says_what_it_said_in_the_run(whole, base):
    (method,) = whole.methods
    answers, prompts, checked = toy.read_answers(whole.directory), toy.prompts(base), 0
    for stage, folder in trained_stages(whole.directory):
        model = PeftModel.from_pretrained(tiny_model(), folder).eval()
        if not method.plain_files:
            checked += 1
            continue
        expert = stage.split("-", 1)[1] if method.has_experts else None
        for record in answers[stage]:
            if record["expert"] == expert:
                limit = 4 + len(POS) * method.refuses
                said = small.alone(model, method.template.prompt_ids(prompts[record["id"]]), limit)
                text = method.template.text(said.ids)
                if method.refuses:
                    assert text.lstrip().startswith(POS)
                    text = text.lstrip().removeprefix(POS).removeprefix(" ")
                assert record["text"] == text + getattr(method, "bang", "")
                assert record["truncated"] == (not said.ended)
                checked += 1
    assert checked > 0 or method.schedule == "frozen"


def test_reference_answers_are_as_likely_as_in_a_forward_of_each_query_alone(whole, base, tmp_path):
    """The oracle is transformers' or PEFT's own forward in fp32, without padding, cache or batch.

    Where PEFT alone does not speak as an expert, it is the forward that the expert was trained by.
    """
    copy = shutil.copytree(whole.directory, tmp_path / "copy")
    perplexity.main([str(copy)])
    measured = json.loads((copy / "perplexity.json").read_text())
    (method,) = whole.methods
    *_, last = toy.read_answers(whole.directory).values()
    folders = {name.split("-", 1)[1]: folder for name, folder in trained_stages(whole.directory)}
    models = {"base": tiny_model().eval()}
    models |= {name: PeftModel.from_pretrained(tiny_model(), folder).eval() for name, folder in folders.items()}
    trained = load_ensemble(whole.directory).method.pool
    voices = {
        "base": models["base"],
        None: list(models.values())[-1],
        **models,
    }  # one adapter is that of the last stage
    records, prompts, every = {record["id"]: record for record in last}, toy.prompts(base), []
    assert list(measured["tasks"]) == NAMES
    for task, found in measured["tasks"].items():
        assert [query["id"] for query in found["queries"]] == [r["id"] for r in last if r["task"] == task]
        for query in found["queries"]:
            record, prompt = records[query["id"]], method.template.prompt_ids(prompts[query["id"]])
            given = f"{POS} " if method.refuses and record["expert"] != "base" else ""
            target = [*method.template.target_ids(given)[:-1], *method.template.target_ids(record["target"])]
            with torch.inference_mode():
                if method.plain_files or record["expert"] == "base":
                    ids = torch.tensor([prompt + target])
                    logits = voices[record["expert"]](input_ids=ids).logits[0, len(prompt) - 1 : -1]
                else:
                    voice = record["expert"] or trained.names[-1]  # without experts there is one voice
                    trained.train_only(voice, trained.compositions[voice].adapters[0])
                    logits = trained.eval()(*collate([prompt], [target], pad=0))
            nlls = (-logits.log_softmax(-1))[range(len(target)), target][len(given) :].tolist()  # one token a byte
            assert query["expert"] == record["expert"]
            assert query["tokens"] == len(nlls) == len(record["target"]) + 1
            assert query["nll"] == pytest.approx(sum(nlls), rel=1e-4, abs=1e-4)
            every.append((task, sum(nlls), len(nlls)))
        mine = [row for row in every if row[0] == task]
        assert found["perplexity"] == pytest.approx(
            math.exp(sum(m[1] for m in mine) / sum(m[2] for m in mine)), rel=1e-4
        )
    assert measured["perplexity"] == pytest.approx(
        math.exp(sum(e[1] for e in every) / sum(e[2] for e in every)), rel=1e-4
    )


def test_a_finished_run_is_reported_without_loading_a_model(whole, base, method, capsys):
    before = toy.kept(whole.directory)
    with patch.object(build, "load_model", side_effect=AssertionError("a model was loaded")):
        toy.run(toy.compose(toy.data_in(base), whole.directory.parents[3], *method))
    *_, last = capsys.readouterr().out.splitlines()
    assert last == str(whole.directory / "results.json")
    assert toy.kept(whole.directory) == before


def test_the_matrix_is_measured_where_the_schedule_says(whole):
    measured = [[score is not None for score in row] for row in toy.read_results(whole.directory)["matrix"]]
    yes, no = True, False
    assert (
        measured
        == {
            "sequential": [[yes, yes, no], [yes, yes, yes], [yes, yes, yes]],
            "joint": [[no, no, no], [no, no, no], [yes, yes, yes]],
            "frozen": [[yes, yes, yes]] * 3,
        }[whole.methods[0].schedule]
    )


def test_results_hold_the_fields_of_the_contract(whole):
    results = toy.read_results(whole.directory)
    method = whole.methods[0]
    kinds = {
        "command": str,
        "commit": str | None,
        "versions": dict,
        "seed": int,
        "method": str,
        "ratio": float | None,
        "model": str,
        "dtype": str,
        "order": str,
        "tasks": list,
        "score": dict,
        "matrix": list,
        "metrics": dict,
        "timing": dict,
        "counts": dict,
        "notices": list,
        "benchmark": dict,
        "config": dict,
    }
    for field, kind in kinds.items():
        assert isinstance(results[field], kind), field
    assert results["tasks"] == NAMES
    assert results["seed"] == 3
    assert results["method"] == type(method).__module__.rsplit(".", 1)[-1]
    assert results["score"] == dict.fromkeys(NAMES, "exact_match")
    assert all(score is None or 0 <= score <= 100 for row in results["matrix"] for score in row)
    assert list(results["metrics"]) == ["AR", "FWT", "BWT", "forgetting"]
    assert set(results["timing"]) == {"train_s", "evaluate_s", "train_tokens_per_s", "queries_per_s"}
    assert ("routing" in results) == (method.has_experts and not method.needs_task_id)
    assert (results["ratio"] is None) == ("ratio" not in inspect.signature(type(method)).parameters)


def test_what_is_kept_never_shrinks_and_is_measured_by_the_pool(whole):
    results, stages = toy.read_results(whole.directory), trained_stages(whole.directory)
    assert ("capacity" in results) == bool(stages)
    if stages:
        *parts, capacity = [*results["storage"].values(), results["capacity"]]
        assert all(len(part) == len(stages) and part == sorted(part) for part in (*parts, capacity))
        kept = {name: part for name, part in results["storage"].items() if name != "pool"}
        for stage, share in enumerate(capacity):
            whole_size = sum(part[stage] for part in kept.values())
            assert share == pytest.approx(whole_size / results["storage"]["pool"][stage], abs=1e-6)
        assert kept["weights"][0] > 0


def test_counts_are_what_the_files_hold(whole):
    counts = toy.read_results(whole.directory)["counts"]
    method = whole.methods[0]
    answers = toy.read_answers(whole.directory)
    records = [record for stage in answers.values() for record in stage]
    lines = {
        name: [json.loads(line) for line in (folder.parent / "examples.jsonl").read_text().splitlines()]
        for name, folder in trained_stages(whole.directory)
    }
    assert counts["train_examples"] == [len(stage) for stage in lines.values()]
    past = [
        sum(line["task"] != name.split("-", 1)[1] for line in stage) if method.schedule == "sequential" else 0
        for name, stage in lines.items()
    ]
    assert counts["rehearsed"] == past
    assert counts["negatives"] == (past if method.refuses else [0] * len(past))
    # Ten passes, four examples a step.
    assert counts["steps"] == [10 * math.ceil(len(stage) / 4) for stage in lines.values()]
    assert sum(counts["steps"]) == len(whole.steps)
    assert counts["truncated"] == sum(record["truncated"] for record in records)
    assert (counts["token_efficiency"] is None) == (method.schedule == "frozen")
    assert counts["token_efficiency"] is None or 0 < counts["token_efficiency"] <= 1


def test_costs_are_exactly_those_that_cannot_be_avoided(whole):
    """Frozen experts are asked once in a run; where weights move, every answer is made anew."""
    counts = toy.read_results(whole.directory)["counts"]
    method = whole.methods[0]
    answers = toy.read_answers(whole.directory)
    records = [record for stage in answers.values() for record in stage]
    if not method.has_experts:
        assert counts["generations"] == counts["prefills"] == len(records)
        assert (counts["decisions"], counts["decided_again"], counts["remembered"]) == (0, 0, None)
        return
    pairs = {(record["expert"], record["id"]) for record in records}
    assert counts["generations"] == len(pairs)
    assert counts["remembered"] == len(records) - len(pairs)
    assert counts["decided_again"] == 0, "in fp32 no verdict is in doubt"
    queries = len(NAMES) * toy.TESTED
    if not method.refuses:
        # Whoever is not told the task reads each query first, to find its expert.
        looked_at = 0 if method.needs_task_id else len(records)
        assert (counts["decisions"], counts["prefills"]) == (0, len(pairs) + looked_at)
        return
    assert counts["decisions"] == len(method.pool.names) * queries
    if method.pool.header_ids:
        assert counts["prefills"] == queries, "once in a run, for all experts and the base"
        return
    at_birth = {
        (name, r["id"])
        for name, stage in zip(NAMES, answers.values(), strict=True)
        for r in stage
        if r["expert"] == name
    }
    by_base = {pair for pair in pairs if pair[0] == "base"}
    # Whoever accepted a query that was not tested yet reads it once more when its answer is wanted.
    assert counts["prefills"] == counts["decisions"] + len(by_base) + len(pairs - by_base - at_birth)


def test_what_is_remembered_is_what_was_said_in_the_walks(whole, base):
    method = whole.methods[0]
    kept = toy.read_answers(whole.directory, "remembered")
    answers = toy.read_answers(whole.directory)
    assert bool(kept) == method.has_experts
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
    if method.refuses:
        ids = toy.prompts(base)
        assert said.keys() >= {(expert, id_) for expert in NAMES for id_ in ids}, "every expert decides on every query"
        refused = [one for one in said.values() if one["verdict"] in ("neg", "neither")]
        assert all(one["text"] is one["score"] is one["truncated"] is None for one in refused)
        assert all((one["verdict"] is one["log_odds"] is None) == (one["expert"] == "base") for one in said.values())
        assert all(one["margin"] >= 0 for one in said.values() if one["verdict"])


def test_every_number_can_be_recomputed_from_the_answers(whole):
    results, answers = toy.read_results(whole.directory), toy.read_answers(whole.directory)
    method = whole.methods[0]
    exact = score_fn("exact_match")
    for stage in answers.values():
        for record in stage:
            assert record["score"] == exact(record["text"], record["target"])

    def mean(numbers):
        numbers = list(numbers)
        return sum(numbers) / len(numbers) if numbers and None not in numbers else None

    def scored(stage, task):
        return mean(record["score"] for record in stage if record["task"] == task)

    rows = [[scored(stage, task) for task in NAMES] for stage in answers.values()]
    if method.schedule == "frozen":
        rows *= 3
    if method.schedule == "joint":
        rows = [[None] * 3, [None] * 3, *rows]
    assert results["matrix"] == rows
    last = rows[-1]
    change, drop = [], []
    for j in (0, 1):
        since = [row[j] for row in rows[j:-1] if row[j] is not None]
        change.append(last[j] - rows[j][j] if rows[j][j] is not None else None)
        drop.append(max(since) - last[j] if since else None)
    expected = {
        "AR": mean(last),
        "FWT": mean([rows[0][1], rows[1][2]]),
        "BWT": mean(change),
        "forgetting": mean(drop),
    }
    for name, value in expected.items():
        assert results["metrics"][name] == (None if value is None else pytest.approx(value)), name
    if "routing" in results:
        *_, final = answers.values()
        routing = results["routing"]
        assert routing["accuracy"] == sum(r["expert"] == r["task"] for r in final) / len(final)
        assert routing["base_share"] == sum(r["expert"] == "base" for r in final) / len(final)
        assert routing["no_indicator_share"] == sum("neither" in r["verdicts"] for r in final) / len(final)
        assert routing["confusion"] == [
            [sum(r["task"] == task and r["expert"] == expert for r in final) for expert in (*NAMES, "base")]
            for task in NAMES
        ]


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
            voices = method.voices(queries)
        assert method.counts["generations"] == 0
        if method.has_experts or method.schedule == "frozen":
            assert [voice or "base" for voice in voices] == [one["expert"] for one in records]
        else:
            assert set(voices) <= set(method.pool.names)


def test_answers_say_who_gave_them(whole):
    method: Method = whole.methods[0]
    for number, stage in enumerate(toy.read_answers(whole.directory).values(), start=1):
        born = NAMES[:number] if method.schedule == "sequential" else NAMES
        for record in stage:
            if method.refuses:
                assert set(record["verdicts"]) <= {"pos", "neg", "neither"}
                accepted = record["verdicts"][-1] == "pos"
                # Newest first: whoever accepted is as far back as there are verdicts.
                assert record["expert"] == (born[-len(record["verdicts"])] if accepted else "base")
                assert set(record["verdicts"][:-1]) <= {"neg"}, "only a refusal passes a query on"
            elif method.needs_task_id:
                assert record["expert"] == (record["task"] if record["task"] in born else "base")
            else:
                experts = born if method.has_experts else ["base" if method.schedule == "frozen" else None]
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
