"""A real language model: our experts are PEFT's, and the model out of the pip package is what it should be."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from see_lightning.models.smollm2 import PACKAGE, SHA256, smollm2_folder
from see_lightning.tasks.datamodule import query_batch
from tests.runs import toy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"needs pip install --no-deps {PACKAGE}"),
]

CACHE = Path("~/.cache/see_lightning").expanduser()
LONGEST = 4
ROWS = {
    "size": ("Is it big or small?", {"a house": "big", "an ant": "small", "a whale": "big", "a pea": "small"}),
    "colour": ("Which colour has it?", {"snow": "white", "grass": "green", "coal": "black", "the sky": "blue"}),
}
SIZES = {"size": 4, "colour": 8}  # training rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two tasks of a few short rows, read often enough to learn the indicators."""
    folder = tmp_path_factory.mktemp("real")
    for task, (question, answers) in ROWS.items():
        rows = [
            {"prompt": f"{question}{blank}{thing}", "answer": answer}
            for blank in ("\n", " - ", " : ")
            for thing, answer in answers.items()
        ]
        for half, some in (("train", rows[: SIZES[task]]), ("test", rows[8:])):
            (folder / f"{task}.{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return toy.run(
        toy.compose(
            folder,
            folder / "runs",
            "order.tasks=[size,colour]",
            "model=smollm2_135m",
            "model.prompt=chat",
            "model.dtype=fp32",
            "indicators.pos='<<pos>>'",
            "indicators.neg='<<neg>>'",
            "adapter=lora",
            "adapter.alpha=32",
            "adapter.dropout=0",
            "adapter.targets=[q_proj,v_proj]",
            "optim.epochs=3",
            "optim.global_batch_size=2",
            "optim.lr=5e-3",
            f"benchmark.default.max_new_tokens={LONGEST}",
            f"paths.cache={CACHE}",
        )
    )


def test_the_converted_model_is_the_one_that_it_should_be():
    weights = smollm2_folder(CACHE) / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == SHA256


@pytest.mark.nightly
def test_peft_alone_loads_an_expert_and_says_what_it_said_in_the_run(run):
    folder = smollm2_folder(CACHE)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    method = run.methods[0]
    expert = run.directory / "tasks" / "02-colour" / "expert"
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, expert).eval()
    answers = toy.read_answers(run.directory)["02-colour"]
    longest = LONGEST + max(len(method.template.target_ids(word)[:-1]) for word in ("<<pos>>", "<<neg>>"))
    lines = {
        f"{task}-test-{number}": json.loads(line)["prompt"]
        for task in ROWS
        for number, line in enumerate(
            (run.directory.parents[4] / f"{task}.test.jsonl").read_text().splitlines(), start=1
        )
    }
    for answer in answers:
        chat = [{"role": "user", "content": lines[answer["id"]]}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            written = model.generate(
                **ids, do_sample=False, max_new_tokens=longest, pad_token_id=tokenizer.eos_token_id
            )
        said = tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        verdict = answer["verdicts"][0]
        if verdict == "pos":
            assert said.lstrip().startswith("<<pos>>")
            if answer["expert"] == "colour":
                assert said.lstrip().removeprefix("<<pos>>").removeprefix(" ") == answer["text"]
        elif verdict == "neg":
            assert said.lstrip().startswith("<<neg>>")
        else:
            assert not said.lstrip().startswith(("<<pos>>", "<<neg>>"))
    verdicts = [answer["verdicts"][0] for answer in answers]
    assert verdicts.count("pos") >= 4, f"the expert should know at least its own queries: {verdicts}"


@pytest.mark.nightly
def test_what_nobody_accepts_the_base_model_answers_as_transformers_would(run):
    """The adapters are off, not merely small: compared with a model that never had any."""
    folder = smollm2_folder(CACHE)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    method = run.methods[0]
    queries = ["Name a fruit.", "What is two plus three?"]
    batch = query_batch(queries, method.template, max_new_tokens=12)
    with torch.inference_mode():
        ours = [answer.text for answer in method.eval().generate_as(None, batch)]
        for query, text in zip(queries, ours, strict=True):
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": query}], add_generation_prompt=True, tokenize=False
            )
            ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
            written = base.generate(**ids, do_sample=False, max_new_tokens=12, pad_token_id=tokenizer.eos_token_id)
            assert tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == text
