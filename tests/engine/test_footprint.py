"""The estimate of a step's memory: sizes of tensors without data, against those of tensors with data."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedConfig

from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.schema import AdapterConfig, ModelConfig, OptimConfig
from see_lightning.engine import memory_plan
from see_lightning.engine.footprint import (
    BatchShape,
    Footprint,
    LiveBytes,
    shapes_to_try,
    step_bytes,
    training_footprint,
    without_data,
)
from see_lightning.engine.memory_plan import Machine, Rows, available_bytes, plan_memory, rough_bytes
from see_lightning.errors import ConfigError
from see_lightning.methods.loss import answer_loss
from see_lightning.models.base import skeleton
from see_lightning.models.tiny import tiny_config, tiny_model
from see_lightning.tasks.batches import IGNORED

TINY = ModelConfig(source="tiny", name="tiny", attention="grouped")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def bones(tmp_path):
    return skeleton(TINY, tmp_path)


def test_live_bytes_are_those_of_tensors_that_are_alive():
    with LiveBytes() as live:
        one = torch.zeros(1000)
        view = one[10:]
        two = torch.zeros(500)
        assert live.now == 6000
        del two
        assert live.now == 4000
        del one
        assert live.now == 4000, "a view keeps the storage"
        del view
    assert (live.now, live.peak) == (0, 6000)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_the_memory_of_a_real_step(tmp_path, full, checkpointing):
    adapter = AdapterConfig(rank=8, dropout=0.1, targets=ALL, full=full)
    batch = BatchShape(rows=4, length=60, labels=7)
    made = without_data(bones(tmp_path), adapter, "fp32", attention="grouped", checkpointing=checkpointing)
    expected = step_bytes(made, batch)
    base = tiny_model().requires_grad_(False)
    base.set_attn_implementation("grouped")
    pool = ExpertPool(base, adapter, "tiny")
    if checkpointing:
        pool.checkpoint_gradients()
    pool.add_expert("trained", weights_seed=0)
    ids = torch.randint(5, 200, (4, 60))
    labels = torch.full_like(ids, IGNORED)
    labels[:, -7:] = ids[:, -7:]
    optimizer = torch.optim.AdamW([weight for weight in pool.parameters() if weight.requires_grad])
    live = LiveBytes().add([*pool.parameters(), *pool.buffers()])
    with live:
        for _ in range(2):
            kept = live.peak = live.now
            answer_loss(pool(ids, torch.ones_like(ids), labels), labels, "tokens").backward()
            peak = live.peak
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    assert expected == pytest.approx(peak - kept, rel=0.1)


def test_parts_are_counted_once(tmp_path):
    adapter = AdapterConfig(rank=8, targets=["q_proj"])
    batch = [BatchShape(2, 32, 4)]
    one, three = (training_footprint(bones(tmp_path), adapter, "fp32", batch, adapters=n) for n in (1, 3))
    model = tiny_model()
    assert one.base == sum(weight.nbytes for weight in model.parameters())
    size = sum(
        8 * (layer.self_attn.q_proj.in_features + layer.self_attn.q_proj.out_features) * 4
        for layer in model.model.layers
    )
    assert (one.adapters, three.adapters, one.optimizer) == (size, 3 * size, 3 * size)
    assert one.total() == sum((one.base, one.adapters, one.optimizer, one.step, one.cache, one.process))
    half = training_footprint(bones(tmp_path), adapter, "bf16", batch)
    assert half.base == one.base // 2
    shared = training_footprint(bones(tmp_path), adapter, "fp32", batch, ranks=4, is_sharded=True, has_gpu=True)
    assert shared.base < one.base


def test_activated_experts_take_less(tmp_path):
    batch = [BatchShape(4, 200, 8)]
    plain, activated = (
        training_footprint(bones(tmp_path), AdapterConfig(targets=ALL, activated=one, cache_gb=0.5), "fp32", batch)
        for one in (False, True)
    )
    assert activated.step < plain.step / 2
    assert activated.cache == 2**28


def test_long_rows_and_those_just_below_are_tried():
    assert shapes_to_try(1024, 300, 400) == [BatchShape(3, 300, 299)]
    assert shapes_to_try(1024, 2048, 10)[0] == BatchShape(1, 2048, 10)


class Settings:
    """The parts of a run's settings that the plan reads."""

    def __init__(self, tmp_path, checkpointing="auto", tokens=4096):
        self.model = replace(TINY, gradient_checkpointing=checkpointing)
        self.adapter = AdapterConfig(targets=ALL)
        self.optim = OptimConfig(max_tokens_per_microbatch=tokens)
        self.paths = type("Paths", (), {"cache_folder": lambda _: tmp_path})()


ROWS = Rows(longest=400, labels=20, experts=2)


def plan(tmp_path, gib, *given, has_gpu=False):
    return plan_memory(Settings(tmp_path, *given), "fp32", ROWS, Machine(has_gpu, int(gib * 2**30)))


def test_without_need_nothing_is_estimated(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_plan, "footprint", None)
    assert plan(tmp_path, 64) == memory_plan.MemoryPlan(4096, checkpointing=False)
    assert plan(tmp_path, 64, "auto", "auto").tokens == 4096
    assert plan(tmp_path, 0.01, "on") == memory_plan.MemoryPlan(4096, checkpointing=True)


def test_the_plan_shrinks_with_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_plan, "rough_bytes", lambda *_: float("inf"))
    size = {
        (tokens, again): tokens * (1 if again else 4) for tokens in (4096, 2048, 1024, 400) for again in (False, True)
    }

    def sized(bones, config, dtype, rows, machine, tokens, *, checkpointing):
        return Footprint(base=0, adapters=0, optimizer=0, step=size[tokens, checkpointing])

    monkeypatch.setattr(memory_plan, "footprint", sized)

    def chosen(limit, *given):
        found = plan_memory(
            Settings(tmp_path, *given), "fp32", ROWS, Machine(False, math.ceil(limit / memory_plan.SHARE))
        )
        return found.tokens, found.checkpointing

    assert chosen(4 * 4096) == (4096, False)
    assert chosen(4 * 4096 - 1) == (4096, True)
    assert chosen(10) == (4096, True), "the user's own number of tokens stays"
    assert chosen(4 * 4096, "auto", "auto") == (4096, False)
    assert chosen(4 * 1024, "auto", "auto") == (1024, False)
    assert chosen(4 * 400 - 1, "auto", "auto") == (1024, True)
    assert chosen(400, "auto", "auto") == (400, True)
    assert chosen(4096, "on", "auto") == (4096, True)
    with pytest.raises(ConfigError, match="a micro-batch of one row"):
        chosen(399, "auto", "auto")
    with pytest.raises(ConfigError, match="a micro-batch of one row"):
        chosen(4 * 400 - 1, "off", "auto")


def test_the_rough_bound_is_above_the_estimate(tmp_path):
    for rows in (Rows(100, 10), Rows(1500, 300)):
        config = Settings(tmp_path)
        found = memory_plan.footprint(
            bones(tmp_path), config, "fp32", rows, Machine(False, 2**40), 4096, checkpointing=False
        )
        assert rough_bytes(tiny_config(), "fp32", 4096, rows) > found.total()


def test_a_model_that_cannot_be_estimated_trains_as_before(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise KeyError("no such operation")

    monkeypatch.setattr(memory_plan, "rough_bytes", lambda *_: float("inf"))
    monkeypatch.setattr(memory_plan, "footprint", fails)
    for given, expected in (
        (("auto", 300), (300, False)),
        (("auto", "auto"), (4096, False)),
        (("on", "auto"), (4096, True)),
    ):
        found = plan(tmp_path, 1, *given)
        assert (found.tokens, found.checkpointing) == expected
        assert "no such operation" in found.in_words(Machine(False, 1))


def test_an_error_without_words_is_no_error_of_the_plan(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise AssertionError

    monkeypatch.setattr(memory_plan, "rough_bytes", lambda *_: float("inf"))
    monkeypatch.setattr(memory_plan, "footprint", fails)
    assert plan(tmp_path, 1, "auto", 300).fault == "AssertionError: "


def test_a_model_with_other_names_of_its_sizes_is_estimated():
    assert rough_bytes(PreTrainedConfig(), "fp32", 4096, ROWS) == float("inf")


def test_there_is_memory():
    assert 2**20 < available_bytes(False) < 2**62
