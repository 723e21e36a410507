"""Experts mixed by the size of their outputs at one layer, against loops over dense updates."""

import math

import pytest
import torch

from see_lightning.adapters.composites import Sum
from see_lightning.errors import ConfigError
from see_lightning.routing.logo import Logo
from tests.adapters import small
from tests.routing.fake import method_on, prompt_of

NAMES = ["a", "b", "c"]
LAST = "model.layers.1.self_attn.q_proj"
TEXTS = ["Add 12 and 3.", "Who?", "A long question of another kind: why?"]


def signals_by_hand(pool, text: str, signal: str, layer: str = LAST) -> list[float]:
    """A pass of the base model, and each expert's output at the last token."""
    inputs = {}
    with torch.no_grad(), pool.observe(inputs.__setitem__), pool.use_adapter(None) as model:
        model(input_ids=torch.tensor([prompt_of(text)]))
    found = []
    for name in NAMES:
        output = (pool.delta(layer, name) @ inputs[layer][0, -1]).tolist()
        if signal == "norm":
            found.append(math.sqrt(sum(number**2 for number in output)))
        else:
            powers = [math.exp(number - max(output)) for number in output]
            shares = [power / sum(powers) for power in powers]
            found.append(1 / (1e-6 - sum(share * math.log(share) for share in shares)))
    return found


@pytest.mark.parametrize("signal", ["norm", "entropy"])
def test_signals_and_routes_are_those_of_a_loop_over_experts(signal):
    pool = small.pool(*NAMES, rank=4)
    router = Logo(method_on(pool), signal=signal)
    routes = router.route(small.queries(TEXTS))
    for text, route in zip(TEXTS, routes, strict=True):
        expected = signals_by_hand(pool, text, signal)
        assert router.score(prompt_of(text)).tolist() == pytest.approx(expected, rel=1e-3)
        assert route == NAMES[expected.index(max(expected))]
    assert router.method.counts == {"prefills": 3}


def test_the_best_experts_answer_with_weights_in_proportion_to_their_signals():
    pool = small.pool(*NAMES, rank=4)
    router = Logo(method_on(pool), top_k=2)
    queries = small.queries(TEXTS)
    mixtures = router.adapters(queries, router.route(queries))
    assert len(set(mixtures)) == len(TEXTS)
    assert router.adapters(queries, ["a", None, "b"]) == [mixtures[0], None, mixtures[2]]
    assert pool.names == NAMES
    for text, mixture in zip(TEXTS, mixtures, strict=True):
        signals = signals_by_hand(pool, text, "norm")
        best = sorted(range(3), key=lambda place: -signals[place])[:2]
        weights = [signals[place] / sum(signals[other] for other in best) for place in best]
        expected = Sum(pool, [NAMES[place] for place in best], weights)
        ids = torch.tensor([prompt_of(text)])
        with torch.no_grad():
            with pool.use_adapter(mixture) as model:
                found = model(input_ids=ids).logits
            with pool.use_adapter(expected) as model:
                torch.testing.assert_close(found, model(input_ids=ids).logits, atol=1e-4, rtol=1e-3)
    assert len({pool.digest(mixture) for mixture in mixtures}) == len(TEXTS)


def test_with_one_the_best_expert_answers_itself():
    router = Logo(method_on(small.pool(*NAMES)), top_k=1)
    queries = small.queries(TEXTS)
    assert router.adapters(queries, ["a", None, "b"]) == ["a", None, "b"]
    alone = Logo(method_on(small.pool("a")))
    assert alone.adapters(queries, alone.route(queries)) == ["a"] * 3


def test_another_layer_can_be_named():
    pool = small.pool(*NAMES)
    router = Logo(method_on(pool), layer="layers.0.mlp.down_proj")
    expected = signals_by_hand(pool, TEXTS[0], "norm", "model.layers.0.mlp.down_proj")
    assert router.score(prompt_of(TEXTS[0])).tolist() == pytest.approx(expected, rel=1e-3)


def test_unknown_settings_are_refused():
    with pytest.raises(ConfigError, match="router.layer=c_attn is no adapted layer; give one of down_proj, gate_proj"):
        Logo(method_on(small.pool()), layer="c_attn")
    with pytest.raises(ConfigError, match="router.signal must be one of norm, entropy"):
        Logo(method_on(small.pool()), signal="size")
    with pytest.raises(ConfigError, match="router.top_k must be at least 1"):
        Logo(method_on(small.pool()), top_k=0)


def test_a_threshold_is_the_quantile_of_the_own_signals_and_survives():
    pool = small.pool(*NAMES)
    router = Logo(method_on(pool), target_recall=0.5)
    for name in NAMES:
        router.hold_out(name, [list(prompt_of(text)) for text in TEXTS])
    signals = torch.stack([router.score(prompt_of(text)) for text in TEXTS])
    assert router.thresholds().tolist() == signals.sort(0).values[1].tolist()
    again = Logo(method_on(pool), target_recall=0.5)
    for name in NAMES:
        again.load_state(name, router.state(name))
    queries = small.queries([*TEXTS, "Something else."])
    assert again.route(queries) == router.route(queries)
    assert None in router.route(queries)


def test_activated_experts_are_scored_where_they_act():
    router = Logo(method_on(small.pool(*NAMES, activated=True)), top_k=2)
    queries = small.queries(TEXTS)
    assert set(router.route(queries)) <= set(NAMES)
    assert all(name.startswith("(logo ") for name in router.adapters(queries, router.route(queries)))


@pytest.mark.parametrize(
    ("signal", "signals", "weights"),
    [
        (
            "norm",
            [7.702519065245091, 7.763670065564621, 6.129787095113144],
            {"b": 0.5019769252723579, "a": 0.49802307472764207},
        ),
        (
            "entropy",
            [0.4048998587271088, 0.3530243010891014, 0.3319215428792402],
            {"a": 0.5342221295931422, "b": 0.46577787040685786},
        ),
    ],
)
def test_signals_and_weights_are_those_of_the_authors_code(signal, signals, weights):
    """Run on these tensors, in double precision: ``select_and_predict`` of utils/model.py, archon159/LoGo, commit ef46b04."""

    def drawn(number: int, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)

    pool, prompt = small.pool(*NAMES, rank=4, alpha=8.0), prompt_of("Who?")
    for number, name in enumerate(NAMES):
        pool.load_weights(name, {LAST: (0.3 * drawn(100 + 2 * number, 4, 32), 0.3 * drawn(101 + 2 * number, 32, 4))})
    router = Logo(method_on(pool), signal=signal, top_k=2)
    router._inputs[prompt] = drawn(110, 1, 3, 32)[0, -1].float()
    assert router.score(prompt).tolist() == pytest.approx(signals, rel=1e-4)
    mixture = pool.composites[router._mixture(prompt)]
    assert dict(zip(mixture.experts, mixture.weights_T.tolist(), strict=True)) == pytest.approx(weights, rel=1e-4)
    assert list(mixture.experts) == list(weights)
