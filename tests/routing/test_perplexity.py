"""Routing by the perplexity of the prompt, against transformers' own loss."""

import pytest
import torch

from see_lightning.errors import ConfigError
from see_lightning.routing.perplexity import Perplexity
from tests.adapters import small
from tests.routing.fake import method_on, prompt_of

NAMES = ["a", "b", "c"]
TEXTS = ["Add 12 and 3.", "Who?", "A long question of another kind: why?"]


def test_the_expert_with_the_lowest_loss_of_transformers_is_chosen(tmp_path):
    pool = small.pool(*NAMES)
    router = Perplexity(method_on(pool))
    models = {name: small.by_peft(pool, name, tmp_path) for name in (*NAMES, None)}
    routes = router.route(small.queries(TEXTS))
    for text, route in zip(TEXTS, routes, strict=True):
        ids = torch.tensor([prompt_of(text)])
        with torch.no_grad():
            losses = {name: float(model(input_ids=ids, labels=ids).loss) for name, model in models.items()}
        expected = [losses[None] - losses[name] for name in NAMES]
        assert router.score(prompt_of(text)).tolist() == pytest.approx(expected, abs=1e-4)
        assert route == min(NAMES, key=losses.get)
    assert router.method.counts == {"prefills": 3 * 4}


def test_below_its_threshold_the_base_model_answers():
    router = Perplexity(method_on(small.pool(*NAMES)), target_recall=1.0)
    scores = torch.stack([router.score(prompt_of(text)) for text in TEXTS])
    most = scores.max(0)
    for name, place in zip(NAMES, most.indices, strict=True):
        router.hold_out(name, [list(prompt_of(TEXTS[place]))])
    assert router.thresholds().tolist() == most.values.tolist()
    best = scores.argmax(1).tolist()
    expected = [NAMES[one] if scores[n, one] == most.values[one] else None for n, one in enumerate(best)]
    assert router.route(small.queries(TEXTS)) == expected
    assert None in expected


def test_a_prompt_without_a_token_to_predict_has_no_best_expert():
    assert Perplexity(method_on(small.pool(*NAMES))).score((5,)).tolist() == [0.0] * 3


def test_activated_experts_are_refused():
    with pytest.raises(ConfigError, match="do not act on the prompt"):
        Perplexity(method_on(small.pool(*NAMES, activated=True)))
