"""Mixtures of experts by their singular directions, against PEFT's own Arrow, dense decompositions and loops."""

import math
from collections import Counter
from functools import partial
from unittest.mock import patch

import pytest
import torch
from peft.tuners.lora import ArrowConfig, create_arrow_model
from peft.tuners.lora.arrow import ArrowLoraLinearLayer

from see_lightning.adapters import files
from see_lightning.adapters.composites import Sum
from see_lightning.adapters.mixture import FixedMixture
from see_lightning.adapters.spectra import expert_spectrum, spectrum
from see_lightning.errors import ConfigError
from see_lightning.models.tiny import tiny_model
from see_lightning.routing.arrow import Arrow
from see_lightning.routing.mixtures import HELD_OUT
from see_lightning.routing.spectr import Spectr
from tests.adapters import small
from tests.routing.fake import method_on, prompt_of

NAMES = ["a", "b", "c"]
PROMPT = small.TEMPLATE.prompt_ids("Add 12 and 3.")


def logits_of(pool, adapter, prompt=PROMPT) -> torch.Tensor:
    with torch.no_grad(), pool.use_adapter(adapter) as model:
        return model(input_ids=torch.tensor([prompt])).logits[0]


@pytest.mark.parametrize(("rank", "inputs", "outputs"), [(1, 5, 3), (4, 9, 7), (6, 4, 5)])
def test_the_spectrum_from_the_factors_is_that_of_the_dense_product(rank, inputs, outputs):
    torch.manual_seed(rank)
    a, b = torch.randn(rank, inputs), torch.randn(outputs, rank)
    sigma, v = spectrum(a, b)
    _, dense_sigma, dense_v = torch.linalg.svd(b @ a, full_matrices=False)
    kept = min(rank, inputs, outputs)
    torch.testing.assert_close(sigma[:kept], dense_sigma[:kept], atol=1e-4, rtol=1e-5)
    for found, expected in zip(v[:kept], dense_v[:kept], strict=True):
        assert abs(float(found @ expected)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_arrow_is_pefts_own(tmp_path, top_k):
    pool = small.pool(*NAMES, rank=4)
    router = Arrow(method_on(pool), top_k=top_k, temperature=0.5)
    router.route(small.queries(["Add 12 and 3."]))
    folders = [tmp_path / name for name in NAMES]
    for name, folder in zip(NAMES, folders, strict=True):
        files.save(pool, name, folder)
    # PEFT's 15 steps of power iteration do not reach the singular vector from every start.
    converged = partial(ArrowLoraLinearLayer.top_right_singular_vec_from_BA, iters=2000)
    with patch.object(ArrowLoraLinearLayer, "top_right_singular_vec_from_BA", lambda *pair: converged(*pair)):
        settings = ArrowConfig(top_k=top_k, router_temperature=0.5, rng_seed=0)
        peft = create_arrow_model(tiny_model(), [str(folder) for folder in folders], settings).eval()
        with torch.no_grad():
            expected = peft(input_ids=torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(logits_of(pool, router.name), expected, atol=1e-3, rtol=1e-3)
    for layer, directions in router.mixture().directions.items():
        theirs = peft.get_submodule(f"base_model.model.{layer}").lora_arrow["arrow_router"].prototypes
        assert (directions[:, 0] * theirs).sum(1).abs().tolist() == pytest.approx([1] * 3, abs=1e-3)


@pytest.mark.parametrize("router_class", [Arrow, Spectr])
def test_weights_and_routes_are_those_of_a_loop_over_tokens_and_layers(router_class):
    pool = small.pool(*NAMES, rank=4)
    router = router_class(method_on(pool), top_k=2, temperature=0.7)
    prompts = ["Add 12 and 3.", "Who?", "A long question of another kind: why?"]
    routes = router.route(small.queries(prompts))
    for text, route in zip(prompts, routes, strict=True):
        inputs, totals = {}, Counter()
        with pool.observe(inputs.__setitem__):
            logits_of(pool, router.name, small.TEMPLATE.prompt_ids(text))
        for layer, x in inputs.items():
            dense = [pool.delta(layer, name).detach() for name in NAMES]
            for token in x[0]:
                if router_class is Spectr:
                    scores = [float((torch.linalg.svd(delta).Vh[:4] @ token).norm()) for delta in dense]
                else:
                    scores = [float((torch.linalg.svd(delta).Vh[0] @ token).abs()) for delta in dense]
                best = sorted(range(3), key=lambda place: -scores[place])[:2]
                powers = {place: math.exp((scores[place] - max(scores)) / 0.7) for place in best}
                for place, power in powers.items():
                    totals[NAMES[place]] += power / sum(powers.values())
        assert route == max(totals, key=totals.get)
        shares = router.score(prompt_of(text))
        assert shares.tolist() == pytest.approx([totals[name] / sum(totals.values()) for name in NAMES], abs=1e-3)


def test_a_spectrum_has_the_scale_of_the_update():
    pool = small.pool("a", alpha=64.0)
    layer, x = small.first(pool), torch.randn(32)
    sigma, v = expert_spectrum(pool, "a", layer)
    assert float((sigma * (v @ x)).norm()) == pytest.approx(float((pool.delta(layer, "a") @ x).norm()), rel=1e-4)


def drawn(number: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


def test_scores_of_spectr_and_the_best_expert_s_answer_are_those_of_the_authors_code():
    """Run on these tensors: ``svd`` and ``RouteWrap`` of llm_merging/merging/SpectR.py, wfleshman/spectr, commit bba13b2.

    It was run in double precision. Its scores have the scale of the experts, 2, as a factor, which is equal for all.
    """
    pool = small.pool(*NAMES, rank=4, alpha=8.0)
    layer, x = small.first(pool), drawn(110, 1, 3, 32).float()
    for number, name in enumerate(NAMES):  # by the size of its updates the last would be the best for all tokens
        pair = (drawn(100 + 2 * number, 4, 32), (10 if name == "c" else 1) * drawn(101 + 2 * number, 32, 4))
        pool.load_weights(name, {layer: pair})
    mixture = Spectr(method_on(pool), top_k=1).mixture()
    scores = (mixture.directions[layer] @ x[0].T).norm(dim=1)
    expected = [
        [3.6829852454141037, 4.969772083973922, 3.535551463966794],
        [4.690602284197567, 6.315715189947491, 2.909578977949878],
        [6.458244489806232, 4.017756458927815, 2.443013588576633],
    ]
    torch.testing.assert_close(2 * scores, torch.tensor(expected), atol=1e-4, rtol=0)
    added = [
        [26.506942084180118, 136.5236391208627, -159.8368587314336],
        [115.48662458100362, -59.89813769992719, -55.66144735256882],
        [-3.3433175437998095, 6.246276983534543, 20.221113871462492],
    ]
    torch.testing.assert_close(mixture.add(layer, x)[0, :, :3], torch.tensor(added), atol=1e-3, rtol=1e-4)
    gates = Spectr(method_on(pool), top_k=2, temperature=1e6).mixture().gate(layer, x)[0]
    even = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])  # the code's weights
    torch.testing.assert_close(gates, even)


def test_an_expert_that_adds_nothing_has_the_score_0_under_spectr():
    pool = small.pool(*NAMES, rank=4)
    layer = small.first(pool)
    with torch.no_grad():
        pool.pair(layer, "a")[1].zero_()
    directions = Spectr(method_on(pool)).mixture().directions[layer]
    assert not directions[0].any()
    torch.testing.assert_close(directions[1] @ directions[1].T, torch.eye(4), atol=1e-5, rtol=0)


def test_fixed_weights_are_a_weighted_sum():
    pool = small.pool(*NAMES)
    mixture = FixedMixture(pool, ["a", "c"], torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(
        logits_of(pool, mixture), logits_of(pool, Sum(pool, ["a", "c"], [0.25, 0.75])), atol=1e-5, rtol=1e-4
    )
    with pytest.raises(ConfigError, match="a mixture of a, c"):
        mixture.pair(small.first(pool))


def test_the_mixture_is_no_expert_and_is_another_adapter_with_every_expert_and_setting():
    pool = small.pool("a", "b")
    routers = [Arrow(method_on(pool)), Arrow(method_on(pool), top_k=1), Spectr(method_on(pool))]
    digests = []
    for router in routers:
        router.mixture()
        digests.append(pool.digest(router.name))
    assert pool.names == ["a", "b"]
    pool.add_expert("c", weights_seed=1)
    routers[0].learn("c", [])
    digests.append(pool.digest(routers[0].name))
    with torch.no_grad():
        pool.pair(small.first(pool), "c")[1].add_(0.1)
    assert routers[0].route(small.queries(["Add."])) != [None]
    digests.append(pool.digest(routers[0].name))
    assert len(set(digests)) == len(digests)


def test_two_routers_of_one_class_answer_by_turns():
    pool, queries = small.pool("a", "b"), small.queries(["Add."])
    one, other = Arrow(method_on(pool), top_k=1), Arrow(method_on(pool), top_k=2)
    for router in (one, other, one):
        assert router.adapters(queries, router.route(queries)) == ["(arrow)"]
        assert pool.composites["(arrow)"] is router.mixture()


def test_without_experts_the_base_model_answers():
    router = Arrow(method_on(small.pool()))
    assert router.route(small.queries(["Add."])) == [None]
    assert router.adapters(small.queries([]), []) == []


def test_activated_experts_are_weighed_on_the_tokens_on_which_they_act():
    pool = small.pool(*NAMES, activated=True)
    router = Arrow(method_on(pool), top_k=1)
    seen = []
    gate = router.mixture().gate
    with patch.object(router.mixture(), "gate", lambda layer, x: (seen.append(x.shape[1]), gate(layer, x))[1]):
        assert router.route(small.queries(["Add 12 and 3."]))[0] in NAMES
    assert set(seen) == {len(small.HEADER)}


def test_a_threshold_sends_to_the_base_model_what_lies_below_it():
    pool = small.pool(*NAMES)
    router = Spectr(method_on(pool), target_recall=0.5)
    assert router.holds_out
    assert not Spectr(method_on(pool)).holds_out
    prompts = [small.TEMPLATE.prompt_ids(text) for text in ("Add 1.", "Who is it?", "Translate the sentence.")]
    for name in NAMES:
        router.hold_out(name, prompts)
    shares = torch.stack([router.score(tuple(prompt)) for prompt in prompts])
    medians = shares.sort(0, descending=True).values[1]
    assert router.thresholds().tolist() == medians.tolist()
    texts = ["Add 1.", "Where?", "Sum up the text that follows."]
    expected = []
    for text in texts:
        found = router.score(prompt_of(text))
        best = int(found.argmax())
        expected.append(NAMES[best] if found[best] >= medians[best] else None)
    routes = router.route(small.queries(texts))
    assert routes == expected
    assert router.adapters(small.queries(texts), [None, "a", "b"]) == [None, "(spectr)", "(spectr)"]
    again = Spectr(method_on(pool), target_recall=0.5)
    for name in NAMES:
        again.load_state(name, router.state(name))
    assert again.thresholds().tolist() == medians.tolist()
    assert router.state("a")[HELD_OUT].dtype == torch.int32
    assert router.nbytes() > 0


def test_a_query_is_counted_as_a_prefill_every_time():
    method = method_on(small.pool(*NAMES))
    router = Arrow(method)
    for _ in range(2):
        router.route(small.queries(["Add.", "Who?"]))
    assert method.counts == {"prefills": 4}


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"temperature": 0.0}, {"target_recall": 1.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=f"router.{next(iter(settings))} must be"):
        Arrow(method_on(small.pool()), **settings)
