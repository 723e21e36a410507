"""``see-lightning experts``: the list, and an expert as a folder for other programs."""

import json
import re

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig
from transformers import AutoModelForCausalLM

from see_lightning.cli.experts import main as experts
from see_lightning.engine.asking import Request
from see_lightning.engine.ensemble import load_ensemble
from see_lightning.engine.experts import list_experts
from tests.runs import toy
from tests.runs.foreign import generated
from tests.runs.test_growing import all_files


def test_the_list_has_what_the_run_has_noted(base, capsys):
    directory = toy.whole(base).directory
    found = list_experts(directory)
    results = toy.read_results(directory)
    assert [one.task for one in found] == list(toy.TASKS)
    assert [one.rows for one in found] == list(toy.TASKS.values())
    assert [one.rows + one.refused for one in found] == results["counts"]["train_examples"]
    assert [one.refused for one in found] == results["counts"]["negatives"]
    assert [one.score for one in found] == [results["matrix"][place][place] for place in range(3)]
    capsys.readouterr()
    experts([str(directory)])
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines() if re.match(r"\s*0\d-", line)] == list(toy.TASKS)


def test_thresholds_and_rehearsed_rows_are_listed(base):
    calibrated = list_experts(toy.whole(base, "method.calibrate_on=train").directory)
    assert any(one.threshold is not None for one in calibrated)
    replayed = list_experts(toy.whole(base, "method=replay").directory)
    assert [one.rows for one in replayed] == list(toy.TASKS.values())
    assert [one.rehearsed > 0 for one in replayed] == [False, True, True]
    assert {one.refused for one in replayed} == {0}


@pytest.mark.parametrize("settings", [(), ("method=stl",), toy.ACTIVATED], ids=["see", "stl", "activated"])
def test_an_exported_expert_answers_under_peft_as_the_run_does(base, tmp_path, capsys, settings):
    directory = toy.whole(base, *settings).directory
    before = all_files(directory)
    ensemble = load_ensemble(directory, max_new_tokens=8)
    saved = tmp_path / "base"
    with ensemble.method.pool.use_adapter(None):
        model = ensemble.method.pool.model
        plain = getattr(model, "get_base_model", lambda: model)()
    AutoModelForCausalLM.from_config(plain.config).save_pretrained(saved)
    weights = {name.replace(".base_layer", ""): one for name, one in plain.state_dict().items() if "lora_" not in name}
    fresh = AutoModelForCausalLM.from_pretrained(saved)
    fresh.load_state_dict(weights)
    fresh.save_pretrained(saved)
    experts([str(directory), "export", "sea", str(tmp_path / "sea"), "--base", str(saved)])
    assert all_files(directory) == before
    assert sorted(path.name for path in (tmp_path / "sea").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "expert.json",
    ]  # fmt: skip
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "sea"), dtype=torch.float32).eval()
    method = ensemble.method
    forced = method.accept_ids("sea")
    for query in ("seasea111?", "skysky101?", "nothing of the kind"):
        (reply,) = ensemble.reply([Request(query, expert="sea")])
        assert generated(loaded, method, query, forced, tokens=8) == reply.text


def test_the_card_says_what_the_expert_is_and_how_it_is_loaded(base, tmp_path, capsys):
    directory = toy.whole(base).directory
    experts([str(directory), "export", "ice", str(tmp_path / "ice"), "--base", "me/tiny"])
    card = (tmp_path / "ice" / "README.md").read_text()
    assert card.startswith('---\nbase_model: "me/tiny"\nlibrary_name: peft\n')
    assert "| training rows | 8 |" in card or f"| training rows | {toy.TASKS['ice']} |" in card
    assert "`++` if it accepts" in card
    assert re.search(r"^    .*QUERY", card, flags=re.MULTILINE)
    rank = PeftConfig.from_pretrained(str(tmp_path / "ice")).r
    line = f"vllm serve me/tiny --enable-lora --max-lora-rank {max(rank, 8)} --lora-modules ice="
    assert f"{line}DIR" in card
    printed = capsys.readouterr().out
    assert f"{line}{tmp_path / 'ice'}" in printed
    assert f"--outfile ice.gguf {tmp_path / 'ice'}" in printed
    activated = toy.whole(base, *toy.ACTIVATED).directory
    experts([str(activated), "export", "ice", str(tmp_path / "activated")])
    card = (tmp_path / "activated" / "README.md").read_text()
    assert "vLLM does not run activated adapters" in card
    assert "vllm serve" not in card
    kept = json.loads((tmp_path / "activated" / "adapter_config.json").read_text())
    assert kept["alora_invocation_tokens"]


@pytest.mark.parametrize(
    ("settings", "words", "told"),
    [
        ((), ["export", "se", "new"], "there is no expert 'se'. Did you mean 'sea'?"),
        ((), ["export", "sea"], "export TASK DIR"),
        ((), ["drop", "sea"], "export TASK DIR"),
        ((), ["--base", "x"], "--base is for export"),
        ((), ["export", "sea", "full"], "exists and has files"),
        (("method=moses",), ["export", "sea", "new"], "PEFT alone cannot load it"),
        (("method=base",), [], "has trained no task"),
    ],
)
def test_what_cannot_be_done_is_refused(base, tmp_path, monkeypatch, capsys, settings, words, told):
    directory = toy.whole(base, *settings).directory.resolve()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(SystemExit):
        experts([str(directory), *words])
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "toy") == ["full"]


def test_a_damaged_expert_is_not_exported(base, tmp_path, capsys):
    shorter = toy.run(toy.compose(toy.data_in(base), tmp_path, "order.tasks=[sky]")).directory
    weights = shorter / "tasks" / "01-sky" / "expert" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(SystemExit):
        experts([str(shorter), "export", "sky", str(tmp_path / "sky")])
    assert "is damaged" in capsys.readouterr().err
    assert not (tmp_path / "sky").exists()
