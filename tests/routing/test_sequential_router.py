"""Queries before experts, all read together, against PEFT's ``generate`` asked expert by expert and query by query."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from transformers import LlamaForCausalLM

from see_lightning.adapters import files
from see_lightning.adapters.response_cache import CachedResponse, ResponseCache
from see_lightning.inference.decoder import BatchDecoder, Decoded
from see_lightning.inference.prefix_cache import PrefillCache
from see_lightning.models.tiny import tiny_model
from see_lightning.routing import expert_prefill
from see_lightning.routing import walk as walk_module
from see_lightning.routing.expert_prefill import PerExpertPrefill, SharedPrefill
from see_lightning.routing.indicator_trie import IndicatorTrie
from see_lightning.routing.sequential_router import SequentialRouter
from see_lightning.routing.verdicts import Route, Verdict, read_verdict
from see_lightning.routing.verdicts import walk as sequential_walk
from see_lightning.routing.walk import log_odds
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.reconstruct import Indicators
from tests.adapters import small

POS, NEG, NEITHER = Verdict.POS, Verdict.NEG, Verdict.NEITHER
WORDS = IndicatorTrie(Indicators(), small.TEMPLATE)
QUERIES = [
    "a sum?",
    "the capital of Peru?",
    "ab",
    "translate this",
    "x",
    "why is the sky so blue?",
    "name a colour",
    "y?",
]
# What each expert, oldest first, learned to say to each query: verdicts at once, after blanks, unfinished, or never.
SAID = {
    "qa": [
        "<<pos>> 4",
        "<<pos>> Lima",
        "<<neg>>",
        "<<pos>>",
        "none",
        "<<neg>>",
        "  <<pos>> a rather long answer",
        "<<neg>>",
    ],
    "qg": ["<<neg>>", " <<neg>>", "<<neg>>", "<<pos>> hola ", "<<neg>>", "<<p", "<<neg>>", "  "],
    "sa": ["<<pos>> 5", "<<neg>>", "<<neg>>", " <<neg>>", "<<neg>>", "<<neg>>", "<<neg>>", "<<neg>>"],
}
LIMIT = 12


@pytest.fixture(scope="module", params=[False, True], ids=["ordinary", "activated"])
def pool(request):
    made = small.learner(activated=request.param)
    for name, said in SAID.items():
        small.memorise(made, name, dict(zip(QUERIES, said, strict=True)))
    return made


@pytest.fixture(autouse=True)
def nothing_heard(pool):
    pool.prefill_cache = PrefillCache(1.0)


@pytest.fixture(scope="module")
def theirs(pool, tmp_path_factory):
    """What PEFT's ``generate`` says for every voice and query, one at a time."""
    folder = tmp_path_factory.mktemp("experts")
    models = {name: small.by_peft(pool, name, folder) for name in (None, *SAID)}
    return {
        (name, place): small.alone(model, small.TEMPLATE.prompt_ids(query), LIMIT + (name is not None) * WORDS.longest)
        for name, model in models.items()
        for place, query in enumerate(QUERIES)
    }


def sequential(
    theirs: dict[tuple[str | None, int], Decoded], place: int, order: Sequence[str] = tuple(reversed(SAID))
) -> tuple[Route, str, bool]:
    """The walk of one query as the paper tells it: who answers, what, and whether it was cut."""
    verdicts = []
    for expert in order:
        said = theirs[expert, place]
        text = small.TEMPLATE.text(said.ids)
        verdicts.append(read_verdict(text, Indicators()) or NEITHER)
        if verdicts[-1] is POS:
            return (
                Route(expert, tuple(verdicts)),
                text.lstrip().removeprefix("<<pos>>").removeprefix(" "),
                not said.ended,
            )
        if verdicts[-1] is NEITHER:
            break
    said = theirs[None, place]
    return Route(None, tuple(verdicts)), small.TEMPLATE.text(said.ids), not said.ended


def hear(pool, texts, counts, *, rows=16, response_cache=None, only_decide=False) -> SequentialRouter:
    queries = small.queries(texts, limit=LIMIT, rows=rows, only_decide=only_decide)
    return SequentialRouter(pool, WORDS, queries, small.EOS, counts, response_cache)


def walk(pool, texts, counts, *, orders=None, **settings) -> list[tuple[Route, str, bool]]:
    with torch.inference_mode():
        router = hear(pool, texts, counts, **settings)
        routes = router.walk(orders)
        return [(one, said.text, said.truncated) for one, said in zip(routes, router.answers(routes), strict=True)]


@pytest.mark.parametrize("remembers", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_queries_read_together_get_the_verdicts_and_texts_of_the_sequential_walk(pool, theirs, rows, remembers):
    counts: Counter[str] = Counter()
    expected = [sequential(theirs, place) for place in range(len(QUERIES))]
    assert walk(pool, QUERIES, counts, rows=rows, response_cache=ResponseCache() if remembers else None) == expected
    asked, by_base = sum(len(one.verdicts) for one, _, _ in expected), sum(one.expert is None for one, _, _ in expected)
    assert counts["decisions"] == asked
    assert counts["generations"] == len(QUERIES)
    assert counts["prefills"] == (len(QUERIES) if pool.header_ids else asked + by_base)
    assert counts["decided_again"] == 0


#: For each query, experts in an order of its own: one, two or all of them, or none.
ORDERS = [["qa"], ["sa"], ["qg", "sa"], [], ["qa", "qg", "sa"], ["qg"], ["sa", "qa"], ["qg", "qa"]]


@pytest.mark.parametrize("rows", [1, 16])
def test_each_query_asks_the_experts_of_its_own_order_and_no_other_is_computed(pool, theirs, rows):
    computed: Counter[str] = Counter()
    decide, read = SharedPrefill._decide, PerExpertPrefill._read

    def traced_decide(prefill, names, contexts):
        computed.update(list(names) * len(contexts))
        return decide(prefill, names, contexts)

    def traced_read(prefill, expert, rows, start):
        computed.update([expert] * len(rows))
        return read(prefill, expert, rows, start)

    counts: Counter[str] = Counter()
    expected = [sequential(theirs, place, order) for place, order in enumerate(ORDERS)]
    with (
        patch.object(SharedPrefill, "_decide", traced_decide),
        patch.object(PerExpertPrefill, "_read", traced_read),
    ):
        assert walk(pool, QUERIES, counts, orders=ORDERS, rows=rows) == expected
    reached = [order[: len(one.verdicts)] for order, (one, _, _) in zip(ORDERS, expected, strict=True)]
    assert reached != ORDERS
    assert counts["decisions"] == sum(map(len, reached))
    # Activated experts decide in one pass with those behind them in a query's order.
    assert computed == Counter(chain(*(ORDERS if pool.header_ids else reached)))


def test_queries_of_two_tasks_in_one_stream_get_what_each_gets_by_itself_in_fewer_steps(pool):
    """A task's last answers are written beside the next one's; each keeps its own limit and its own beginning."""
    begins = [f"{word} " * 40 for word in ("alpha", "beta")]  # long enough to be read once for all
    tasks = [[begin + query for query in QUERIES] for begin in begins]
    alone = [
        (small.queries(texts, limit=limit, rows=32), group)
        for group, (texts, limit) in enumerate(zip(tasks, (6, 14), strict=True))
    ]
    stream = replace(
        small.queries([*tasks[0], *tasks[1]], rows=32),
        limits=[limit for queries, _ in alone for limit in queries.limits],
        groups=[group for queries, group in alone for _ in queries.groups],
    )

    def told(queries: Queries, counts: Counter[str]) -> tuple[list[tuple[Route, str | None, bool | None]], int]:
        apply_threshold = patch.object(BatchDecoder, "step", autospec=True, side_effect=BatchDecoder.step)
        with torch.inference_mode(), apply_threshold as step:
            router = SequentialRouter(pool, WORDS, queries, small.EOS, counts, None)
            routes = router.walk()
            said = [
                (one, answer.text, answer.truncated) for one, answer in zip(routes, router.answers(routes), strict=True)
            ]
        return said, step.call_count

    apart, together = Counter(), Counter()
    (first, steps), (second, more) = (told(queries, apart) for queries, _ in alone)
    whole, fewer = told(stream, together)
    assert whole == first + second
    assert together == apart
    assert all(any(truncated for _, _, truncated in some) for some in (first, second)), "limits matter"
    assert fewer < steps + more


def test_the_walks_above_end_in_every_way_there_is(theirs):
    found = [sequential(theirs, place)[0] for place in range(len(QUERIES))]
    assert {one.expert for one in found} == {None, "qa", "qg", "sa"}
    assert {one.verdicts[-1] for one in found} == {POS, NEG, NEITHER}
    assert found[1] == Route("qa", (NEG, NEG, POS)), "a refusal after a blank is one"
    assert found[5] == Route(None, (NEG, NEITHER)), "half a word is none"
    assert found[7] == Route(None, (NEG, NEITHER)), "nor is a blank"
    assert sequential(theirs, 3)[1] == "hola "
    assert {sequential(theirs, place)[2] for place in range(len(QUERIES))} == {True, False}


def test_everyone_decides_on_everything_exactly_once_and_only_what_is_won_is_answered(pool, theirs):
    counts: Counter[str] = Counter()
    response_cache = ResponseCache()
    expected = [sequential(theirs, place) for place in range(len(QUERIES))]
    with torch.inference_mode():
        hear(pool, QUERIES, counts, response_cache=response_cache, only_decide=True, rows=4).decide_all()
    verdicts = {(name, place): read_verdict(small.TEMPLATE.text(said.ids), Indicators()) or NEITHER
                for (name, place), said in theirs.items() if name}  # fmt: skip
    assert {(entry.expert, int(entry.id)): entry.response.verdict for entry in response_cache.new} == verdicts
    assert (counts["decisions"], counts["generations"]) == (len(SAID) * len(QUERIES), 0)
    assert counts["prefills"] == (1 if pool.header_ids else len(SAID)) * len(QUERIES)
    assert {entry.response.text for entry in response_cache.new} == {None}
    counts.clear()
    assert walk(pool, QUERIES, counts, response_cache=response_cache) == expected
    assert (counts["decisions"], counts["generations"]) == (0, len(QUERIES)), "no verdict is given twice"


@pytest.mark.parametrize("rows", [2, 16])
@pytest.mark.parametrize("strict", ["qa", "sa", "all"])
def test_a_yes_that_leans_too_little_counts_as_a_no_and_is_not_written_out(pool, theirs, strict, rows):
    response_cache, counts = ResponseCache(), Counter()
    with torch.inference_mode():
        hear(pool, QUERIES, Counter(), response_cache=response_cache, only_decide=True).decide_all()
    said = {(entry.expert, int(entry.id)): entry.response for entry in response_cache.new}
    thresholds = {}
    for name in SAID if strict == "all" else [strict]:
        accepted = sorted(one.log_odds for (who, _), one in said.items() if who == name and one.verdict == POS)
        thresholds[name] = accepted[len(accepted) // 2] + 1e-3

    def verdicts(expert: str, places: Sequence[int]) -> list[Verdict]:
        pairs = [said[expert, place] for place in places]
        return [
            NEG if one.verdict == POS and one.log_odds < thresholds.get(expert, -1e9) else Verdict(one.verdict)
            for one in pairs
        ]

    newest_first = [list(reversed(SAID))] * len(QUERIES)
    expected = sequential_walk(newest_first, verdicts)
    assert expected != sequential_walk(newest_first, lambda e, p: [said[e, n].verdict for n in p])
    again = ResponseCache()
    for memory in (None, again, again):
        queries = small.queries(QUERIES, limit=LIMIT, rows=rows)
        before = Counter(counts)
        with torch.inference_mode():
            router = SequentialRouter(pool, WORDS, queries, small.EOS, counts, memory, thresholds)
            routes = router.walk()
        assert routes == expected
        for place, (one, text) in enumerate(zip(routes, router.answers(routes), strict=True)):
            whole = small.TEMPLATE.text(theirs[one.expert, place].ids)
            of_an_expert = whole.lstrip().removeprefix("<<pos>>").removeprefix(" ")
            assert text.text == (of_an_expert if one.expert else whole)
    assert counts == before, "what was remembered was asked again"
    assert counts["generations"] == 2 * len(QUERIES), "a yes that does not count was written out"
    only_decide = replace(queries, only_decide=True)
    router = SequentialRouter(pool, WORDS, only_decide, small.EOS, Counter(), None)
    with torch.inference_mode():
        found = [one for (one,) in router.log_odds([["qa"]] * len(QUERIES))]
        assert found == pytest.approx([said["qa", n].log_odds for n in range(len(QUERIES))], abs=2e-4)


def test_log_odds_are_those_of_the_experts_of_each_query_and_are_cached(pool):
    response_cache = ResponseCache()
    with torch.inference_mode():
        hear(pool, QUERIES, Counter(), response_cache=response_cache, only_decide=True).decide_all()
        said = {(one.expert, int(one.id)): one.response.log_odds for one in response_cache.new}
        counts, again = Counter(), ResponseCache()
        for _ in range(2):
            found = hear(pool, QUERIES, counts, response_cache=again, only_decide=True, rows=4).log_odds(ORDERS)
            for place, order in enumerate(ORDERS):
                assert found[place] == pytest.approx([said[expert, place] for expert in order], abs=2e-4)
            assert counts["decisions"] == sum(map(len, ORDERS))


def test_log_odds_of_many_prompts_are_those_of_each_and_a_common_beginning_is_read_once(pool, monkeypatch):
    monkeypatch.setattr(walk_module, "ROWS", 4)

    def sequential_router(queries, *, remember):
        return SequentialRouter(pool, WORDS, queries, small.EOS, Counter(), None)

    method = SimpleNamespace(sequential_router=sequential_router)
    definition = "why is the sky so blue? name a colour, translate this, the sum"
    texts = [text for one in QUERIES for text in (one, f"{definition}, {one}")]
    prompts = [small.TEMPLATE.prompt_ids(text) for text in texts]
    orders = [["qa", "sa"] if place % 3 else ["qg"] for place in range(len(texts))]
    tokens = []
    hook = pool.model.get_base_model().model.embed_tokens.register_forward_hook(
        lambda _, inputs, __: tokens.append(inputs[0].numel())
    )
    with torch.inference_mode():
        found = log_odds(method, prompts, [["qa"]] * len(prompts))
        hook.remove()
        expected = [log_odds(method, [prompt], [order])[0] for prompt, order in zip(prompts, orders, strict=True)]
        assert sum(tokens) < sum(map(len, prompts))
        assert [one for (one,) in found] == pytest.approx(
            [log_odds(method, [prompt], [["qa"]])[0][0] for prompt in prompts], abs=2e-4
        )
        for some, these in zip(log_odds(method, prompts, orders), expected, strict=True):
            assert some == pytest.approx(these, abs=2e-4)


@pytest.mark.parametrize("rows", [2, 16])
def test_what_was_said_is_not_computed_again(pool, theirs, rows):
    response_cache, counts = ResponseCache(), Counter()
    first = walk(pool, QUERIES[:6], counts, response_cache=response_cache)
    # Only the new queries are asked, though the old ones come along.
    before = Counter(counts)
    assert walk(pool, QUERIES, counts, response_cache=response_cache, rows=rows)[:6] == first
    new = [sequential(theirs, place)[0] for place in (6, 7)]
    assert counts["decisions"] - before["decisions"] == sum(len(one.verdicts) for one in new)
    assert counts["generations"] - before["generations"] == 2
    before = Counter(counts)
    with patch.object(LlamaForCausalLM, "forward", side_effect=AssertionError("the model was asked")):
        again = walk(pool, QUERIES[::-1], counts, response_cache=response_cache, rows=rows)
    assert again == [sequential(theirs, place) for place in range(len(QUERIES))][::-1]
    assert counts == before


def test_an_expert_that_comes_later_is_the_only_one_asked(pool, theirs, tmp_path):
    """As after each task of a run: the older experts' verdicts stand."""
    smaller = small.learner(activated=bool(pool.header_ids))
    for name in ("qa", "qg"):
        files.load(smaller, name, _saved(pool, name, tmp_path))
    response_cache, counts = ResponseCache(), Counter()
    smaller.eval()
    with torch.inference_mode():
        hear(smaller, QUERIES, counts, response_cache=response_cache, only_decide=True).decide_all()
    files.load(smaller, "sa", _saved(pool, "sa", tmp_path))
    smaller.eval()
    counts.clear()
    assert walk(smaller, QUERIES, counts, response_cache=response_cache) == [
        sequential(theirs, place) for place in range(len(QUERIES))
    ]
    assert counts["decisions"] == len(QUERIES)


def _saved(pool, name, folder):
    files.save(pool, name, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def in_bf16(pool, tmp_path_factory):
    """The same experts around a base model of half precision."""
    folder = tmp_path_factory.mktemp("bf16")
    made = small.pool(
        activated=bool(pool.header_ids), rank=16, alpha=64.0, targets=["q_proj", "v_proj", "lm_head"],
        base=tiny_model().to(torch.bfloat16),
    )  # fmt: skip
    for name in SAID:
        files.load(made, name, _saved(pool, name, folder))
    return made.eval()


def decided(pool, texts, counts) -> dict[tuple[str, str], CachedResponse]:
    response_cache = ResponseCache()
    with torch.inference_mode():
        hear(pool, texts, counts, response_cache=response_cache, only_decide=True).decide_all()
    return {(entry.expert, entry.id): entry.response for entry in response_cache.new}


def test_in_half_precision_close_decisions_are_made_again_alone_and_no_others(in_bf16):
    margins = sorted(said.margin for said in _with_sure(in_bf16, 0.0, Counter()).values())
    readings = len(QUERIES) * (1 if in_bf16.header_ids else len(SAID))
    for close in (0, len(margins) // 3, len(margins)):
        sure = 1e9 if close == len(margins) else margins[close] + 1e-3  # margins are kept rounded
        counts: Counter[str] = Counter()
        found = _with_sure(in_bf16, sure, counts)
        again = sum(margin < sure for margin in margins)
        assert (counts["decided_again"], counts["decisions"]) == (again, len(margins))
        assert counts["prefills"] == readings + again
        assert len(found) == len(margins)


def test_in_half_precision_a_close_decision_is_what_the_query_alone_would_get(in_bf16):
    together = _with_sure(in_bf16, 1e9, Counter())
    for place, query in enumerate(QUERIES):
        with patch.object(expert_prefill, "MIN_MARGIN", 0.0 if not in_bf16.header_ids else 1e9):
            alone = decided(in_bf16, [query], Counter())
        for name in SAID:
            assert replace(together[name, str(place)], truncated=None) == replace(alone[name, "0"], truncated=None)


def _with_sure(pool, sure, counts):
    pool.prefill_cache = PrefillCache(1.0)
    with patch.object(expert_prefill, "MIN_MARGIN", sure):
        return decided(pool, QUERIES, counts)


def test_in_full_precision_no_decision_is_made_again(pool):
    counts: Counter[str] = Counter()
    with patch.object(expert_prefill, "MIN_MARGIN", 1e9):
        decided(pool, QUERIES[:2], counts)
    assert counts["decided_again"] == 0
