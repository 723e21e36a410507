"""What a model's own configuration tells: refused before its weights are loaded, in one line that says what would do."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from see_lightning.config.schema import ModelConfig
from see_lightning.errors import ConfigError
from see_lightning.models import base
from see_lightning.models.architecture import longest_text, shortest_window
from tests.models.zoo import CONFIGS, model_folder


def given(place: Path | str, max_length: int = 512) -> ModelConfig:
    return ModelConfig(source="hub", name=str(place), max_length=max_length)


def refusal(place: Path | str, tmp_path: Path, **settings: int) -> str:
    with pytest.raises(ConfigError) as told:
        base.load_settings(given(place, **settings), tmp_path)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("t5", "no causal language model"),
        ("bart", "no causal language model"),
        ("bert", "reads in both directions"),
        ("mamba", "so experts cannot share what it has read"),
        ("rwkv", "so experts cannot share what it has read"),
        ("windows", "an attention window of 64 tokens, fewer than model.max_length=512; set model.max_length=64"),
        ("gpt_neo", "an attention window of 256 tokens"),
    ],
)
def test_a_kind_that_experts_cannot_share_is_refused_by_its_configuration_alone(tmp_path, kind, why):
    CONFIGS[kind]().save_pretrained(tmp_path / kind)  # no weights
    assert why in refusal(tmp_path / kind, tmp_path)


def test_a_window_as_long_as_what_is_read_is_served_and_opened(tmp_path):
    CONFIGS["windows"]().save_pretrained(tmp_path / "windows")
    settings = base.load_settings(given(tmp_path / "windows", max_length=64), tmp_path)
    assert settings.sliding_window > 10**6
    assert longest_text(settings) == 64  # what may be asked of it without templates too
    assert shortest_window(CONFIGS["windows"]()) == 64
    assert shortest_window(CONFIGS["llama"]()) is None


def test_a_model_that_reads_less_than_is_asked_for_is_refused(tmp_path):
    CONFIGS["gpt2"]().save_pretrained(tmp_path / "gpt2")
    assert "reads at most 2048 tokens" in refusal(tmp_path / "gpt2", tmp_path, max_length=4096)


def test_a_path_that_is_no_model_is_told_as_a_path(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.json").write_text(json.dumps({"model_type": "never_heard_of"}))
    for place, why in {
        tmp_path / "missing": "is no folder here",
        "./missing": "is no folder here",
        "~/missing": "~ is not resolved",
        "some/deep/folder": "is no folder here",
        tmp_path / "broken" / "config.json": "is a file; give the folder",
        tmp_path / "empty": "it holds nothing",
        tmp_path / "adapter": "It is an adapter",
        tmp_path / "broken": "Download the complete files",
        tmp_path / "unknown": "never_heard_of",
    }.items():
        told = refusal(place, tmp_path)
        assert why in told
        assert "repo" not in told


def test_weights_that_are_missing_or_broken_are_refused_instead_of_drawn_at_random(tmp_path):
    folder = model_folder("llama", tmp_path / "llama")
    tensors = load_file(folder / "model.safetensors")
    left_out = "model.layers.1.mlp.up_proj.weight"
    save_file(
        {name: t for name, t in tensors.items() if name != left_out}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ConfigError, match=f"lack 1 of its weights, such as {left_out}"):
        base.load_model(given(folder), tmp_path, "fp32")
    (folder / "model.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(ConfigError, match="Download the complete files"):
        base.load_model(given(folder), tmp_path, "fp32")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no file named"):
        base.load_model(given(folder), tmp_path, "fp32")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "falcon"])
def test_files_with_tensors_too_many_or_of_another_size_are_refused_with_their_names(tmp_path, kind):
    folder = model_folder(kind, tmp_path / kind)
    tensors = load_file(folder / "model.safetensors")
    name = min(tensors)
    for other, told in (
        ({"left.over": torch.zeros(2)}, "hold 1 tensors that its configuration has no place for, such as left.over"),
        ({name: torch.zeros(3, 3)}, r"hold 1 tensors of another size than its configuration says: .*\[3, 3\] in the"),
    ):
        save_file({**tensors, **other}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ConfigError, match=told):
            base.load_model(given(folder), tmp_path, "fp32")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gptj", "transformer.h.0.attn.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_masks_in_files_of_earlier_versions_are_no_fault(tmp_path, kind, name):
    folder = model_folder(kind, tmp_path / kind)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    base.load_model(given(folder), tmp_path, "fp32")


def test_a_skeleton_has_no_weights(tmp_path):
    CONFIGS["gpt2"]().save_pretrained(tmp_path / "gpt2")
    assert {weight.device for weight in base.skeleton(given(tmp_path / "gpt2"), tmp_path).parameters()} == {
        torch.device("meta")
    }
