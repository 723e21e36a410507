"""What is trained moves nothing else, and ends the same however often it was broken off."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from see_lightning.adapters import files
from see_lightning.engine.ledger import Ledger
from see_lightning.models.tiny import tiny_model
from tests.contracts.conftest import FIRST, METHODS, SAMPLED, SWEPT, declared
from tests.runs import toy


def test_each_set_of_traits_has_a_method_on_which_every_interruption_is_tried():
    assert {declared(name) for name in METHODS} == {declared(name) for name in FIRST}
    assert len({declared(name) for name in FIRST}) == len(FIRST)
    tried = {one.values[0][0] for one in SWEPT + SAMPLED if not one.marks}
    assert tried == {*METHODS, "planted"}


def test_experts_do_not_move_once_they_are_trained(whole, tmp_path):
    (method,) = whole.methods
    ledger = Ledger(whole.directory).read()
    stages = whole.trained_stages()
    assert len(stages) == {"sequential": 3, "joint": 1, "frozen": 0}[method.traits.schedule]
    if method.traits.has_experts:
        assert method.pool.names == [name.split("-", 1)[1] for name, _ in stages]
    for name, _ in stages:
        ledger.verified(name)  # on disk: still the bytes that the training left
    if not method.traits.trains:
        assert method.pool.names == whole.steps == []
        assert whole.fits == 0
        return
    # One adapter that all stages train is that of the last stage.
    last = {method.saved_adapter(name.split("-", 1)[1]): folder for name, folder in stages}
    for expert, folder in last.items():
        files.save(method.pool, expert, tmp_path / expert)
        held, saved = (load_file(place / "adapter_model.safetensors") for place in (tmp_path / expert, folder))
        assert held.keys() == saved.keys() != set()
        assert all(torch.equal(held[key], saved[key]) for key in saved)
    different = {folder.joinpath("adapter_model.safetensors").read_bytes() for _, folder in stages}
    assert len(different) == len(stages), "a stage that changes no weight has not trained"
    assert method.pool.prompt_cache.held == 0, "prompts of the last stage are still held"
    assert (method.pool.prompt_cache.tokens_read > 0) == (
        bool(method.pool.header_ids) and method.traits.schedule != "frozen"
    )


def test_the_base_model_does_not_move(whole):
    model = whole.methods[0].pool.model
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    weights = {
        name.replace(".base_layer", ""): weight for name, weight in inner.state_dict().items() if "lora_" not in name
    }
    given = tiny_model().state_dict()
    assert weights.keys() == given.keys()
    assert all(torch.equal(weights[name], given[name]) for name in given)


def test_the_same_seed_gives_the_same_run(whole, base, method, tmp_path):
    again = toy.run(toy.compose(toy.data_in(base), tmp_path, *method))
    assert again.steps == whole.steps
    assert toy.kept(again.directory) == toy.kept(whole.directory)


def test_another_seed_trains_in_another_order_and_is_asked_the_same(whole, base, method, tmp_path):
    other = toy.run(toy.compose(toy.data_in(base), tmp_path, *method, "seed=2"))
    assert other.directory.parent.name == whole.directory.parent.name, "the seed is no part of the run key"
    if whole.methods[0].traits.schedule != "frozen" and whole.methods[0].traits.trains:
        assert other.steps != whole.steps

    def asked(seen):
        return {
            stage: [(a["id"], a["prompt_sha"], a["target"]) for a in answers]
            for stage, answers in toy.read_answers(seen.directory).items()
        }

    assert asked(other) == asked(whole)


def commits(whole):
    """How often a run makes something final: its start, each training, each task of each evaluation."""
    stages = Ledger(whole.directory).read().content["stages"].values()
    # A task that is tested at a stage is final together with what was remembered of it; others have that alone.
    tasks = [stage["answers"].keys() | stage.get("remembered", {}).keys() for stage in stages]
    return 1 + sum(bool(stage["trained"]) for stage in stages) + sum(map(len, tasks))


@pytest.mark.parametrize("method", SWEPT, indirect=True)
def test_the_command_repeated_after_every_interruption_ends_with_the_same_run(whole, base, method, tmp_path):
    """Each attempt makes one thing final and is then broken off, so that every stage is taken up from the disk."""
    resumed, interruptions = toy.broken_off(toy.compose(toy.data_in(base), tmp_path, *method))
    assert interruptions == commits(whole)
    assert toy.kept(resumed.directory) == toy.kept(whole.directory)


@pytest.mark.parametrize("method", SAMPLED, indirect=True)
def test_the_command_repeated_after_three_interruptions_ends_with_the_same_run(whole, base, method, tmp_path):
    """After the first training, in the middle, and when all but the report is done."""
    at = {2, commits(whole) // 2 + 1, commits(whole)}
    resumed, interruptions = toy.broken_off(toy.compose(toy.data_in(base), tmp_path, *method), at)
    assert interruptions == len(at) == 3
    assert toy.kept(resumed.directory) == toy.kept(whole.directory)
