"""Which files of a model say how it computes and what its tokens are, and when a kept digest counts."""

import os

import pytest

from see_lightning.config.schema import ModelConfig
from see_lightning.models import digest
from see_lightning.models.digest import changed_files, model_files, weights_of


def test_files_that_nothing_is_loaded_from_are_no_weights():
    files = {
        "config.json": "a",
        "model.safetensors": "b",
        "training_args.bin": "c",
        "pytorch_model.bin": "d",
        "README.md": "e",
    }
    assert weights_of(files) == {"model.safetensors": "b"}
    old = {"config.json": "a", "pytorch_model-00001-of-00002.bin": "b", "optimizer.bin": "c", "modeling_x.py": "d"}
    assert set(weights_of(old)) == {"pytorch_model-00001-of-00002.bin"}


FILES = {
    name: "a" for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.json", "trainer_state.json")
}


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "tokenizer_config.json",
             "special_tokens_map.json", "modeling_own.py", "model.safetensors.index.json", "adapter_config.json"]
)  # fmt: skip
def test_what_is_read_when_a_model_is_loaded_is_compared(name):
    assert changed_files(FILES, {**FILES, name: "b"}, chat=False) == [name]
    assert changed_files({**FILES, name: "b"}, FILES, chat=False) == [name]


@pytest.mark.parametrize("name", ["vocab.json", "trainer_state.json", "LICENSE.txt", "pytorch_model.bin", "merges.txt"])
def test_what_is_not_read_is_not(name):
    assert changed_files(FILES, {**FILES, name: "b"}, chat=True) == []


def test_a_vocabulary_counts_where_there_is_no_other_and_a_chat_template_where_it_is_used():
    old = {name: "a" for name in FILES if name != "tokenizer.json"}
    assert changed_files(old, {**old, "vocab.json": "b"}, chat=False) == ["vocab.json"]
    with_chat = {**FILES, "chat_template.jinja": "b"}
    assert changed_files(FILES, with_chat, chat=True) == ["chat_template.jinja"]
    assert changed_files(FILES, with_chat, chat=False) == []


def test_where_weights_alone_were_noted_nothing_else_is_compared():
    assert changed_files({"model.safetensors": "a"}, FILES, chat=True) == []
    assert changed_files({"model.safetensors": "b"}, FILES, chat=True) == ["model.safetensors"]
    assert changed_files({}, FILES, chat=True) == []


def test_a_kept_digest_of_a_large_file_hides_no_change(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "LARGE", 4)
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"first")
    config, kept = ModelConfig(source="hub", name=str(tmp_path / "model")), tmp_path / "digests.json"

    def now() -> str:
        return model_files(config, tmp_path)["model.safetensors"]

    first = now()
    assert not kept.exists(), "a file that was written just now may be written once more within the same tick"
    monkeypatch.setattr(digest, "RECENT", -1.0)
    assert now() == first
    assert first in kept.read_text()
    before = weights.stat()
    weights.write_bytes(b"other")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert now() != first, "of the same size, with its old time set back"
    for damaged in ("[]", '{"a": 1}', "null", "{"):
        kept.write_text(damaged)
        assert len(now()) == 64
