"""``see-lightning extract``: what training changed, as a LoRA adapter of a rank or an error."""

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from see_lightning.adapters.peft_folder import PeftFolder
from see_lightning.cli.extract import main as extract
from see_lightning.engine.extract import smallest_rank
from see_lightning.merging.changes import dense
from see_lightning.models.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[1, 85, 77, 91, 20, 21]])
WEIGHTS = "model.safetensors"


@pytest.fixture
def base(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained_from(base, *, norms=False, embeddings=False):
    """A copy of a model in which every linear layer has changed."""
    folder = shutil.copytree(base, base.parent / "tuned")
    tensors, draw = load_file(folder / WEIGHTS), torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        chosen = "proj" in name or "c_" in name or (norms and "norm" in name) or (embeddings and "embed" in name)
        if chosen and tensor.is_floating_point() and tensor.ndim == (1 if "norm" in name else 2):
            tensors[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=draw)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def words(*all_):
    return [str(word) for word in all_]


def logits(model):
    with torch.inference_mode():
        return model.float().eval()(IDS).logits


def test_at_full_rank_the_adapter_is_the_trained_model(base, tmp_path, capsys):
    tuned = trained_from(base)
    extract(words(tmp_path / "out", tuned, base, "--error", 0))
    told = capsys.readouterr().out
    assert told.startswith("adapter of rank 32, 14 layers, 0.00% of their change left out")
    assert "not in it" not in told
    ours, theirs = (
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoModelForCausalLM.from_pretrained(tuned),
    )
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-4)


def test_the_layers_of_gpt_2_which_are_transposed_are_extracted_too(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=300, n_positions=32))
    model.save_pretrained(tmp_path / "base")
    tuned = trained_from(tmp_path / "base")
    extract(words(tmp_path / "out", tuned, tmp_path / "base", "--rank", 16))
    ours, theirs = (
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoModelForCausalLM.from_pretrained(tuned),
    )
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-4)


def test_an_error_is_reached_with_the_smallest_rank(base, tmp_path, capsys):
    tuned = trained_from(base)
    extract(words(tmp_path / "out", tuned, base, "--error", 0.5))
    rank = json.loads((tmp_path / "out/adapter_config.json").read_text())["r"]
    errors = [error_of(tmp_path / "out", tuned, base)]
    assert f"{errors[0]:.2%} of their change left out" in capsys.readouterr().out
    extract(words(tmp_path / "less", tuned, base, "--rank", rank - 1))
    errors.append(error_of(tmp_path / "less", tuned, base))
    assert errors[0] <= 0.5 < errors[1]


def error_of(adapter, tuned, base):
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (tuned, base))
    left = whole = 0.0
    for layer, change in PeftFolder(adapter).changes().items():
        delta = ours[f"{layer}.weight"] - theirs[f"{layer}.weight"]
        left += float((delta - dense(change)).norm() ** 2)
        whole += float(delta.norm() ** 2)
    return (left / whole) ** 0.5


def test_ranks_are_chosen_over_all_layers_together():
    strong, weak = torch.tensor([100.0, 50.0, 1.0]), torch.tensor([0.5, 0.1])
    assert smallest_rank([strong, weak], 0.1) == 2
    assert smallest_rank([strong, weak], 0.0) == 3
    assert smallest_rank([weak], 0.99) == 1


def test_what_no_adapter_holds_is_named_with_its_share(base, tmp_path, capsys):
    tuned = trained_from(base, norms=True, embeddings=True)
    extract(words(tmp_path / "out", tuned, base, "--rank", 4))
    *_, told, _ = capsys.readouterr().out.splitlines()
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (tuned, base))
    squares = {name: float((ours[name] - theirs[name]).norm() ** 2) for name in ours}
    others = sum(one for name, one in squares.items() if "norm" in name or "embed" in name)
    assert told.startswith("not in it: model.embed_tokens.weight, ")
    assert f"{(others / sum(squares.values())) ** 0.5:.2%} of the norm of all changes" in told


def other_sizes(folder):
    path = folder / WEIGHTS
    save_file({name: tensor[:-1] if "q_proj" in name else tensor for name, tensor in load_file(path).items()}, path)


def without_a_tensor(folder):
    path = folder / WEIGHTS
    save_file({name: tensor for name, tensor in load_file(path).items() if "layers.1" not in name}, path)


def same(folder):
    shutil.copy(folder.parent / "base" / WEIGHTS, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "more", "told"),
    [
        (other_sizes, ("--rank", 2), "q_proj.weight has the sizes"),
        (without_a_tensor, ("--rank", 2), "they are two models"),
        (same, ("--rank", 2), "do not differ in any linear layer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ("--rank", 2), "different tokenizers"),
        (lambda folder: (folder / WEIGHTS).unlink(), ("--rank", 2), "has no model.safetensors"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"no"), ("--rank", 2), "cannot be read"),
        (lambda folder: None, (), "give either --rank R or --error E"),
        (lambda folder: None, ("--rank", 2, "--error", 0.1), "give either --rank R or --error E"),
        (lambda folder: None, ("--error", 1.5), "--error must be at least 0 and below 1; got 1.5"),
    ],
)
def test_what_cannot_be_extracted_is_refused(base, tmp_path, capsys, change, more, told):
    tuned = trained_from(base)
    change(tuned)
    with pytest.raises(SystemExit):
        extract(words(tmp_path / "out", tuned, base, *more))
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_not_overwritten(base, capsys):
    tuned = trained_from(base)
    with pytest.raises(SystemExit):
        extract(words(tuned, tuned, base, "--rank", 2))
    assert "exists and has files" in capsys.readouterr().err
