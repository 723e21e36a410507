"""Experts in eight or four bits: ``adapter.quantization``, and ``see-lightning experts RUN_DIR quantize``."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from see_lightning import load_ensemble
from see_lightning.adapters.files import read_weights
from see_lightning.adapters.quantization import relative_error
from see_lightning.cli.experts import main as experts
from see_lightning.cli.merge import main as merge
from see_lightning.engine.asking import Request
from see_lightning.errors import ConfigError
from tests.nightly import all_but
from tests.runs import toy
from tests.runs.foreign import generated
from tests.runs.test_other_experts import made_from

STAGES = ("01-sky", "02-sea", "03-ice")
KINDS = ["int8", "nf4"]
METHODS = ["see", "stl", "any_ssr"]


def expert(directory, stage):
    return directory / "tasks" / stage / "expert"


def quantized(finished, tmp_path, kind):
    return made_from(finished, tmp_path, words=["quantize", kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", all_but(["see"], METHODS))
def test_a_finished_runs_experts_become_those_of_a_run_that_was_quantised_from_the_start(base, tmp_path, method, kind):
    choice = f"method={method}"
    finished = toy.whole(base, choice).directory
    other = quantized(finished, tmp_path / "a", kind)
    whole = toy.run(toy.compose(toy.data_in(base), tmp_path / "b", choice, f"adapter.quantization={kind}"))
    assert whole.fits == 3
    assert other.parent.name == whole.directory.parent.name, "the settings have another key"
    ours, theirs = toy.read_results(other), toy.read_results(whole.directory)
    for name in ("matrix", "metrics", "last_row", "routing", "storage", "capacity"):
        assert ours.get(name) == theirs.get(name), name
    assert ours["quantization"]["error"] == theirs["quantization"]["error"]
    for stage in STAGES:
        names = {path.name for path in expert(other, stage).iterdir()}
        assert "quantized.safetensors" in names
        assert "adapter_model.safetensors" not in names
        assert (expert(other, stage) / "quantized.safetensors").read_bytes() == (
            expert(whole.directory, stage) / "quantized.safetensors"
        ).read_bytes()
        exact = load_file(expert(finished, stage) / "adapter_model.safetensors")
        error = relative_error(exact, read_weights(expert(other, stage)))
        assert ours["quantization"]["error"][stage[3:]] == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_results_have_the_bytes_and_the_changed_answers(base, tmp_path, kind):
    finished = toy.whole(base).directory
    other = quantized(finished, tmp_path, kind)
    results, before = toy.read_results(other), toy.read_results(finished)
    stored = [
        sum(
            one.nbytes
            for name, one in load_file(expert(other, stage) / "quantized.safetensors").items()
            if "shape" not in name
        )
        for stage in STAGES
    ]
    assert results["storage"]["weights"] == [sum(stored[: n + 1]) for n in range(3)]
    ratio = before["storage"]["weights"][-1] / results["storage"]["weights"][-1]
    assert ratio == pytest.approx(32 / {"int8": 8.5, "nf4": 4.5}[kind], rel=0.05)
    found = results["quantization"]
    answers = [
        {(one["task"], one["id"]): (one["text"], one["expert"]) for one in toy.read_answers(run)["03-ice"]}
        for run in (finished, other)
    ]
    assert found["answers_compared"] == len(answers[0]) > 0
    assert found["answers_changed"] == sum(answers[0][key][0] != one[0] for key, one in answers[1].items())
    assert found["answered_by_others"] == sum(answers[0][key][1] != one[1] for key, one in answers[1].items())
    (notice,) = [one for one in results["notices"] if "are stored as" in one]
    assert f"{found['answers_changed']} of {found['answers_compared']} answers differ" in notice


def test_without_quantisation_there_is_no_such_section(base):
    assert "quantization" not in toy.read_results(toy.whole(base).directory)


def test_an_exported_expert_is_plain_peft_with_the_same_answers(base, tmp_path):
    other = quantized(toy.whole(base, "model.dtype=fp32").directory, tmp_path / "a", "nf4")
    experts([str(other), "export", "sea", str(tmp_path / "out")])
    ensemble = load_ensemble(other)
    model = load_ensemble(toy.whole(base, "method=base", "model.dtype=fp32").directory).method.pool.model
    plain = PeftModel.from_pretrained(model, tmp_path / "out").eval()
    for query in ("seasea111?", "seasea7?"):
        (reply,) = ensemble.reply([Request(query, expert="sea")])
        forced = ensemble.method.accept_ids("sea")
        assert reply.text == generated(plain, ensemble.method, query, forced, tokens=128)


@pytest.mark.nightly
def test_a_quantised_run_that_is_broken_off_anywhere_ends_the_same(base, tmp_path):
    whole = quantized(toy.whole(base).directory, tmp_path / "a", "int8")
    toy.run(toy.compose(toy.data_in(base), tmp_path / "b"))
    again, interruptions = toy.broken_off(toy.compose(toy.data_in(base), tmp_path / "b", "adapter.quantization=int8"))
    assert interruptions > 3
    assert toy.read_results(again.directory)["matrix"] == toy.read_results(whole)["matrix"]
    for stage in STAGES:
        name = "quantized.safetensors"
        assert (expert(again.directory, stage) / name).read_bytes() == (expert(whole, stage) / name).read_bytes()


def test_a_longer_list_of_tasks_takes_over_quantised_experts(base, tmp_path):
    setting = "adapter.quantization=int8"
    two = toy.run(toy.compose(toy.data_in(base), tmp_path, setting, "order.tasks=[sky,sea]"))
    three = toy.run(toy.compose(toy.data_in(base), tmp_path, setting))
    assert (two.fits, three.fits) == (2, 1)
    found = toy.read_results(three.directory)["quantization"]
    assert all(error > 0 for error in found["error"].values())
    assert "compared_with" not in found


def test_a_run_in_fp32_takes_no_quantised_expert(base, tmp_path):
    toy.run(toy.compose(toy.data_in(base), tmp_path, "adapter.quantization=nf4", "order.tasks=[sky]"))
    assert toy.run(toy.compose(toy.data_in(base), tmp_path, "order.tasks=[sky]")).fits == 1
    assert toy.run(toy.compose(toy.data_in(base), tmp_path, "adapter.quantization=int8", "order.tasks=[sky]")).fits == 0


def test_a_quantised_expert_is_imported_and_merged_as_any_other(base, tmp_path):
    finished = toy.whole(base).directory
    other = quantized(finished, tmp_path / "a", "int8")
    source = expert(other, "02-sea")
    third = made_from(finished, tmp_path / "b", words=["import", "sea", str(source)])
    assert torch.equal(
        *(
            one["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
            for one in (read_weights(source), read_weights(expert(third, "02-sea")))
        )
    )
    merge([str(tmp_path / "merged"), str(other), "rule=average"])
    assert (tmp_path / "merged" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=seqft"], "adapter.quantization rounds an expert when it is trained"),
        (["method=see", "method.warm_start=similar"], "depend on each other"),
        (["adapter.quantization=int4"], "adapter.quantization must be one of none, int8, nf4"),
    ],
)
def test_settings_that_cannot_be_quantised_are_refused_before_a_run_begins(base, tmp_path, words, said):
    words = words if any("quantization" in one for one in words) else [*words, "adapter.quantization=int8"]
    with pytest.raises(ConfigError, match=said):
        toy.run(toy.compose(toy.data_in(base), tmp_path, *words))
    assert not list(tmp_path.rglob("ledger.json"))


def test_bad_uses_of_the_command_are_refused(base, tmp_path, capsys):
    finished = toy.whole(base).directory
    other = quantized(finished, tmp_path, "int8")
    capsys.readouterr()
    assert "the format of experts must be one of int8, nf4" in toy.refused(
        capsys, experts, str(finished), "quantize", "int4"
    )
    assert "stored as int8 already" in toy.refused(capsys, experts, str(other), "quantize", "nf4")


def test_a_damaged_quantised_expert_is_refused(base, tmp_path, capsys):
    other = quantized(toy.whole(base).directory, tmp_path, "int8")
    path = expert(other, "02-sea") / "quantized.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    capsys.readouterr()
    assert "is damaged" in toy.refused(capsys, experts, str(other))


def test_the_new_runs_record_has_the_setting(base, tmp_path):
    other = quantized(toy.whole(base).directory, tmp_path, "int8")
    content = json.loads((other / "ledger.json").read_text())
    assert content["about"]["numbers"]["adapter"]["quantization"] == "int8"
    assert content["about"]["command"].endswith("adapter.quantization=int8")
