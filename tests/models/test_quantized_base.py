"""The base model in 8 and 4 bits: its weights, its gradients, its bytes, and what is refused."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.schema import AdapterConfig, ModelConfig
from see_lightning.engine.quantized import _base_notices
from see_lightning.errors import ConfigError
from see_lightning.models.base import DTYPES, load_model, skeleton
from see_lightning.models.checkpoint import exact_weights
from see_lightning.models.quantized_base import (
    check_quantizable,
    loading,
    restored,
    restored_bytes,
    stored_bytes,
    weight_error,
)
from tests.models.zoo import LIKE_LLAMA, model_folder, random_model

# Normal weights in blocks of 64: NF4's error by numerical integration is 9.1 %; int8 with a scale a row, uniform rounding.
ERRORS = {"nf4": (0.085, 0.105), "int8": (0.002, 0.009)}
KINDS = pytest.mark.parametrize("kind", ERRORS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama whose layers have 64 or 128 inputs, as nf4 needs on a CPU."""
    torch.manual_seed(0)
    wide = LlamaForCausalLM(LlamaConfig(**{**LIKE_LLAMA, "hidden_size": 64, "intermediate_size": 128}))
    folder = model_folder("llama", tmp_path_factory.mktemp("wide") / "llama")
    wide.save_pretrained(folder)
    return folder


def config(folder, kind):
    return ModelConfig(source="hub", name=str(folder), prompt="plain", quantization=kind)


@KINDS
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_quantised_weights_are_within_the_error_of_their_kind(folder, tmp_path, kind, dtype):
    model = load_model(config(folder, kind), tmp_path, dtype)
    error = weight_error(model, exact_weights(config(folder, kind), tmp_path))
    assert ERRORS[kind][0] < error < ERRORS[kind][1]
    assert model.get_output_embeddings().weight.dtype == DTYPES[dtype], "the vocabulary head keeps its dtype"


@KINDS
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_layer_in_evaluation_mode_passes_gradients_after_a_pass_without_them(folder, tmp_path, kind, dtype):
    layer = load_model(config(folder, kind), tmp_path, dtype).model.layers[0].self_attn.q_proj
    assert not layer.training
    x = torch.randn(2, 5, 64, dtype=DTYPES[dtype], requires_grad=True)
    with torch.no_grad():
        layer(x.detach())
    weight = restored(layer)
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(y.float(), x.detach().float() @ weight.T, rtol=0.02, atol=0.02)
    torch.testing.assert_close(x.grad.float(), g.float() @ weight, rtol=0.02, atol=0.02)


@KINDS
def test_gradients_are_those_of_a_model_with_the_restored_weights(folder, tmp_path, kind):
    ids = torch.randint(3, 200, (2, 9))

    def gradients(model):
        pool = ExpertPool(model, AdapterConfig(targets=["q_proj", "down_proj"], dropout=0.0), "test")
        pool.add_expert("one", weights_seed=0)
        pool.train_only("one")
        for _, b in pool.pairs("one").values():
            torch.nn.init.normal_(b.data, std=0.1, generator=torch.Generator().manual_seed(1))
        with pool.learning():
            pool.model(ids).logits.float().logsumexp(-1).sum().backward()
        return [weight.grad for weight in pool.weights_of(["one"])]

    quantised = load_model(config(folder, kind), tmp_path, "fp32")
    plain = load_model(config(folder, "none"), tmp_path, "fp32")
    for path, layer in quantised.named_modules():
        if "bitsandbytes" in type(layer).__module__ and hasattr(layer, "weight"):
            plain.get_parameter(f"{path}.weight").data.copy_(restored(layer))
    for ours, theirs in zip(gradients(quantised), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert ours.abs().max() > 0


@KINDS
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_bytes_of_the_estimate_are_those_that_are_kept(folder, tmp_path, kind, dtype):
    model = load_model(config(folder, kind), tmp_path, dtype)
    bones = skeleton(config(folder, kind), tmp_path)
    kept = sum(weight.nbytes for weight in model.parameters())
    for layer in model.modules():
        if "bitsandbytes" in type(layer).__module__ and (state := getattr(layer.weight, "quant_state", None)):
            kept += state.absmax.nbytes + state.state2.absmax.nbytes
        elif "bitsandbytes" in type(layer).__module__:
            kept += layer.weight.SCB.nbytes
    assert stored_bytes(bones, kind, DTYPES[dtype]) == kept
    assert (
        stored_bytes(bones, "none", DTYPES[dtype])
        == sum(w.numel() for w in bones.parameters()) * DTYPES[dtype].itemsize
    )
    each = DTYPES[dtype].itemsize + {"int8": 4, "nf4": 0}[kind]
    assert restored_bytes(bones, kind, DTYPES[dtype]) == 64 * 128 * each
    assert restored_bytes(bones, "none", DTYPES[dtype]) == 0


def test_a_layer_whose_weights_a_cpu_would_restore_wrongly_is_refused():
    refuse = partial(check_quantizable, random_model("llama"), name="mine")
    with pytest.raises(ConfigError, match=r"q_proj of mine has 32; choose model.quantization=int8 or a GPU"):
        refuse("nf4", has_gpu=False)
    refuse("nf4", has_gpu=True)
    refuse("int8", has_gpu=False)
    refuse("none", has_gpu=False)
    from bitsandbytes import functional

    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    again = functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4"))
    assert (again - weight).norm() / weight.norm() > 0.15, "bitsandbytes restores them rightly now: drop the refusal"


def test_files_that_lack_the_prefix_of_the_base_model_are_read_and_others_refused(tmp_path):
    place = model_folder("gpt2", tmp_path / "gpt2")
    path = place / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    model = load_model(config(place, "int8"), tmp_path, "fp32")
    assert 0.002 < weight_error(model, exact_weights(config(place, "int8"), tmp_path)) < 0.009
    save_file({f"other.{name}": tensor for name, tensor in tensors.items()}, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"has no transformer.h.0.attn.c_attn.weight"):
        weight_error(model, exact_weights(config(place, "int8"), tmp_path))


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"needs bitsandbytes and accelerate: pip install 'see-lightning\[quantized\]'"
    ):
        loading("int8", torch.float32)
    assert loading("none", torch.float32) == {}


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        ({}, "stored as nf4; to count the answers that differ"),
        ({"error": 0.0912}, "nf4, with an error of 9.1% of the norm of their weights; to count"),
        (
            {
                "error": 0.09,
                "compared_with": "runs/x",
                "answers_compared": 9,
                "answers_changed": 2,
                "answered_by_others": 1,
            },
            "weights; 2 of 9 answers differ from those of runs/x, of which 1 come from another expert.",
        ),
    ],
)
def test_what_is_said_of_it(noted, said):
    (notice,) = _base_notices({"base_quantization": {"kind": "nf4", "bytes": 9, **noted}})
    assert said in notice
