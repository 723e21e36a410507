"""Likelihoods and answers to queries put otherwise, each against an independent computation."""

import json
import math
import shutil

import pytest
import torch
from peft import PeftModel

from see_lightning import load_ensemble
from see_lightning.cli import perplexity
from see_lightning.evaluation.scores import score_fn
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.batches import Batch, collate
from tests.runs import toy

NAMES = list(toy.TASKS)
POS = "++"


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


def test_reference_answers_are_as_likely_as_in_a_forward_of_each_query_alone(whole, base, tmp_path):
    """The oracle is transformers' or PEFT's own forward in fp32, without padding, cache or batch.

    Where PEFT alone does not speak as an expert, it is the forward that the expert was trained by.
    """
    copy = shutil.copytree(whole.directory, tmp_path / "copy")
    if whole.methods[0].traits.schedule != "frozen" and not whole.methods[0].traits.trains:
        with pytest.raises(SystemExit):  # no adapter answers, and the base model alone would be another method
            perplexity.main([str(copy)])
        assert not (copy / "perplexity.json").exists()
        return
    perplexity.main([str(copy)])
    measured = json.loads((copy / "perplexity.json").read_text())
    (method,) = whole.methods
    *_, last = toy.read_answers(whole.directory).values()
    folders = {name.split("-", 1)[1]: folder for name, folder in whole.trained_stages()}
    models = {"base": tiny_model().eval()}
    models |= {name: PeftModel.from_pretrained(tiny_model(), folder).eval() for name, folder in folders.items()}
    loaded = load_ensemble(whole.directory).method
    trained = loaded.pool
    adapters = {
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
            given = f"{POS} " if method.traits.learns_refusals and record["expert"] != "base" else ""
            target = [*method.template.target_ids(given)[:-1], *method.template.target_ids(record["target"])]
            with torch.inference_mode():
                if method.traits.peft_loadable or record["expert"] == "base":
                    ids = torch.tensor([prompt + target])
                    logits = adapters[record["expert"]](input_ids=ids).logits[0, len(prompt) - 1 : -1]
                else:
                    adapter = record["expert"] or trained.names[-1]  # without experts there is one voice
                    trained.train_only(adapter, *trained.composites[adapter].adapters[:1])
                    logits = loaded.eval().logits(Batch(*collate([prompt], [target], pad=0), [query["id"]]))
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
