"""``see-lightning run ... --dry-run``: what a run would take, without running it."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from see_lightning.cli.run import main
from see_lightning.engine import dry_run
from see_lightning.engine.dry_run import look_at
from see_lightning.models.shapes import SHAPES, known_shape
from tests.runs import toy

#: Numbers of weights on the models' pages; a vocabulary head that is tied is not counted twice.
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "google/gemma-3-1b-it": 999_885_952,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
}


@pytest.fixture
def base(tmp_path_factory):
    return tmp_path_factory.getbasetemp() / "toy"


@pytest.mark.parametrize("name", SHAPES)
def test_a_known_shape_has_the_published_number_of_weights(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(known_shape(name))
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name]


def test_an_unknown_name_has_no_shape():
    assert known_shape("nobody/nothing") is None


@pytest.mark.parametrize("method", ["see", "mtl", "replay", "stl"])
def test_steps_and_tokens_are_those_of_the_run(base, tmp_path, method):
    choice = (f"method={method}", "method.resample=once") if method == "replay" else (f"method={method}",)
    results = toy.read_results(toy.run(toy.compose(toy.data_in(base), tmp_path, *choice)).directory)
    found = look_at(toy.compose(toy.data_in(base), tmp_path, *choice)).work
    rows, steps, tokens = zip(*found.stages.values(), strict=True)
    assert list(rows) == results["counts"]["train_examples"]
    assert list(steps) == results["counts"]["steps"]
    # With refusals, an indicator precedes each answer.
    assert sum(tokens) == pytest.approx(sum(results["counts"]["train_tokens"]), rel=0.25 if method == "see" else 0.02)


def test_nothing_is_written(base, tmp_path):
    look_at(toy.compose(toy.data_in(base), tmp_path))
    assert not list(tmp_path.rglob("*"))


def test_the_weights_of_an_expert_are_counted(base, tmp_path):
    for settings in (("adapter.rank=3",), toy.FULL):
        seen = toy.run(toy.compose(toy.data_in(base), tmp_path, "method=seqft", *settings))
        found = look_at(toy.compose(toy.data_in(base), tmp_path, "method=seqft", *settings)).weights()
        (line,) = [cells for name, cells in found if name.startswith("trained weights")]
        assert line == [f"{toy.read_results(seen.directory)['counts']['trained_weights'][0]:,}"]


def test_the_printed_parts_add_up(base, tmp_path, capsys):
    dry_run.dry_run(toy.compose(toy.data_in(base), tmp_path, "optim.max_tokens_per_microbatch=auto"))
    out = capsys.readouterr().out
    assert "Nothing is run." in out
    assert "auto makes them fit" in out
    assert "operations, about" in out
    parts = {name: float(cells[0]) for name, cells in look_at(toy.compose(toy.data_in(base), tmp_path)).memory()}
    assert sum(value for name, value in parts.items() if name != "together") == pytest.approx(
        parts["together"], abs=0.03
    )


def test_a_method_without_training_has_no_memory_of_a_step(base, tmp_path, capsys):
    dry_run.dry_run(toy.compose(toy.data_in(base), tmp_path, "method=base"))
    assert "memory of a training step" not in capsys.readouterr().out


def test_a_known_model_needs_neither_files_nor_data(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    words = [
        "order=superni_5",
        "model=llama3_2_1b",
        f"paths.data={tmp_path}",
        "adapter.targets=[q_proj]",
        "trainer=gpu",
    ]
    main([*words, "--dry-run"])
    out = capsys.readouterr().out
    assert "1,235,814,400" in out
    assert "known shape" in out
    assert "no rows were read" in out
    assert not list(tmp_path.rglob("ledger.json"))


def test_an_unknown_model_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit):
        main(["order=superni_5", "model=hub", "model.name=nobody/nothing", f"paths.data={tmp_path}", "--dry-run"])
    assert "Its shape is not known either" in capsys.readouterr().err


def test_what_a_run_refuses_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["method=seqft", "adapter.quantization=int8", "order=pocket_5", "model=tiny", "--dry-run"])
    assert "adapter.quantization rounds an expert" in capsys.readouterr().err
