"""How each method answers, against one query at a time by ``generate``."""

from collections import Counter

import pytest
import torch

from see_lightning.adapters.response_cache import BatchCache, CachedResponse, ResponseCache
from see_lightning.config.schema import OptimConfig
from see_lightning.methods.base import Base
from see_lightning.methods.method import Answer
from see_lightning.methods.see import See
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.methods.stl import Stl
from see_lightning.routing.verdicts import Verdict
from tests.adapters import small

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
    return method(Setup(pool, template, OptimConfig(), 0), **settings).eval()


@pytest.fixture(scope="module", params=[False, True], ids=["ordinary", "activated"])
def ensemble(request):
    pool = small.learner(activated=request.param)
    for name, said in SAID.items():
        small.memorise(pool, name, dict(zip(QUERIES, said, strict=True)))
    return build(See, small.TEMPLATE, pool, ratio=0.1, resample="per_task", indicators={"pos": POS, "neg": NEG})


@pytest.fixture(scope="module")
def theirs(ensemble, tmp_path_factory):
    """Each expert as PEFT loads it, and the plain base model under None."""
    folder = tmp_path_factory.mktemp("experts")
    return {name: small.by_peft(ensemble.pool, name, folder) for name in (None, *SAID)}


def one_by_one(theirs, query: str, limit: int) -> tuple[Answer, Counter[str]]:
    """SEE's inference as the paper tells it, for a single query."""
    counts, verdicts, prompt, text_of = Counter(), [], small.TEMPLATE.prompt_ids(query), small.TEMPLATE.text
    for expert in reversed(SAID):
        said = small.alone(theirs[expert], prompt, limit + len(POS))
        text = text_of(said.ids).lstrip()
        verdict = "pos" if text.startswith(POS) else "neg" if text.startswith(NEG) else "neither"
        verdicts.append(verdict)
        counts += Counter(prefills=1, decisions=1, generations=int(verdict == "pos"))
        if verdict == "pos":
            counts["new_tokens"] += len(said.ids)
            return Answer("", text.removeprefix(POS).removeprefix(" "), expert, tuple(verdicts), not said.ended), counts
        # A query that is passed on costs the tokens up to where its verdict is sure.
        counts["new_tokens"] += next(
            (n for n in range(1, len(said.ids) + 1) if not any(word.startswith(text_of(said.ids[:n])) and
             word != text_of(said.ids[:n]) for word in (POS, NEG))), len(said.ids)
        )  # fmt: skip
        if verdict == "neither":
            break
    said = small.alone(theirs[None], prompt, limit)
    counts += Counter(prefills=1, generations=1, new_tokens=len(said.ids))
    return Answer("", text_of(said.ids), "base", tuple(verdicts), not said.ended), counts


@pytest.mark.parametrize("limit", [LIMIT, 4, 40])
@pytest.mark.parametrize("asked", [range(7), [6, 3, 1], [2], [5, 5]])
def test_see_answers_a_batch_as_it_would_each_query_by_itself_and_counts_the_same(ensemble, theirs, ask, asked, limit):
    queries = [QUERIES[row] for row in asked]
    ensemble.counts.clear()
    with torch.inference_mode():
        answers = ensemble.answer(ask(queries, max_new_tokens=limit))
    expected, counts = zip(*(one_by_one(theirs, q, limit) for q in queries), strict=True)
    assert [a._replace(id="", log_odds=()) for a in answers] == list(expected)
    assert [a.id for a in answers] == [str(place) for place in range(len(queries))]
    for answer in answers:
        told = list(zip(answer.log_odds, answer.verdicts, strict=True))
        assert all(log_odds > 0 for log_odds, said in told if said == "pos")
        assert all(log_odds < 0 for log_odds, said in told if said == "neg")
    cost = sum(counts, Counter())
    if ensemble.pool.header_ids:
        cost["prefills"] = len(queries)  # the base model's reading serves all
    assert +ensemble.counts == +cost


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
    assert answers[3].text == "hola ", "blanks are the answer's"
    assert (answers[6].truncated, answers[0].truncated) == (True, False)
    assert "a rather long answer".startswith(answers[6].text)


def test_what_see_counts_is_what_the_walks_above_cost(ensemble, ask):
    ensemble.counts.clear()
    with torch.inference_mode():
        ensemble.answer(ask(QUERIES, max_new_tokens=LIMIT))
    assert ensemble.counts["decisions"] == 1 + 3 + 3 + 2 + 3 + 2 + 3
    own = ensemble.counts["decisions"] + 3
    assert ensemble.counts["prefills"] == (len(QUERIES) if ensemble.pool.header_ids else own)
    assert ensemble.counts["generations"] == len(QUERIES)


def test_a_query_that_falls_to_the_base_gets_its_very_words(ensemble, theirs, template, ask):
    with torch.inference_mode():
        answers = ensemble.answer(ask(QUERIES, max_new_tokens=30))
    fallen = [place for place, answer in enumerate(answers) if answer.expert == "base"]
    assert len(fallen) == 3
    for place in fallen:
        said = small.alone(theirs[None], template.prompt_ids(QUERIES[place]), 30)
        assert answers[place].text == template.text(said.ids)


def test_verdicts_are_plain_words_that_json_takes(ensemble, ask):
    with torch.inference_mode():
        verdicts = ensemble.answer(ask(QUERIES[1:2]))[0].verdicts
    assert verdicts == (Verdict.NEG, Verdict.NEG, Verdict.POS) == ("neg", "neg", "pos")


def test_an_ensemble_without_experts_is_the_base_model(make_pool, template, ask):
    batch = ask(QUERIES)
    settings = {"ratio": 0.1, "resample": "per_task", "indicators": {"pos": POS, "neg": NEG}}
    with torch.inference_mode():
        empty = build(See, template, make_pool(), **settings).answer(batch)
        assert empty == build(Base, template, make_pool()).answer(batch)


@pytest.mark.parametrize(("pos", "neg"), [("✓", "✗"), ("是的", "不是"), ("🙂", "🙁")])
def test_an_indicator_whose_letters_are_of_several_tokens_is_read_to_its_end(template, ask, pos, neg):
    pool, queries = small.learner(), ["one", "two", "three"]
    small.memorise(pool, "qa", dict(zip(queries, (f"{pos} yes", neg, "maybe"), strict=True)))
    method = build(See, template, pool, ratio=0.1, resample="per_task", indicators={"pos": pos, "neg": neg})
    with torch.inference_mode():
        answers = method.answer(ask(queries))
    assert [(a.expert, a.verdicts) for a in answers] == [("qa", ("pos",)), ("base", ("neg",)), ("base", ("neither",))]
    assert answers[0].text == "yes"


def plain(model, queries, expert) -> list[Answer]:
    decoded = [small.alone(model, small.TEMPLATE.prompt_ids(query), LIMIT) for query in queries]
    return [
        Answer(str(place), small.TEMPLATE.text(said.ids), expert, (), not said.ended)
        for place, said in enumerate(decoded)
    ]


def test_the_base_answers_as_the_plain_model_does(make_pool, template, ask, tmp_path):
    method, model = build(Base, template, make_pool()), small.by_peft(make_pool(), None, tmp_path)
    with torch.inference_mode():
        answers = method.answer(ask(QUERIES, max_new_tokens=LIMIT))
    assert answers == plain(model, QUERIES, "base")
    tokens = sum(len(small.alone(model, template.prompt_ids(query), LIMIT).ids) for query in QUERIES)
    assert method.counts == Counter(prefills=len(QUERIES), generations=len(QUERIES), new_tokens=tokens)


@pytest.mark.parametrize("activated", [False, True])
def test_one_adapter_answers_everything_and_says_no_name(template, ask, tmp_path, activated):
    pool = small.learner(activated=activated)
    small.memorise(pool, "shared", {"one": "uno", "another": "otro más"})
    method = build(SeqFt, template, pool)
    with torch.inference_mode():
        answers = method.answer(ask(["one", "another", *QUERIES], max_new_tokens=LIMIT, rows=4))
    assert [(a.text, a.truncated) for a in answers[:2]] == [("uno", False), ("otro más", False)]
    assert answers == plain(small.by_peft(pool, "shared", tmp_path), ["one", "another", *QUERIES], None)


@pytest.mark.parametrize("activated", [False, True])
def test_stl_answers_each_query_by_the_expert_of_the_task_it_is_told(template, ask, tmp_path, activated):
    pool = small.pool("qa", "qg", activated=activated)
    tasks = ["qg", "qa", "sa", "qg", "qa", "later", "qa"]
    method = build(Stl, template, pool)
    with torch.inference_mode():
        answers = method.answer(ask(QUERIES, tasks=tasks, max_new_tokens=LIMIT))
    adapters = {"base": None, "qa": "qa", "qg": "qg"}
    by = {name: plain(small.by_peft(pool, adapter, tmp_path), QUERIES, name) for name, adapter in adapters.items()}
    assert answers == [by[name if name in pool.names else "base"][place] for place, name in enumerate(tasks)]
    assert len({by[name][0].text for name in by}) == 3, "experts that say the same would not tell who was asked"
    assert (method.counts["prefills"], method.counts["decisions"], method.counts["generations"]) == (7, 0, 7)


def test_of_a_forced_answer_and_one_behind_a_verdict_the_forced_one_is_taken_whichever_came_first(
    ensemble, monkeypatch
):
    """A run whose router chooses without verdicts has forced answers; those of a walk that is compared with it came later."""
    queries, cache = small.queries(QUERIES[:2], limit=LIMIT), ResponseCache()
    monkeypatch.setattr(ensemble, "response_cache", cache)
    walked = BatchCache(cache, ensemble.pool, queries)
    forced = BatchCache(cache, ensemble.pool, queries, ensemble.accept_ids("qa"))
    for row in (0, 1):
        walked.put("qa", row, CachedResponse("pos", 2.0, 1.0, "of the walk", False))
    forced.put("qa", 0, CachedResponse(text="of the run", truncated=False))
    assert [answer.text for answer in ensemble.generate_as("qa", queries)] == ["of the run", "of the walk"]
