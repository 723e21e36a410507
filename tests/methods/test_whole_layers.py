"""Full fine-tuning: steps are those of plain torch, copies come back bit for bit, and other methods refuse it."""

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from see_lightning.adapters import files
from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.schema import AdapterConfig, OptimConfig
from see_lightning.engine import launch
from see_lightning.errors import ConfigError
from see_lightning.methods.lookup import method_class
from see_lightning.methods.loss import answer_loss
from see_lightning.methods.mtl import Mtl
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.contracts.conftest import METHODS
from tests.methods.learning import fit, task_named
from tests.runs import toy


def gpt2() -> GPT2LMHeadModel:
    """A model whose layers have biases and transposed matrices; without dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        return GPT2LMHeadModel(config).eval()


BASES = {"llama": (tiny_model, ["q_proj", "down_proj", "lm_head"]), "gpt2": (gpt2, ["c_attn", "c_fc"])}


def whole(kind: str = "llama", method: type = SeqFt, base: nn.Module | None = None, **optim):
    make, targets = BASES[kind]
    pool = small.pool(full=True, targets=targets, base=make() if base is None else base)
    return method(Setup(pool, small.TEMPLATE, OptimConfig(**optim), 0))


def copies(method) -> dict[str, torch.Tensor]:
    return {name: copy.detach().clone() for name, copy in method.pool.composites[method.ADAPTER].named().items()}


@pytest.mark.parametrize("kind", BASES)
def test_steps_are_those_of_plain_torch_on_the_same_weights(kind):
    """AdamW with weight decay on the weights themselves, not on their difference from the base model's."""
    make, targets = BASES[kind]
    plain = make().requires_grad_(False)
    trained = {name: weight for name, weight in plain.named_parameters() if name.rsplit(".", 2)[-2] in targets}
    assert len(trained) == {"llama": 2 * 2 + 1, "gpt2": 2 * 2 * 2}[kind]
    for weight in trained.values():
        weight.requires_grad_(True)
    method = whole(kind)
    memory, task = Memory(0), task_named("sky")
    method.begin_task(task, memory)
    (batch,) = method.batches(task.train, 3)
    assert [copy.shape for copy in method.trained_weights()] == [weight.shape for weight in trained.values()]
    ours = torch.optim.AdamW(method.trained_weights(), lr=1e-2, weight_decay=0.5)
    theirs = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.5)
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    for step in range(4):
        for optimizer in (ours, theirs):
            optimizer.zero_grad()
        method.loss(batch).backward()
        positions = (batch.attention_mask_BS.cumsum(-1) - 1).clamp_min(0)
        logits_BSV = plain(
            input_ids=batch.input_ids_BS, attention_mask=batch.attention_mask_BS, position_ids=positions
        ).logits
        wanted_BS = batch.labels_BS[:, 1:] != -100
        answer_loss(logits_BSV[:, :-1][wanted_BS], batch.labels_BS, "tokens").backward()
        if step == 0:
            for name, copy in method.pool.composites["shared"].named().items():
                torch.testing.assert_close(copy.grad, trained[name].grad, atol=1e-6, rtol=1e-4)
        ours.step(), theirs.step()
    for name, copy in copies(method).items():
        assert (copy - before[name]).norm() > 1e-2
        torch.testing.assert_close(copy, trained[name].detach(), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", BASES)
def test_a_restored_method_goes_on_as_one_that_was_not_interrupted_and_the_base_does_not_move(kind, tmp_path):
    method, fresh = whole(kind), whole(kind)
    for number, task in enumerate(("sky", "sea")):
        fit(method, task, past=("sky",) * number, lr=1e-2)
        method.save(task, tmp_path / task)
        fresh.restore(task, tmp_path / task)
        assert all(torch.equal(copies(method)[name], copy) for name, copy in copies(fresh).items())
    assert fit(method, "ice", past=("sky", "sea")) == fit(fresh, "ice", past=("sky", "sea"))
    assert all(torch.equal(copies(method)[name], copy) for name, copy in copies(fresh).items())
    given = BASES[kind][0]().state_dict()
    assert all(torch.equal(weight, given[name]) for name, weight in method.pool.model.state_dict().items())


@pytest.mark.parametrize("kind", BASES)
def test_peft_alone_says_the_same_as_the_trained_layers(kind, tmp_path):
    method = whole(kind)
    fit(method, "sky", lr=1e-2)
    files.save(method.pool, method.ADAPTER, tmp_path)
    (batch,) = method.batches(task_named("sky").train, 3)
    ours = method.pool.logits(batch, method.ADAPTER)
    before = method.pool.logits(batch, None)
    alone = PeftModel.from_pretrained(BASES[kind][0](), tmp_path).eval()
    theirs = []
    for ids, mask, labels in zip(batch.input_ids_BS, batch.attention_mask_BS, batch.labels_BS, strict=True):
        row, wanted = ids[mask.bool()][None], labels[mask.bool()]
        with torch.no_grad():
            theirs.append(alone(input_ids=row).logits[0, :-1][wanted[1:] != -100])
    assert (ours - before).abs().max() > 0.1
    torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", [SeqFt, Mtl])
def test_all_weights_of_the_layers_are_stored_and_counted(method, tmp_path):
    made = whole("gpt2", method)
    fit(made, "sky", steps=1)
    layers = made.pool.layers.values()
    size = sum(4 * weight.numel() for layer in layers for weight in layer.parameters())
    assert made.storage() == {"pool": size, "weights": size}
    made.save("sky", tmp_path)
    assert size < (tmp_path / files.WEIGHTS).stat().st_size < size + 4096


def test_a_base_model_in_half_precision_has_copies_in_full_precision():
    method = whole(base=tiny_model().to(torch.bfloat16))
    fit(method, "sky", steps=1, lr=1e-5)  # a step that bf16 would round away
    base = method.pool.model.state_dict()
    for name, copy in copies(method).items():
        assert copy.dtype == torch.float32
        moved = copy - base[name].float()
        assert 0 < moved.abs().max() < 2e-5
    (batch,) = method.batches(task_named("sky").train, 3)
    assert not torch.equal(method.pool.logits(batch, method.ADAPTER), method.pool.logits(batch, None))


@pytest.mark.parametrize("loss_reduction", ["tokens", "examples"])
def test_gradients_of_parts_on_two_ranks_are_those_of_the_whole_batch(loss_reduction):
    rows = task_named("sky").train + task_named("sea").train
    one = whole(loss_reduction=loss_reduction)
    one.begin_task(task_named("sky"), Memory(0))
    (batch,) = one.batches(rows, 6)
    expected, shares = one.gradients(batch), []
    for rank in (0, 1):
        setup = Setup(
            small.pool(full=True, targets=BASES["llama"][1]),
            small.TEMPLATE,
            OptimConfig(loss_reduction=loss_reduction, max_tokens_per_microbatch=60),
            0,
            rank,
            2,
        )
        part = SeqFt(setup)
        part.begin_task(task_named("sky"), Memory(0))
        part.average = lambda tensor: tensor
        (batch,) = part.batches(rows, 6)
        assert batch.parts > 1
        shares.append(part.gradients(batch))
    for theirs, *ours in zip(expected, *shares, strict=True):
        torch.testing.assert_close(sum(ours) / 2, theirs, rtol=1e-4, atol=1e-6)


def test_a_folder_of_other_layers_is_refused(tmp_path):
    method = whole()
    fit(method, "sky", steps=1)
    method.save("sky", tmp_path)
    other = SeqFt(Setup(small.pool(full=True, targets=["q_proj"]), small.TEMPLATE, OptimConfig(), 0))
    with pytest.raises(ConfigError, match="does not hold an expert of this run"):
        other.restore("sky", tmp_path)
    with pytest.raises(ConfigError, match="trained whole"):
        files.read(method.pool, method.ADAPTER, tmp_path)


def test_activated_experts_cannot_be_whole_layers():
    with pytest.raises(ConfigError, match=r"adapter\.full trains whole layers.*adapter\.activated"):
        AdapterConfig(full=True, activated=True)


def test_whole_layers_are_made_of_the_layers_of_a_pool_alone():
    pool = ExpertPool(gpt2().requires_grad_(False), AdapterConfig(targets=["c_attn"], full=True), "gpt2")
    pool.add_expert("one", weights_seed=0)
    assert {name.rsplit(".", 1)[0] for name in pool.composites["one"].named()} == set(pool.layers)
    trained = {id(weight) for weight in pool.parameters() if weight.requires_grad}
    assert trained == {id(copy) for copy in pool.composites["one"].named().values()}
    pool.add_expert("two", weights_seed=0)
    assert not any(copy.requires_grad for copy in pool.composites["one"].named().values())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_lora_adapters_refuses_whole_layers_before_a_folder_is_made(name, tmp_path):
    cfg = toy.compose(tmp_path / "data", tmp_path / "runs", f"method={name}", "adapter=full")
    traits = method_class(cfg.method).traits
    if traits.weights == "lora" and traits.schedule != "frozen":
        with pytest.raises(ConfigError, match=rf"method={name} is made of LoRA adapters.*choose adapter=lora"):
            launch.check_traits(cfg, launch.validate(cfg))
    else:
        launch.check_traits(cfg, launch.validate(cfg))


def test_a_sharded_base_model_is_refused(tmp_path):
    cfg = toy.compose(tmp_path / "data", tmp_path / "runs", "method=seqft", "adapter=full", "trainer=fsdp")
    with pytest.raises(ConfigError, match="choose trainer=ddp"):
        launch.check_traits(cfg, launch.validate(cfg))
