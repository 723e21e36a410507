"""Attention with shared keys and values, against transformers' own."""

import pytest
import torch
from torch import nn

from see_lightning.config.schema import ModelConfig
from see_lightning.inference.forward import extend
from see_lightning.inference.kv_cache import Tree
from see_lightning.models import base
from see_lightning.models.attention import NAME
from see_lightning.models.tiny import tiny_model

TREE = Tree((33, 44, 55), (-1, 0, 0))
ROWS = [[3, 4, 5, 6, 7, 8], [90], [100, 101, 102]]


def model(attention: str) -> nn.Module:
    made = tiny_model().eval()
    made.set_attn_implementation(attention)
    assert made.config.num_key_value_heads < made.config.num_attention_heads, "nothing would be shared"
    return made


@pytest.mark.parametrize("theirs", ["eager", "sdpa"])
def test_logits_and_gradients_are_those_of_transformers(theirs):
    found = []
    for attention in (NAME, theirs):
        made = model(attention)
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
