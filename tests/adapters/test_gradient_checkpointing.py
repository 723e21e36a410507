"""A decoder layer that is computed again in the backward pass: the same gradients, fewer tensors kept, no state left behind."""

import pytest
import torch

from see_lightning.errors import ConfigError
from see_lightning.tasks.batches import IGNORED, collate
from tests.adapters import small

ROWS = [[5, 6, 7, 8], [9, 10], [11] * 9]
ANSWERS = [[20, 21], [22], [23, 24, 25]]


def trained(of, name, dropout=0.0):
    """Gradients of a training pass, and the bytes that it kept for them."""
    of.adapter.dropout = dropout
    of.train_only(name)
    kept = {}

    def keep(one):
        kept[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        return one

    torch.manual_seed(7)
    ids, mask, labels = collate(ROWS, ANSWERS, pad=0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        logits = of(ids, mask, labels)
    torch.nn.functional.cross_entropy(logits, labels[labels != IGNORED]).backward()
    gradients = [p.grad.clone() for p in of.parameters() if p.grad is not None]
    of.zero_grad()
    return gradients, sum(kept.values())


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_gradients_are_the_same_and_less_is_kept(full):
    plain, again = small.pool("sea", full=full), small.pool("sea", full=full)
    again.checkpoint_gradients()
    (wanted, before), (found, after) = (trained(one, "sea") for one in (plain, again))
    assert len(wanted) == len(found) > 0
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
    assert after < before / 2


def test_the_adapter_of_the_forward_pass_acts_again_whichever_acts_then():
    plain, again = small.pool("sea", "sky"), small.pool("sea", "sky")
    again.checkpoint_gradients()
    found = []
    for of in (plain, again):
        of.train_only("sea")
        ids, mask, labels = collate(ROWS, ANSWERS, pad=0)
        logits = of(ids, mask, labels)
        with of.use_adapter("sky"):
            torch.nn.functional.cross_entropy(logits, labels[labels != IGNORED]).backward()
            assert of._apply_now is not None
        found.append([p.grad.clone() for p in of.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_an_observer_sees_each_pass_once():
    of = small.pool("sea")
    of.checkpoint_gradients()
    of.train_only("sea")
    seen = []
    with of.observe(lambda layer, x: seen.append(layer)):
        ids, mask, labels = collate(ROWS, ANSWERS, pad=0)
        of(ids, mask, labels).sum().backward()
        assert len(of._observers) == 1, "the observer is lost after the backward pass"
    assert sorted(seen) == sorted(of.layers)


def test_answers_over_a_kv_cache_do_not_change():
    plain, again = small.pool("sea", activated=True), small.pool("sea", activated=True)
    again.checkpoint_gradients()
    prompts = [small.TEMPLATE.prompt_ids(text) for text in ("one?", "another?")]
    for one in (plain, again):
        one.eval()
    (wanted, _), (found, _) = (one.prefill("sea", prompts) for one in (plain, again))
    assert torch.equal(wanted, found)


def test_a_model_without_named_layers_is_refused():
    of = small.pool("sea")
    for model in (of.model, of.model.get_base_model()):
        model._no_split_modules = None
    with pytest.raises(ConfigError, match="model.gradient_checkpointing=off"):
        of.checkpoint_gradients()
