"""MIGU: the rows that are chosen, by passes over single rows, and what a step leaves bit for bit as it was."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.migu import Migu, largest, with_largest_rows
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.methods.fixed import waves
from tests.methods.learning import learn, task_named

TARGETS = ["q_proj", "down_proj"]


def setup(*, activated: bool = False, targets: list[str] = TARGETS) -> Setup:
    return Setup(small.pool(rank=8, targets=targets, activated=activated), small.TEMPLATE, OptimConfig(), 0)


def migu(*, frozen: float = 0.7, activated: bool = False, targets: list[str] = TARGETS) -> Migu:
    """The method at the beginning of its second task."""
    method = Migu(setup(activated=activated, targets=targets), frozen=frozen)
    learn(method, "sky")
    begin(method)
    return method


def begin(method) -> None:
    memory = Memory(0)
    memory.add(task_named("sky"))
    method.begin_task(task_named("sea"), memory)
    method.eval()


def matrices(method) -> list[Tensor]:
    return [weight.detach().clone() for weight in method.pool.weights_of([method.ADAPTER])]


def steps(method, number: int):
    """Steps with momentum and weight decay; yields the matrices before and after each."""
    optimizer = torch.optim.AdamW(method.trained_weights(), lr=0.05, weight_decay=0.1)
    for batch in [next(method.batches(task_named(f"sea{step}").train, 3)) for step in range(number)]:
        before = matrices(method)
        optimizer.zero_grad()
        method.loss(batch).backward()
        method.edit_gradients()
        optimizer.step()
        method.after_step()
        yield before, matrices(method)


@pytest.mark.parametrize("rows", [4, 10, 33])
@pytest.mark.parametrize("frozen", [0.0, 0.7, 0.95])
def test_the_rows_with_the_largest_magnitudes_are_updated(rows, frozen):
    magnitudes = torch.rand(rows, generator=torch.Generator().manual_seed(rows))
    chosen = largest(magnitudes, frozen)
    number = int(chosen.sum())
    assert set(chosen.nonzero().flatten().tolist()) == set(magnitudes.topk(number).indices.tolist())
    assert abs(number - (1 - frozen) * rows) < 1
    assert torch.equal(chosen, largest(1000 * magnitudes, frozen)), "the scale of a layer does not matter"


@pytest.mark.parametrize(
    ("frozen", "of_a", "of_b"),
    [
        (0.7, [0, 4, 5], [6, 8, 9, 10, 12, 13, 22, 27, 29, 30]),
        (0.5, [0, 1, 4, 5], [1, 4, 5, 6, 8, 9, 10, 12, 13, 19, 22, 23, 25, 27, 29, 30]),
    ],
)
def test_magnitudes_and_rows_are_those_of_the_authors_code_where_nothing_is_padded(frozen, of_a, of_b):
    """Those of the hook of src/uie_trainer_lora.py and of ``backward_full_tuning`` in src/accelerate_local.py, wenyudu/MIGU
    at 3f3b9f0. The latter is for whole layers; here each layer is a matrix of the adapter.
    """
    method = migu(frozen=frozen, targets=["q_proj"])
    layer = small.first(method.pool)
    pair, x = method.pool.pair(layer, "shared"), waves(2, 3, 32, phase=3.0).float()
    for weight, phase in zip(pair, (1.0, 2.0), strict=True):
        with torch.no_grad():
            weight.copy_(waves(*weight.shape, phase=phase))
        weight.grad = torch.ones_like(weight)
    method._add_magnitudes(torch.tensor([3, 3]), layer, x)
    theirs = [17.793477, 16.384459, 10.045264, 14.929252, 16.629169, 18.280319, 9.991972, 11.327576]
    torch.testing.assert_close(method.magnitudes[f"{layer}.A"], torch.tensor(theirs), atol=1e-4, rtol=0)
    method.edit_gradients()
    for weight, rows in zip(pair, (of_a, of_b), strict=True):
        assert weight.grad.any(dim=1).nonzero().flatten().tolist() == rows
    method._add_magnitudes(torch.tensor([2, 3]), layer, x)  # the first row begins with padding, which that code counts
    assert (method.magnitudes[f"{layer}.A"] < torch.tensor(theirs) - 0.1).all()


@pytest.mark.parametrize("activated", [False, True])
def test_magnitudes_are_those_of_each_row_alone_without_padding(activated):
    method = migu(activated=activated, targets=[*TARGETS, "lm_head"])
    examples, expected = task_named("sea").train, {}
    (batch,) = method.batches(examples, 3)
    assert (batch.attention_mask_BS == 0).any(), "some rows are padded"
    method.loss(batch)

    def note(layer, x):
        a, b = method.pool.pair(layer, "shared")
        low = x.detach().flatten(0, -2) @ a.detach().T
        for name, out in ((f"{layer}.A", low), (f"{layer}.B", low @ b.detach().T)):
            expected.setdefault(name, []).append(out.abs().sum(0))

    # With the prompts kept, the base model reads nothing here; above, it read what is before the header.
    method.pool.keep_prompts([[small.TEMPLATE.prompt_ids(example.prompt) for example in examples]])
    with method.pool.observe(note):
        for example in examples:
            method.pool.logits(next(method.batches([example], 1)), "shared")
    assert method.magnitudes.keys() == expected.keys()
    for name, seen in expected.items():
        torch.testing.assert_close(method.magnitudes[name], torch.stack(seen).sum(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("activated", [False, True])
def test_other_rows_stay_bit_for_bit_under_adamw_with_momentum_and_weight_decay(activated):
    method = migu(activated=activated)
    seen = set()
    for before, after in steps(method, 6):
        for matrix, (old, new) in enumerate(zip(before, after, strict=True)):
            changed = (old != new).any(dim=1)
            assert 0 < changed.sum() <= 0.3 * len(old) + 1
            seen.add((matrix, tuple(changed.tolist())))
    assert len(seen) > len(matrices(method)), "the rows are chosen again in each step"


def test_without_the_last_hook_momentum_and_weight_decay_move_other_rows(monkeypatch):
    method = migu()
    monkeypatch.setattr(method, "after_step", lambda: None)
    changed = [
        (old != new).any(dim=1).float().mean()
        for before, after in steps(method, 2)
        for old, new in zip(before, after, strict=True)
    ]
    assert max(changed) == 1


def test_micro_batches_add_up_and_a_part_without_examples_counts_for_nothing():
    method = migu()
    (batch,) = method.batches(task_named("sea").train, 3)
    method.loss(batch)
    whole, method.magnitudes = method.magnitudes, {}
    for part in replace(batch, parts=3).split("tokens"):
        method.loss(part)
    method.loss(replace(batch, ids=[], weight=0.0))
    for name, magnitudes in whole.items():
        torch.testing.assert_close(method.magnitudes[name], magnitudes, rtol=1e-4, atol=1e-4)


def test_gradients_for_the_method_s_own_use_choose_no_rows():
    method = migu()
    method.gradients(next(method.batches(task_named("sea").train, 3)))
    assert method.masks_rows
    assert not method.magnitudes


def test_a_rank_without_an_example_takes_the_rows_of_the_others(monkeypatch):
    method = migu()
    (batch,) = method.batches(task_named("sea").train, 3)
    method.loss(batch).backward()
    sums = torch.cat(list(method.magnitudes.values()))
    method.magnitudes = {}
    monkeypatch.setattr(method, "average", lambda own: (own + sums) / 2)
    method.edit_gradients()
    sizes = [len(weight) for weight in matrices(method)]
    for weight, expected in zip(method.trained_weights(), sums.split(sizes), strict=True):
        assert torch.equal(weight.grad.any(dim=1), largest(expected, 0.7) & weight.grad.any(dim=1))
        assert weight.grad.any()


def test_the_first_task_and_a_frozen_share_of_zero_are_sequential_fine_tuning_bit_for_bit():
    theirs = SeqFt(setup())
    learn(theirs, "sky")
    ours = migu(frozen=0.0)
    assert all(torch.equal(here, there) for here, there in zip(matrices(ours), matrices(theirs), strict=True))
    begin(theirs)
    for (_, here), (_, there) in zip(steps(ours, 3), steps(theirs, 3), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))


def test_in_the_first_task_all_rows_are_updated():
    method = Migu(setup(), frozen=0.7)
    method.begin_task(task_named("sky"), Memory(0))
    method.eval()
    *_, (before, after) = steps(method, 3)
    assert all((old != new).any(dim=1).all() for old, new in zip(before, after, strict=True))


def test_a_method_that_trains_other_weights_is_refused():
    class Heads(SeqFt):
        def begin_task(self, task, memory):
            super().begin_task(task, memory)
            self.pool.pair("model.layers.0.self_attn.q_proj", self.ADAPTER)[0].requires_grad_(False)

    method = with_largest_rows(Heads)(replace(setup(), optim=OptimConfig(migu=0.5)))
    with pytest.raises(ConfigError, match=r"optim\.migu=0\.5 .* Heads trains other weights"):
        method.begin_task(task_named("sky"), Memory(0))


def test_a_share_of_one_is_refused():
    with pytest.raises(ConfigError, match=r"method\.frozen must be between 0 and 0\.999"):
        Migu(setup(), frozen=1.0)
