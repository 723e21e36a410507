"""``see-lightning instruct-transfer``: an adapter of a base model on the model that was instruction-tuned from it."""

import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from see_lightning.adapters.peft_folder import PeftFolder
from see_lightning.cli.instruct_transfer import main as instruct_transfer
from see_lightning.engine.instruct_transfer import instruct_transfer as carry
from see_lightning.merging.changes import dense
from see_lightning.models.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[1, 85, 77, 91, 20, 21]])
WEIGHTS = "model.safetensors"


@pytest.fixture
def three(tmp_path):
    """A base model, its instruct model, and an adapter of the base model."""
    base, instruct = tmp_path / "base", tmp_path / "instruct"
    tiny_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    shutil.copytree(base, instruct)
    draw = torch.Generator().manual_seed(0)
    change(instruct, lambda name, tensor: tensor + 0.1 * torch.randn(tensor.shape, generator=draw))
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", base, instruct


def change(folder, make):
    """Replaces the floating-point tensors of a model's folder."""
    tensors = load_file(folder / WEIGHTS)
    save_file({name: make(name, one) for name, one in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def test_the_model_is_the_base_model_with_both_changes(three, tmp_path, capsys):
    adapter, base, instruct = three
    instruct_transfer([str(path) for path in (tmp_path / "out", *three)])
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == str(tmp_path / "out")
    with torch.inference_mode():
        ours = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()(IDS).logits
        model = AutoModelForCausalLM.from_pretrained(base)
        after, before = load_file(instruct / WEIGHTS), load_file(base / WEIGHTS)
        for name, weight in model.named_parameters():
            if name in after:
                weight += after[name] - before[name]
        for layer, one in PeftFolder(adapter).changes().items():
            model.get_submodule(layer).weight += dense(one)
        theirs = model.eval()(IDS).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_cosines_are_those_of_the_changes(three, tmp_path):
    adapter, base, instruct = three
    found = carry(tmp_path / "out", *three)
    after, before, changes = load_file(instruct / WEIGHTS), load_file(base / WEIGHTS), PeftFolder(adapter).changes()
    pairs = {
        layer: (dense(one).flatten(), (after[f"{layer}.weight"] - before[f"{layer}.weight"]).flatten())
        for layer, one in changes.items()
    }
    for layer, pair in pairs.items():
        assert found.by_layer[layer] == pytest.approx(float(torch.cosine_similarity(*pair, dim=0)), abs=1e-5)
    whole = (torch.cat([pair[place] for pair in pairs.values()]) for place in (0, 1))
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(*whole, dim=0)), abs=1e-5)


def test_opposed_changes_have_a_cosine_of_minus_one_and_unchanged_layers_of_zero(three, tmp_path):
    adapter, base, instruct = three
    shutil.rmtree(instruct)
    shutil.copytree(base, instruct)
    layer, one = next(iter(PeftFolder(adapter).changes().items()))
    change(instruct, lambda name, tensor: tensor - dense(one) if name == f"{layer}.weight" else tensor)
    found = carry(tmp_path / "out", *three)
    assert found.by_layer[layer] == pytest.approx(-1, abs=1e-4)
    assert {cosine for name, cosine in found.by_layer.items() if name != layer} == {0.0}


def other_sizes(adapter, base, instruct):
    change(instruct, lambda name, tensor: tensor[:-1].contiguous() if "q_proj" in name else tensor)


def other_layers(adapter, base, instruct):
    path = adapter / "adapter_model.safetensors"
    save_file({name.replace("layers.1", "layers.7"): one for name, one in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (other_sizes, "q_proj has the sizes"),
        (other_layers, "has no linear layer model.layers.7"),
        (lambda adapter, base, instruct: (instruct / "tokenizer.json").write_text("{}"), "different tokenizers"),
        (lambda adapter, base, instruct: shutil.rmtree(adapter), "has no adapter_config.json"),
        (lambda adapter, base, instruct: (instruct / WEIGHTS).unlink(), "has no model.safetensors"),
    ],
)
def test_models_and_adapters_that_do_not_fit_are_refused(three, tmp_path, capsys, spoil, told):
    spoil(*three)
    with pytest.raises(SystemExit):
        instruct_transfer([str(path) for path in (tmp_path / "out", *three)])
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
