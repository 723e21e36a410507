"""Families of models, random and small, with both kinds of adapters: a task is learned, asked, and another one added."""

import pytest

from see_lightning import load_ensemble
from see_lightning.engine import launch
from see_lightning.errors import ConfigError
from see_lightning.models.tiny import CHAT
from tests.models.zoo import model_folder
from tests.nightly import all_but
from tests.runs import toy

FAMILIES = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
#: Tested with every commit; the others with ``make test-all``.
DAILY = {("gpt2", "lora"), ("gpt_neox", "activated"), ("gemma3", "lora"), ("phi3", "activated"), ("qwen3", "lora")}
KINDS = {"lora": ("model.prompt=plain",), "activated": (*toy.ACTIVATED, "adapter.alpha=8")}
#: A chat template that refuses a system prompt, as Gemma's.
WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
)


def settings(place, *more):
    return (
        "method=see",
        "model=hub",
        f"model.name={place}",
        "model.max_length=512",
        "model.dtype=fp32",
        "adapter.targets=all-linear",
        "optim.epochs=2",
        *more,
    )


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(family, kind, marks=() if (family, kind) in DAILY else pytest.mark.nightly)
        for family in FAMILIES
        for kind in KINDS
    ],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:Model has `tie_word_embeddings")
def test_a_family_learns_answers_and_goes_on(tmp_path, family, kind):
    place = model_folder(family, tmp_path / family)
    data = toy.write_tasks(tmp_path / "data")
    own = settings(place, *KINDS[kind])
    one = toy.run(toy.compose(data, tmp_path / "runs", *own, "order.tasks=[sky]"))
    assert one.fits == 1
    assert toy.read_results(one.directory)["counts"]["steps"][0] > 0
    (reply,) = load_ensemble(one.directory).answer(["skysky111?"])
    assert reply.expert in ("sky", "base")
    two = toy.run(
        toy.compose(data, tmp_path / "runs", *own, "order.tasks=[sky,sea]", "model.gradient_checkpointing=on")
    )
    assert two.fits == 1, "the first expert was trained again"
    weights = [
        directory / "tasks/01-sky/expert/adapter_model.safetensors" for directory in (one.directory, two.directory)
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("family", all_but(["gpt2", "qwen3"], FAMILIES))
@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:Model has `tie_word_embeddings")
def test_a_family_learns_over_a_base_model_in_eight_bits(tmp_path, family):
    place, data = model_folder(family, tmp_path / family), toy.write_tasks(tmp_path / "data")
    own = settings(place, "model.prompt=plain", "model.quantization=int8", "order.tasks=[sky]")
    seen = toy.run(toy.compose(data, tmp_path / "runs", *own))
    assert 0.001 < toy.read_results(seen.directory)["base_quantization"]["error"] < 0.01
    (reply,) = load_ensemble(seen.directory).answer(["skysky111?"])
    assert reply.expert in ("sky", "base")


@pytest.mark.parametrize(
    ("tokenizer", "more"),
    [
        ({"pad_token": None}, ()),
        ({"chat_template": WITHOUT_SYSTEM}, ()),
        ({"chat_template": None}, ("model.prompt=plain",)),
    ],
    ids=["no pad token", "no system role", "no chat template"],
)
def test_tokenizers_that_lack_something(tmp_path, tokenizer, more):
    place = model_folder("llama", tmp_path / "llama", **tokenizer)
    data = toy.write_tasks(tmp_path / "data")
    own = settings(place, "model.prompt=chat", *more, "order.tasks=[sky]")
    seen = toy.run(toy.compose(data, tmp_path / "runs", *own))
    (reply,) = load_ensemble(seen.directory).answer(["skysky111?"])
    assert reply.expert in ("sky", "base")


@pytest.mark.parametrize(
    ("tokenizer", "more", "said"),
    [
        ({"chat_template": None}, ("model.prompt=chat",), "chat template"),
        ({"chat_template": WITHOUT_SYSTEM}, ("model.prompt=chat", "model.system_prompt=Be brief."), "System role"),
        ({"eos_token": None}, (), "no end-of-sequence token"),
    ],
    ids=["no chat template", "no system role", "no end"],
)
def test_what_cannot_work_is_refused_early(tmp_path, tokenizer, more, said):
    place = model_folder("llama", tmp_path / "llama", **tokenizer)
    data = toy.write_tasks(tmp_path / "data")
    with pytest.raises(ConfigError, match=said):
        launch.launch(toy.compose(data, tmp_path / "runs", *settings(place, *more)), "test")
    assert not list(tmp_path.rglob("ledger.json"))
