"""How each method answers, against one query at a time by ``generate``."""

from collections import Counter

import pytest
import torch

from see_lightning.config import OptimConfig
from see_lightning.experts.walk import Verdict
from see_lightning.methods import see
from see_lightning.methods.base import Base
from see_lightning.methods.method import Answer
from see_lightning.methods.see import See
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.stl import Stl
from see_lightning.models.decode import Decoded
from see_lightning.models.tiny import tiny_model

POS, NEG = "<<pos>>", "<<neg>>"
QUERIES = [
    "a sum?",
    "the capital of Peru?",
    "ab",
    "translate this, please",
    "x",
    "why is the sky so blue?",
    "name a colour",
]
# What each expert, oldest first, learned to say to each query.
SAID = {
    "qa": [f"{POS} 4", f"{POS} Lima", f"{NEG}", f"{POS}", "none", f"{NEG}", f"{POS} a rather long answer"],
    "qg": [f"{NEG}", f"{NEG}", f"{NEG}", f"{POS} hola ", f"{NEG}", "<<p", f"{NEG}"],
    "sa": [f"{POS} 5", f"{NEG}", f"{NEG}", f"{NEG}", f"{NEG}", f"{NEG}", f"{NEG}"],
}
LIMIT = 12  # tokens of an answer, and so many more for the indicator as it has


def build(method, template, pool, **settings):
    return method(pool=pool, template=template, optim=OptimConfig(), run_seed=0, **settings).eval()


@pytest.fixture(scope="module")
def ensemble(make_pool, memorise, template):
    pool = make_pool()
    for name, said in SAID.items():
        memorise(pool, name, dict(zip(QUERIES, said, strict=True)))
    return build(See, template, pool, ratio=0.1, draw="fresh", indicators={"pos": POS, "neg": NEG})


def one_by_one(method, alone, template, query: str, limit: int) -> tuple[Answer, Counter[str]]:
    """SEE's inference as the paper tells it, for a single query."""
    counts, verdicts = Counter(), []
    for expert in reversed(SAID):
        with method.pool.active(expert) as model:
            ids, ended = alone(model, query, limit + len(POS))
        text = template.text(ids).lstrip()
        verdict = "pos" if text.startswith(POS) else "neg" if text.startswith(NEG) else "neither"
        verdicts.append(verdict)
        counts += Counter(prefills=1, decisions=1, generations=int(verdict == "pos"))
        if verdict == "pos":
            counts["new_tokens"] += len(ids)
            return Answer("", text.removeprefix(POS).strip(), expert, tuple(verdicts), not ended), counts
        # A query that is passed on costs the tokens up to where its verdict is sure.
        counts["new_tokens"] += next(
            (n for n in range(1, len(ids) + 1) if not any(word.startswith(template.text(ids[:n])) and
             word != template.text(ids[:n]) for word in (POS, NEG))), len(ids)
        )  # fmt: skip
        if verdict == "neither":
            break
    ids, ended = alone(tiny_model().eval(), query, limit)
    counts += Counter(prefills=1, generations=1, new_tokens=len(ids))
    return Answer("", template.text(ids).strip(), "base", tuple(verdicts), not ended), counts


@pytest.mark.parametrize("limit", [LIMIT, 4, 40])
@pytest.mark.parametrize("rows", [range(7), [6, 3, 1], [2], [5, 5]])
def test_see_answers_a_batch_as_it_would_each_query_by_itself_and_counts_the_same(
    ensemble, alone, template, ask, rows, limit
):
    queries = [QUERIES[row] for row in rows]
    ensemble.counts.clear()
    with torch.inference_mode():
        answers = ensemble.answer(ask(queries, max_new_tokens=limit))
    expected, counts = zip(*(one_by_one(ensemble, alone, template, q, limit) for q in queries), strict=True)
    assert [a._replace(id="") for a in answers] == list(expected)
    assert [a.id for a in answers] == [str(place) for place in range(len(queries))]
    assert +ensemble.counts == +sum(counts, Counter())


def test_the_walks_of_these_queries_end_in_every_way_there_is(ensemble, ask):
    with torch.inference_mode():
        answers = ensemble.answer(ask(QUERIES, max_new_tokens=LIMIT))
    assert [(a.expert, a.verdicts) for a in answers] == [
        ("sa", ("pos",)),
        ("qa", ("neg", "neg", "pos")),
        ("base", ("neg", "neg", "neg")),
        ("qg", ("neg", "pos")),
        ("base", ("neg", "neg", "neither")),
        ("base", ("neg", "neither")),
        ("qa", ("neg", "neg", "pos")),
    ]
    assert [a.text for a in answers][:2] == ["5", "Lima"]
    assert answers[3].text == "hola"
    assert (answers[6].truncated, answers[0].truncated) == (True, False)
    assert "a rather long answer".startswith(answers[6].text)


def test_what_see_counts_is_what_the_walks_above_cost(ensemble, ask):
    ensemble.counts.clear()
    with torch.inference_mode():
        ensemble.answer(ask(QUERIES, max_new_tokens=LIMIT))
    assert ensemble.counts["decisions"] == 1 + 3 + 3 + 2 + 3 + 2 + 3
    assert ensemble.counts["prefills"] == ensemble.counts["decisions"] + 3
    assert ensemble.counts["generations"] == len(QUERIES)


def test_a_query_that_falls_to_the_base_gets_its_very_words(ensemble, alone, template, ask):
    with torch.inference_mode():
        answers = ensemble.answer(ask(QUERIES, max_new_tokens=30))
    fallen = [place for place, answer in enumerate(answers) if answer.expert == "base"]
    assert len(fallen) == 3
    for place in fallen:
        ids, _ = alone(tiny_model().eval(), QUERIES[place], 30)
        assert answers[place].text == template.text(ids).strip()


def test_verdicts_are_plain_words_that_json_takes(ensemble, ask):
    with torch.inference_mode():
        verdicts = ensemble.answer(ask(QUERIES[1:2]))[0].verdicts
    assert verdicts == (Verdict.NEG, Verdict.NEG, Verdict.POS) == ("neg", "neg", "pos")


def test_an_ensemble_without_experts_is_the_base_model(make_pool, template, ask):
    batch = ask(QUERIES)
    settings = {"ratio": 0.1, "draw": "fresh", "indicators": {"pos": POS, "neg": NEG}}
    with torch.inference_mode():
        empty = build(See, template, make_pool(), **settings).answer(batch)
        assert empty == build(Base, template, make_pool()).answer(batch)


@pytest.mark.parametrize(("pos", "neg"), [("✓", "✗"), ("是的", "不是"), ("🙂", "🙁")])
def test_an_indicator_whose_letters_are_of_several_tokens_is_read_to_its_end(
    make_pool, template, ask, monkeypatch, pos, neg
):
    said = [f"{pos} yes", neg, "maybe"]

    def scripted(model, ids, mask, *, max_new_tokens, eos_ids, stop):
        """An expert that says what it is told to, token by token."""
        rows = []
        for row, text in enumerate(said):
            tokens = template.target_ids(text)[:-1]
            stopped = next((n for n in range(1, len(tokens) + 1) if stop(row, tokens[:n])), None)
            rows.append(Decoded(tokens[:stopped], stopped is None))
        return rows

    monkeypatch.setattr(see, "greedy", scripted)
    method = build(See, template, make_pool("qa"), ratio=0.1, draw="fresh", indicators={"pos": pos, "neg": neg})
    with torch.inference_mode():
        answers = method.answer(ask(["one", "two", "three"]))
    assert [(a.expert, a.verdicts) for a in answers] == [("qa", ("pos",)), ("base", ("neg",)), ("base", ("neither",))]
    assert answers[0].text == "yes"


def plain(alone, template, model, queries, expert) -> list[Answer]:
    decoded = [alone(model, query, LIMIT) for query in queries]
    return [
        Answer(str(place), template.text(ids).strip(), expert, (), not ended)
        for place, (ids, ended) in enumerate(decoded)
    ]


def test_the_base_answers_as_the_plain_model_does(make_pool, alone, template, ask):
    method = build(Base, template, make_pool())
    with torch.inference_mode():
        answers = method.answer(ask(QUERIES, max_new_tokens=LIMIT))
    assert answers == plain(alone, template, tiny_model().eval(), QUERIES, "base")
    tokens = sum(len(alone(tiny_model().eval(), query, LIMIT)[0]) for query in QUERIES)
    assert method.counts == Counter(prefills=len(QUERIES), generations=len(QUERIES), new_tokens=tokens)


def test_one_adapter_answers_everything_and_says_no_name(make_pool, memorise, alone, template, ask):
    pool = make_pool()
    memorise(pool, "shared", {"one": "uno", "another": "otro más"})
    method = build(SeqFt, template, pool)
    with torch.inference_mode():
        answers = method.answer(ask(["one", "another", *QUERIES], max_new_tokens=LIMIT))
    assert [(a.text, a.truncated) for a in answers[:2]] == [("uno", False), ("otro más", False)]
    assert answers == plain(alone, template, pool.model, ["one", "another", *QUERIES], None)


def test_stl_answers_each_query_by_the_expert_of_the_task_it_is_told(make_pool, alone, template, ask):
    pool = make_pool("qa", "qg")
    tasks = ["qg", "qa", "sa", "qg", "qa", "later", "qa"]
    method = build(Stl, template, pool)
    with torch.inference_mode():
        answers = method.answer(ask(QUERIES, tasks=tasks, max_new_tokens=LIMIT))
    by = {"base": plain(alone, template, tiny_model().eval(), QUERIES, "base")}
    for name in pool.names:
        with pool.active(name) as model:
            by[name] = plain(alone, template, model, QUERIES, name)
    assert answers == [by[name if name in pool.names else "base"][place] for place, name in enumerate(tasks)]
    assert len({by[name][0].text for name in by}) == 3, "experts that say the same would not tell who was asked"
    assert (method.counts["prefills"], method.counts["decisions"], method.counts["generations"]) == (7, 0, 7)
