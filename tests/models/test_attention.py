"""Attention with shared keys and values, against transformers' own."""

import pytest
import torch
from torch import nn

from see_lightning.config.schema import ModelConfig
from see_lightning.errors import ConfigError
from see_lightning.inference.forward import extend
from see_lightning.inference.kv_cache import Tree
from see_lightning.models import attention, base
from see_lightning.models.attention import NAME
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.batches import left_pad

TREE = Tree((33, 44, 55), (-1, 0, 0))
ROWS = [[3, 4, 5, 6, 7, 8], [90], [100, 101, 102]]


def model(name: str) -> nn.Module:
    made = tiny_model().eval()
    made.set_attn_implementation(name)
    assert made.config.num_key_value_heads < made.config.num_attention_heads, "nothing would be shared"
    return made


@pytest.mark.parametrize("theirs", ["eager", "sdpa"])
def test_logits_and_gradients_are_those_of_transformers(theirs):
    found = []
    for name in (NAME, theirs):
        made = model(name)
        _, read = extend(made, None, ROWS)
        logits, _ = extend(made, read, [[9, 10]] * 3, tree=TREE, keep=(-5, -4, -3, -2, -1))
        logits.logsumexp(dim=-1).sum().backward()
        found.append((logits.detach(), [p.grad for p in made.parameters()]))
    (ours, our_gradients), (other, their_gradients) = found
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)
    for gradient, expected in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_dropout_draws_only_in_training():
    made = model(NAME)
    made.config.attention_dropout = 0.9
    for layer in made.model.layers:
        layer.self_attn.attention_dropout = 0.9
    ids = torch.tensor([ROWS[0]])
    calm = made(input_ids=ids).logits
    assert torch.equal(made(input_ids=ids).logits, calm)
    made.train()
    torch.manual_seed(0)
    assert not torch.allclose(made(input_ids=ids).logits, calm, atol=1e-4)


@pytest.mark.parametrize(("kind", "expected"), [("llama", NAME), ("gemma2", "eager")])
def test_only_models_whose_attention_is_plain_get_it(monkeypatch, tmp_path, kind, expected):
    made = model("eager")
    made.config.model_type = kind
    monkeypatch.setattr(base, "tiny_model", lambda: made)
    loaded = base.load_model(ModelConfig(source="tiny", name="tiny"), tmp_path, "fp32")
    assert loaded.config._attn_implementation == expected


@pytest.mark.parametrize("theirs", ["eager", "sdpa"])
def test_long_rows_are_as_in_transformers_too(monkeypatch, theirs):
    monkeypatch.setattr(attention, "LONG", 6)
    calls = []
    fused = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *args, **more: calls.append(1) or fused(*args, **more)
    )
    ids, mask = left_pad(ROWS, 0), left_pad([[1] * len(row) for row in ROWS], 0)
    found = []
    for name in (NAME, theirs):
        made = model(name)
        calls.clear()
        logits = made(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
        logits.logsumexp(dim=-1).sum().backward()
        found.append((logits.detach(), [p.grad for p in made.parameters()], bool(calls)))
    (ours, our_gradients, fused_here), (other, their_gradients, _) = found
    assert fused_here
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)
    for gradient, expected in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_a_long_row_keeps_no_scores_for_the_backward_pass():
    queries = attention.LONG
    kept = []
    parts = [torch.randn(1, heads, queries, 8, requires_grad=True) for heads in (4, 2, 2)]
    mask = torch.zeros(1, 1, queries, queries)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        attention.grouped_attention(nn.Identity(), *parts, mask, scaling=0.3)
    assert not [one for one in kept if one.numel() >= queries**2 and one.data_ptr() != mask.data_ptr()]


@pytest.mark.parametrize(
    ("word", "kind", "has_gpu", "expected"),
    [
        ("auto", "llama", False, NAME),
        ("auto", "gemma2", False, "eager"),
        ("auto", "llama", True, "sdpa"),
        ("eager", "llama", True, "eager"),
        ("flash", "llama", True, "flash_attention_2"),
    ],
)
def test_the_choice_of_an_attention(word, kind, has_gpu, expected):
    assert attention.attention_name(word, kind, has_gpu) == expected


@pytest.mark.parametrize(
    ("word", "kind", "said"), [("grouped", "gemma2", "choose eager or sdpa"), ("flash", "llama", "needs a GPU")]
)
def test_an_attention_that_is_not_to_be_had_is_refused(word, kind, said):
    with pytest.raises(ConfigError, match=said):
        attention.attention_name(word, kind, False)


@pytest.mark.parametrize("word", ["eager", "sdpa", "grouped"])
def test_the_loaded_model_has_the_attention_that_was_chosen(tmp_path, word):
    loaded = base.load_model(ModelConfig(source="tiny", name="tiny", attention=word), tmp_path, "fp32")
    assert loaded.config._attn_implementation == word
