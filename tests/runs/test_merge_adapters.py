"""``see-lightning merge``: adapters of a run or of PEFT become one adapter, or a whole model."""

import json
import shutil
import weakref

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from see_lightning import load_ensemble
from see_lightning.adapters.peft_folder import PeftFolder
from see_lightning.cli.merge import main as merge
from see_lightning.config.search_path import CONF
from see_lightning.engine.asking import Request
from see_lightning.merging.changes import dense
from tests.runs import toy
from tests.runs.foreign import generated

RULES = sorted(path.stem for path in (CONF / "rule").glob("*.yaml"))
QUERIES = ["iceice120?", "skysky105?", "seasea111?"]
LEARNS = ("optim.epochs=25", "model.dtype=fp32")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The toy's base model as a folder that transformers loads."""
    folder = tmp_path_factory.mktemp("base")
    from see_lightning.models.tiny import tiny_model, tiny_tokenizer

    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def trained(base, model, tmp_path):
    """The adapters of three tasks, which name that base model."""
    run = toy.whole(base, "method=stl", *LEARNS).directory
    folders = []
    for stage in ("01-sky", "02-sea", "03-ice"):
        folder = shutil.copytree(run / "tasks" / stage / "expert", tmp_path / stage)
        change_settings(folder, base_model_name_or_path=str(model))
        folders.append(folder)
    return folders


def change_settings(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def words(*all_):
    return [str(word) for word in all_]


def changes(folder):
    return {layer: dense(change) for layer, change in PeftFolder(folder).changes().items()}


def peft_greedy(folder, method, query):
    return generated(AutoPeftModelForCausalLM.from_pretrained(folder).float().eval(), method, query)


@pytest.mark.parametrize("rule", [name for name in RULES if name != "frank_wolfe"])
def test_the_merged_adapter_answers_under_peft_as_the_run_that_merges(base, trained, tmp_path, rule):
    run = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", "method=merge", *LEARNS, f"rule={rule}")).directory
    ensemble = load_ensemble(run, max_new_tokens=4)
    merge(words(tmp_path / "out", *trained, f"rule={rule}", "--seed", 3))
    for query in QUERIES:
        (reply,) = ensemble.reply([Request(query)])
        if not rule.startswith("dare"):  # whose draws are those of the tasks' names there
            assert peft_greedy(tmp_path / "out", ensemble.method, query) == reply.text


def test_a_run_stands_for_its_experts(base, tmp_path, capsys):
    run = toy.whole(base, "method=stl", *LEARNS).directory
    merge(words(tmp_path / "one", *(run / "tasks" / stage / "expert" for stage in ("01-sky", "02-sea", "03-ice"))))
    merge(words(tmp_path / "all", run))
    one, other = changes(tmp_path / "one"), changes(tmp_path / "all")
    assert all(torch.equal(one[layer], other[layer]) for layer in one)
    moses = toy.whole(base, "method=moses").directory
    with pytest.raises(SystemExit):
        merge(words(tmp_path / "none", moses))
    assert "need their method to answer" in capsys.readouterr().err


def test_a_rule_that_needs_rows_is_for_runs(trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        merge(words(tmp_path / "out", *trained, "rule=frank_wolfe"))
    assert "use it in a run: method=merge rule=frank_wolfe" in capsys.readouterr().err


def test_a_checkpoint_is_the_base_model_with_the_changes_of_the_adapter(base, model, trained, tmp_path, capsys):
    merge(words(tmp_path / "adapter", *trained, "rule=opcm"))
    merge(words(tmp_path / "whole", *trained, "rule=opcm", "--checkpoint"))
    assert "checkpoint" in capsys.readouterr().out
    ids = torch.tensor([[1, 85, 77, 91, 20, 21]])
    with torch.inference_mode():
        under = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").float().eval()(ids).logits
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(model).float().eval()(ids).logits
    torch.testing.assert_close(whole, under, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole, plain, atol=1e-2)
    assert (tmp_path / "whole" / "tokenizer_config.json").exists()


def test_adapters_of_other_ranks_and_scales_are_merged_by_what_they_change(base, model, tmp_path):
    folders = []
    for rank, settings in ((2, {}), (5, {"use_rslora": True}), (3, {"lora_alpha": 7})):
        torch.manual_seed(rank)
        config = LoraConfig(
            **{"r": rank, "lora_alpha": 16, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings}
        )
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
        adapted.save_pretrained(tmp_path / str(rank))
        folders.append(tmp_path / str(rank))
        (layer,) = (
            name for name, _ in adapted.base_model.model.named_modules() if name.endswith("layers.0.self_attn.q_proj")
        )
        module = adapted.base_model.model.get_submodule(layer)
        torch.testing.assert_close(changes(tmp_path / str(rank))[layer], module.get_delta_weight("default").detach())
    merge(words(tmp_path / "out", *folders))
    found = changes(tmp_path / "out")
    for layer, delta in found.items():
        torch.testing.assert_close(delta, sum(changes(one)[layer] for one in folders) / 3, rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["r"] == 10


@pytest.mark.parametrize("rule", ["average", "opcm", "slerp", "magmax", "ties"])
def test_of_twenty_adapters_few_are_in_memory_at_a_time_where_the_rule_keeps_one(trained, tmp_path, monkeypatch, rule):
    folders = [shutil.copytree(trained[number % 3], tmp_path / "many" / str(number)) for number in range(20)]
    read, seen, most = PeftFolder.changes, [], 0

    def noted(folder):
        nonlocal most
        found = read(folder)
        seen.append([weakref.ref(change.b_OR) for change in found.values()])
        most = max(most, sum(any(one() is not None for one in refs) for refs in seen))
        return found

    monkeypatch.setattr(PeftFolder, "changes", noted)
    merge(words(tmp_path / "out", *folders, f"rule={rule}"))
    assert len(seen) == 20
    assert most == 20 if rule == "ties" else most <= 3


def test_truncation_tells_its_error_and_the_card_the_rule(trained, tmp_path, capsys):
    merge(words(tmp_path / "exact", *trained, "rule=task_arithmetic", "rule.scale=0.7"))
    merge(words(tmp_path / "short", *trained, "rule=task_arithmetic", "rule.scale=0.7", "--rank", 3))
    *_, told, _ = capsys.readouterr().out.splitlines()
    exact, short = changes(tmp_path / "exact"), changes(tmp_path / "short")
    left = sum(float((exact[layer] - short[layer]).norm() ** 2) for layer in exact) ** 0.5
    whole = sum(float(delta.norm() ** 2) for delta in exact.values()) ** 0.5
    assert "adapter of rank 3, " in told
    assert f"{left / whole:.2%} of the merged change left out" in told
    card = (tmp_path / "short" / "README.md").read_text()
    assert "| merged | sky, sea, ice |" in card
    assert "| rule | task_arithmetic: sparsify none, density 1, consensus sum, scale 0.7 |" in card
    assert f"{left / whole:.2%} of the norm" in card


def other_rank(folder):
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor[:-1] if "lora_A" in name else tensor for name, tensor in load_file(path).items()}, path)


def with_another_tensor(folder):
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.head.weight": torch.ones(2)}, path)


def without_a_layer(folder):
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "layers.1" not in name}, path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: change_settings(folder, base_model_name_or_path="other"), "differ in the base model"),
        (lambda folder: change_settings(folder, revision="abc"), None),
        (
            lambda folder: change_settings(folder, use_dora=True),
            "with use_dora=True the update is not that of plain LoRA",
        ),
        (lambda folder: change_settings(folder, peft_type="IA3"), "peft_type is IA3"),
        (
            lambda folder: change_settings(folder, alora_invocation_tokens=[1]),
            "differ in the tokens from which on they act",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), None),
        (without_a_layer, "only one of two changes model.layers.1"),
        (other_rank, "the file is damaged"),
        (with_another_tensor, "holds head, which no LoRA adapter has"),
        (lambda folder: shutil.rmtree(folder), "has no adapter_config.json"),
    ],
)
def test_adapters_that_do_not_belong_together_are_refused(trained, tmp_path, capsys, change, told):
    change(trained[1])
    if told is None:  # a point that one of them does not tell
        merge(words(tmp_path / "out", *trained))
        return
    with pytest.raises(SystemExit):
        merge(words(tmp_path / "out", *trained))
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_or_prompt_is_refused(trained, tmp_path, capsys):
    for number, folder in enumerate(trained):
        (folder / "tokenizer.json").write_text(json.dumps({"number": number}))
    with pytest.raises(SystemExit):
        merge(words(tmp_path / "out", *trained))
    assert "differ in the tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("rule=tiess",), "tiess"),
        (("rule=ties", "rule.density=3"), "rule.density must be between 0 and 1"),
        (("--rank", 0), "--rank"),
        (("--rank", 3, "--checkpoint"), "--rank is of an adapter"),
        (("--dtype", "bf16"), "--dtype is of a checkpoint"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(trained, tmp_path, capsys, more, told):
    with pytest.raises(SystemExit):
        merge(words(tmp_path / "out", *trained, *more))
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_name_of_the_base_model_is_that_of_the_result(model, trained, tmp_path):
    for folder in trained:
        change_settings(folder, base_model_name_or_path="/moved/away", revision="abc")
    merge(words(tmp_path / "out", *trained, "--base", model))
    settings = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == (str(model), None)
    assert AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    merge(words(tmp_path / "whole", *trained, "--base", model, "--checkpoint"))
    merge(words(tmp_path / "kept", *trained))
    settings = json.loads((tmp_path / "kept/adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("/moved/away", "abc")


def test_activated_adapters_become_no_checkpoint(trained, tmp_path, capsys):
    for folder in trained:
        change_settings(folder, alora_invocation_tokens=[1])
    with pytest.raises(SystemExit):
        merge(words(tmp_path / "out", *trained, "--checkpoint"))
    assert "act on the whole prompt" in capsys.readouterr().err
    merge(words(tmp_path / "out", *trained))
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["alora_invocation_tokens"] == [1]


def test_one_adapter_or_a_folder_with_files_is_refused(trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        merge(words(tmp_path / "out", trained[0]))
    assert "at least two adapters" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        merge(words(trained[2], *trained[:2]))
    assert "exists and has files" in capsys.readouterr().err
