"""Loading the base model: which precision, what is refused, and no code from elsewhere unless asked for."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from see_lightning.config.schema import ModelConfig
from see_lightning.errors import ConfigError
from see_lightning.inference import forward
from see_lightning.models import base
from see_lightning.models.tiny import tiny_model, tiny_tokenizer

TINY = ModelConfig(source="tiny", name="tiny")


@pytest.mark.parametrize(
    ("accelerator", "cuda", "gpu_bf16", "capabilities", "expected"),
    [
        ("cpu", False, False, {}, "fp32"),
        ("cpu", False, False, {"avx2": True, "avx512": True, "avx512_bf16": False}, "fp32"),
        ("cpu", False, False, {"avx512_bf16": True}, "bf16"),
        ("cpu", False, False, {"amx_bf16": True}, "bf16"),
        ("cpu", True, True, {}, "fp32"),  # a GPU that is not used does not matter
        ("gpu", True, True, {}, "bf16"),
        ("gpu", True, False, {"amx_bf16": True}, "fp32"),  # nor does the CPU beside a GPU that is
        ("auto", True, True, {}, "bf16"),
        ("auto", False, False, {"amx_bf16": True}, "bf16"),
        ("auto", False, False, {}, "fp32"),
        ("mps", False, False, {"amx_bf16": True}, "fp32"),
    ],
)
def test_the_precision_is_the_one_that_the_hardware_in_use_is_fast_at(
    monkeypatch, accelerator, cuda, gpu_bf16, capabilities, expected
):
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or gpu_bf16

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert base.fast_dtype(accelerator) == expected


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_base_model_is_frozen_and_in_the_precision_asked_for(tmp_path, dtype, expected):
    model = base.load_model(TINY, tmp_path, dtype)
    assert not model.training
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(expected, False)}


class Loader:
    """In place of a class of transformers: notes how it is called."""

    def __init__(self, result: object) -> None:
        self.result, self.calls = result, []

    def from_pretrained(self, *args: object, **kwargs: object) -> object:
        self.calls.append((args, kwargs))
        told = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
        return (self.result, told) if kwargs.get("output_loading_info") else self.result


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"revision": None, "trust_remote_code": False}),
        ({"revision": "abc"}, {"revision": "abc", "trust_remote_code": False}),
        ({"trust_remote_code": True}, {"revision": None, "trust_remote_code": True}),
    ],
)
def test_code_that_comes_with_a_model_is_trusted_only_when_asked_for(monkeypatch, tmp_path, settings, expected):
    tokenizers, models, configs = Loader(tiny_tokenizer()), Loader(tiny_model()), Loader(tiny_model().config)
    monkeypatch.setattr(base, "AutoTokenizer", tokenizers)
    monkeypatch.setattr(base, "AutoConfig", configs)
    monkeypatch.setattr(base, "AutoModelForCausalLM", models)
    config = ModelConfig(source="hub", name="owner/name", **settings)
    base.load_tokenizer(config, tmp_path)
    base.load_model(config, tmp_path, "bf16")
    assert tokenizers.calls == configs.calls == [(("owner/name",), expected)]
    ((place, given),) = models.calls
    assert place == ("owner/name",)
    assert given.items() >= {"dtype": torch.bfloat16, **expected}.items()


def test_a_packages_model_is_loaded_from_its_folder_without_any_code(monkeypatch, tmp_path):
    tokenizers, folders = Loader(tiny_tokenizer()), []
    monkeypatch.setattr(base, "AutoTokenizer", tokenizers)
    monkeypatch.setattr(base, "smollm2_folder", lambda cache: folders.append(cache) or Path("/converted"))
    base.load_tokenizer(ModelConfig(source="package", name="smol"), tmp_path)
    assert folders == [tmp_path]
    assert tokenizers.calls == [(("/converted",), {"revision": None, "trust_remote_code": False})]


def test_a_tokenizer_whose_answers_could_not_end_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(base, "AutoTokenizer", Loader(SimpleNamespace(eos_token_id=None)))
    with pytest.raises(ConfigError, match="the tokenizer of owner/name has no end-of-sequence token"):
        base.load_tokenizer(ModelConfig(source="hub", name="owner/name"), tmp_path)


def test_an_end_token_of_number_zero_is_one(monkeypatch, tmp_path):
    monkeypatch.setattr(base, "AutoTokenizer", Loader(SimpleNamespace(eos_token_id=0)))
    assert base.load_tokenizer(ModelConfig(source="hub", name="owner/name"), tmp_path).eos_token_id == 0


def test_a_model_is_named_with_its_revision_where_it_has_one():
    assert base.model_id(TINY) == "tiny"
    assert base.model_id(ModelConfig(source="hub", name="owner/name", revision="abc")) == "owner/name@abc"


def test_the_head_runs_on_the_chosen_positions_row_by_row_and_is_whole_again_afterwards():
    model = tiny_model().eval()
    ids = torch.arange(3, 27).view(3, 8)
    chosen_BS = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) < 0.4
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        with forward.head_on(model, chosen_BS):
            some = model(input_ids=ids).logits
        torch.testing.assert_close(some[0], whole[chosen_BS], atol=1e-6, rtol=1e-6)
        with pytest.raises(ZeroDivisionError), forward.head_on(model, chosen_BS):
            raise ZeroDivisionError
        assert torch.equal(model(input_ids=ids).logits, whole)
