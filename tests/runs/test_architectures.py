"""Models of other architectures: a run's verdicts and answers are those of PEFT and transformers, or it leaves no trace."""

import hashlib
import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, PreTrainedModel

from see_lightning.engine import launch
from see_lightning.routing.verdicts import Verdict, read_verdict, strip_indicator
from see_lightning.tasks.reconstruct import Indicators
from tests.models.zoo import model_folder
from tests.runs import toy

WORDS = Indicators("++", "--")
# Experts of every opinion within seconds: the vocabulary head is adapted too.
TARGETS = {
    "gpt2": "[c_attn,c_proj,lm_head]",
    "mpt": "[Wqkv,out_proj,lm_head]",
    "bloom": "[query_key_value,dense,dense_h_to_4h,dense_4h_to_h,lm_head]",
    "mistral": "[q_proj,v_proj,lm_head]",
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:Model has `tie_word_embeddings")  # PEFT's
@pytest.mark.parametrize(("kind", "more"), [*((kind, ()) for kind in TARGETS), ("bloom", toy.ACTIVATED)])
def test_what_experts_say_is_what_peft_says_to_each_query_alone(tmp_path, kind, more):
    place = model_folder(kind, tmp_path / kind)
    model = (
        "model=hub",
        f"model.name={place}",
        "model.max_length=512",
        "model.dtype=fp32",
        f"adapter.targets={TARGETS[kind]}",
    )
    data = toy.write_tasks(tmp_path / "data")
    toy_run = toy.run(
        toy.compose(data, tmp_path / "runs", "method=see", *model, "model.prompt=plain", *more, "optim.epochs=6")
    )
    template = toy_run.methods[0].template
    base = AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager").eval()

    def says(model: PreTrainedModel, prompt: str, limit: int) -> str:
        ids = torch.tensor([template.prompt_ids(prompt)])
        with torch.inference_mode():
            out = model.generate(input_ids=ids, do_sample=False, max_new_tokens=limit, eos_token_id=2, pad_token_id=0)
        return template.text(out[0, ids.shape[1] :].tolist())

    tests = [
        json.loads(line)["prompt"]
        for name in toy.TASKS
        for line in (data / f"{name}.test.jsonl").read_text().splitlines()
    ]
    last = sorted((toy_run.directory / "tasks").iterdir())[-1]
    records = [json.loads(line) for line in (last / "answers.jsonl").read_text().splitlines()]
    experts = {
        folder.name.split("-", 1)[1]: AutoPeftModelForCausalLM.from_pretrained(
            folder / "expert", attn_implementation="eager", dtype=torch.float32
        ).eval()
        for folder in sorted((toy_run.directory / "tasks").iterdir())[::-1]
    }
    verdicts = set()
    by_prompt = {record["prompt_sha"]: record for record in records}
    for prompt in tests:
        record = by_prompt[hashlib.sha256(prompt.encode()).hexdigest()[:16]]
        found, text, expert = [], says(base, prompt, 4), "base"
        for name, model in experts.items():
            said = says(model, prompt, 6)  # an indicator of two tokens, and four
            verdict = read_verdict(said, WORDS) or Verdict.NEITHER  # it ended within its word
            found.append(verdict)
            if verdict is Verdict.POS:
                text, expert = strip_indicator(said, WORDS), name
            if verdict is not Verdict.NEG:
                break
        assert (record["verdicts"], record["expert"]) == (found, expert)
        assert record["text"].strip() == text.strip()
        verdicts |= set(found)
    assert len(verdicts) > 1


@pytest.mark.parametrize(
    ("kind", "setting", "why"),
    [
        ("t5", "model.prompt=plain", "no causal language model"),
        ("mamba", "model.prompt=plain", "so experts cannot share what it has read"),
        ("windows", "model.prompt=plain", "an attention window of 64 tokens"),
        ("openai_gpt", "adapter.targets=[c_attn]", "not even one by one"),
        ("mixtral", "adapter.targets=[gate]", "which is a MixtralTopKRouter"),
        ("llama", "adapter.targets=[mlp]", "which is a LlamaMLP"),
        ("llama", "benchmark.default.score=nothing", "nothing"),
        ("llama", "adapter.activated=true", "adapter.activated needs prompts that end in the same tokens"),
    ],
)
def test_a_run_that_is_refused_leaves_nothing_behind(tmp_path, kind, setting, why):
    place = model_folder(kind, tmp_path / kind)
    data = toy.write_tasks(tmp_path / "data")
    model = ("model=hub", f"model.name={place}", "model.max_length=512", "model.prompt=plain", "adapter.targets=null")
    with pytest.raises(ValueError, match=why) as told:
        launch.launch(toy.compose(data, tmp_path / "runs", "method=see", *model, setting), "command")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "runs").exists()


def test_a_run_that_had_begun_stays_when_it_is_refused_later(tmp_path):
    data = toy.write_tasks(tmp_path / "data")
    cfg = toy.compose(data, tmp_path / "runs", "method=see", "optim.epochs=1")
    toy.run(cfg)
    (path,) = (tmp_path / "runs").rglob("ledger.json")
    (data / "sky.train.jsonl").write_text('{"prompt": "a row without an answer"}\n' * 4)
    (path.parent / "results.json").unlink()
    ledger = path.read_text()
    with pytest.raises(ValueError):
        launch.launch(cfg, "command")
    assert path.read_text() == ledger


def test_layers_that_are_left_to_the_model_name_the_run(tmp_path):
    place = model_folder("gpt2", tmp_path / "gpt2")
    data = toy.write_tasks(tmp_path / "data")
    model = ("model=hub", f"model.name={place}", "model.max_length=512", "optim.epochs=1", "method=seqft")
    by_default = toy.run(toy.compose(data, tmp_path / "runs", *model, "adapter.targets=null"))
    by_name = toy.run(toy.compose(data, tmp_path / "runs", *model, "adapter.targets=[c_attn]"))
    assert by_name.directory == by_default.directory
    assert not by_name.fits
