"""Which layers are adapted: by name and by kind, by PEFT's default, or all linear ones."""

import pytest

from see_lightning.adapters.targets import resolve_targets
from see_lightning.errors import ConfigError
from tests.models.zoo import random_model


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", ["q_proj", "v_proj"]),
        ("gemma2", ["q_proj", "v_proj"]),
        ("mixtral", ["q_proj", "v_proj"]),
        ("gpt2", ["c_attn"]),
        ("gpt_neox", ["query_key_value"]),
        ("bloom", ["query_key_value"]),
        ("mpt", ["Wqkv"]),
    ],
)
def test_by_default_they_are_pefts_own_for_the_architecture(kind, expected):
    assert resolve_targets(None, random_model(kind), kind) == expected


def test_where_peft_has_none_they_are_asked_for():
    with pytest.raises(ConfigError, match=r"PEFT has no default layers for phi3 .* Linear layers are .*qkv_proj"):
        resolve_targets(None, random_model("phi3"), "phi3")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("gpt2", ["c_attn", "c_proj", "c_fc"]),
        ("mixtral", ["q_proj", "k_proj", "v_proj", "o_proj"]),
        ("phi3", ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"]),
    ],
)
def test_all_linear_layers_are_all_but_the_vocabulary_head(kind, expected):
    assert resolve_targets("all-linear", random_model(kind), kind) == expected


@pytest.mark.parametrize(
    ("kind", "target", "why"),
    [
        ("llama", "embed_tokens", "which is a Embedding"),
        ("llama", "mlp", "which is a LlamaMLP"),
        ("llama", "input_layernorm", "which is a LlamaRMSNorm"),
        ("mixtral", "gate", "which is a MixtralTopKRouter"),
        ("mixtral", "gate_up_proj", "which is a weight but no layer of"),
        ("gpt2", "c_atn", "Did you mean 'c_attn'?"),
        ("gpt2", "q_proj", "Linear layers are c_attn, c_fc, c_proj, lm_head."),
        ("llama", "", "which is a LlamaForCausalLM"),
    ],
)
def test_a_name_that_is_no_linear_layers_is_refused_by_its_kind(kind, target, why):
    with pytest.raises(ConfigError) as told:
        resolve_targets(["o_proj" if kind in ("llama", "mixtral") else "c_proj", target], random_model(kind), kind)
    assert why in str(told.value)
    assert "\n" not in str(told.value)


def test_names_may_be_given_in_full():
    name = "model.layers.0.self_attn.q_proj"
    assert resolve_targets([name], random_model("llama"), "llama") == [name]
