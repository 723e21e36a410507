"""Runs over a base model in fewer bits: what they note, that they go on, that ranks agree, and what is refused."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from see_lightning import load_ensemble
from see_lightning.config.identity import run_key
from see_lightning.engine import launch
from see_lightning.engine.dry_run import look_at
from see_lightning.errors import ConfigError
from tests.models.zoo import LIKE_LLAMA, model_folder
from tests.runs import toy

WEIGHTS = "tasks/01-sky/expert/adapter_model.safetensors"


def wide_model(folder):
    """A Llama whose layers have 64 or 128 inputs, as nf4 needs on a CPU."""
    place = model_folder("llama", folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**LIKE_LLAMA, "hidden_size": 64, "intermediate_size": 128})).save_pretrained(place)
    return place


def settings(place, kind):
    return (
        "method=see",
        "model=hub",
        f"model.name={place}",
        "model.max_length=512",
        "model.dtype=fp32",
        f"model.quantization={kind}",
    )


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_run_notes_its_error_and_compares_answers_and_goes_on(tmp_path, kind):
    place, data = wide_model(tmp_path / "wide"), toy.write_tasks(tmp_path / "data")
    exact = toy.run(toy.compose(data, tmp_path / "runs", *settings(place, "none"), "order.tasks=[sky]"))
    one = toy.run(toy.compose(data, tmp_path / "runs", *settings(place, kind), "order.tasks=[sky]"))
    assert one.fits == 1, "the experts of the unquantised base model are not taken over"
    assert one.directory != exact.directory
    assert "base_quantization" not in toy.read_results(exact.directory)
    results = toy.read_results(one.directory)
    found = results["base_quantization"]
    assert found["kind"] == kind
    assert {"int8": (0.002, 0.009), "nf4": (0.085, 0.105)}[kind][0] < found["error"] < 0.105
    assert found["bytes"] < sum(w.nbytes for w in LlamaForCausalLM.from_pretrained(place).parameters())
    assert (found["compared_with"], found["answers_compared"]) == (str(exact.directory), toy.TESTED)
    assert any(f"stored as {kind}" in notice for notice in results["notices"])
    expert = one.directory / "tasks/01-sky/expert"
    assert json.loads((expert / "expert.json").read_text())["base_quantization"] == kind
    assert json.loads((expert / "adapter_config.json").read_text())["base_model_name_or_path"] == str(place)
    (reply,) = load_ensemble(one.directory).answer(["skysky111?"])
    assert reply.expert in ("sky", "base")
    two = toy.run(toy.compose(data, tmp_path / "runs", *settings(place, kind), "order.tasks=[sky,sea]"))
    assert two.fits == 1, "the first expert was trained again"
    assert (one.directory / WEIGHTS).read_bytes() == (two.directory / WEIGHTS).read_bytes()


def test_activated_experts_run_over_nf4(tmp_path):
    place, data = wide_model(tmp_path / "wide"), toy.write_tasks(tmp_path / "data")
    own = (*settings(place, "nf4"), *toy.ACTIVATED, "order.tasks=[sky]")
    seen = toy.run(toy.compose(data, tmp_path / "runs", *own))
    assert seen.fits == 1
    (reply,) = load_ensemble(seen.directory).answer(["skysky111?"])
    assert reply.expert in ("sky", "base")


def test_two_ranks_train_what_one_trains(tmp_path):
    place, data = wide_model(tmp_path / "wide"), toy.write_tasks(tmp_path / "data")
    own = (*settings(place, "nf4"), "order.tasks=[sea]", "adapter.dropout=0")
    one = toy.run(toy.compose(data, tmp_path / "one", *own))
    both = toy.compose(data, tmp_path / "two", *own, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    log = tmp_path / "log"
    assert toy.ended(toy.start_ranks(2, lambda: launch.launch(both, "test"), log)) == [0, 0], log.read_text()[-3000:]
    answers = toy.read_answers(tmp_path / "two" / toy.place_of(one.directory))
    assert answers == toy.read_answers(one.directory)


def test_a_base_model_that_is_not_quantised_has_the_key_of_older_runs(tmp_path):
    keys = {kind: run_key(toy.compose(tmp_path, tmp_path, f"model.quantization={kind}")) for kind in ("none", "int8")}
    assert keys["none"] == run_key(toy.compose(tmp_path, tmp_path)) != keys["int8"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("method=seqft", "adapter=full"), "choose adapter=lora, or model.quantization=none"),
        (("method=osft", "adapter=full"), "choose adapter=lora, or model.quantization=none"),
        (("method=see", "trainer=fsdp"), "choose trainer=ddp"),
        (("method=see", "model.quantization=nf4"), "q_proj of tiny has 32; choose model.quantization=int8 or a GPU"),
        (("method=see", "model.quantization=int4"), "model.quantization"),
    ],
)
@pytest.mark.parametrize("start", [lambda cfg: launch.launch(cfg, "test"), look_at], ids=["run", "dry run"])
def test_what_cannot_be_is_refused_before_a_folder_is_made(tmp_path, more, said, start):
    data = toy.write_tasks(tmp_path / "data")
    quantized = () if any("model.quantization" in one for one in more) else ("model.quantization=int8",)
    with pytest.raises(ConfigError, match=said):
        start(toy.compose(data, tmp_path / "runs", *quantized, *more))
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("ledger.json"))


def test_a_dry_run_counts_fewer_bytes_of_the_base_model(tmp_path):
    data = toy.write_tasks(tmp_path / "data")
    sizes = {}
    for kind in ("none", "int8"):
        rows = look_at(toy.compose(data, tmp_path / "runs", "method=see", f"model.quantization={kind}")).memory()
        name, _ = rows[0]
        sizes[name] = (
            look_at(toy.compose(data, tmp_path, "method=see", f"model.quantization={kind}"))._footprint(512).base
        )
    assert sizes["base model, int8"] < 0.8 * sizes["base model"]
