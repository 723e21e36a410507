"""SLAO: the basis by Gram and Schmidt, the merged B in closed form, and how a task begins and ends."""

import pytest
import torch
from torch import Tensor

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.seqlora_merge import SeqLoraMerge, merged, orthonormal
from see_lightning.methods.setup import Setup
from see_lightning.tasks.batches import Collator, encode
from see_lightning.tasks.datamodule import pad_id
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.methods.learning import learn, task_named

TARGETS = ["q_proj", "down_proj"]
TASKS = ("sky", "sea", "ice", "fog")


def slao(exponent: float = 0.5) -> SeqLoraMerge:
    return SeqLoraMerge(Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(), 0), exponent=exponent)


def pairs(method) -> dict[str, tuple[Tensor, Tensor]]:
    return {layer: (a.detach().clone(), b.detach().clone()) for layer, (a, b) in method.pool.pairs("shared").items()}


def ended(method, task: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The method after a task; A and B as they were trained, before the merging."""
    memory = Memory(0)
    for past in TASKS[: TASKS.index(task)]:
        memory.add(task_named(past))
    learn(method, task)
    trained = pairs(method)
    with torch.no_grad():
        method.end_task(task_named(task), memory)
    return trained


def test_the_basis_is_that_of_gram_and_schmidt():
    a = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = []
    for row in a:
        left = row - sum(torch.dot(row, other) * other for other in rows)
        rows.append(left / left.norm())
    torch.testing.assert_close(orthonormal(a), torch.stack(rows))
    torch.testing.assert_close(orthonormal(-a), -torch.stack(rows))
    wide = orthonormal(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(wide @ wide.T, torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])), atol=1e-6, rtol=0)


def test_merged_one_after_the_other_the_shares_are_those_of_the_closed_form():
    """Task j of n has the share $j^{-e} \\prod_{i>j} (1 - i^{-e})$; with $e = 1$ this is the mean."""
    new = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for exponent in (0.5, 1.0):
        total = torch.zeros(3, 2, dtype=torch.float64)
        for number, one in enumerate(new, start=1):
            total = merged(total, one, number, exponent)
        shares = []
        for j in range(1, 6):
            share = j**-exponent
            for i in range(j + 1, 6):
                share *= 1 - i**-exponent
            shares.append(share)
        assert sum(shares) == pytest.approx(1)
        torch.testing.assert_close(total, sum(share * one for share, one in zip(shares, new, strict=True)))
    torch.testing.assert_close(total, new.mean(0))


def test_a_task_begins_with_the_last_trained_b_and_a_basis_of_its_a_and_ends_merged():
    method, running = slao(), {}
    for number, task in enumerate(TASKS, start=1):
        trained = ended(method, task)
        for layer, (a, b) in pairs(method).items():
            expected = trained[layer][1] if number == 1 else merged(running[layer], trained[layer][1], number, 0.5)
            torch.testing.assert_close(b, expected)
            running[layer] = b
            assert torch.equal(a, trained[layer][0])
            assert torch.equal(method.state()[layer], trained[layer][1])
        assert number == 1 or not torch.equal(b, trained[layer][1])
        method.begin_task(task_named("next"), Memory(0))
        for layer, (a, b) in pairs(method).items():
            assert torch.equal(b, trained[layer][1])
            torch.testing.assert_close(a, orthonormal(trained[layer][0]))
        with torch.no_grad():  # back to what the task has left
            method.pool.load_weights("shared", {layer: (trained[layer][0], running[layer]) for layer in running})


def test_the_first_task_is_sequential_fine_tuning_bit_for_bit():
    ours = slao()
    theirs = SeqFt(Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(), 0))
    ended(ours, "sky")
    learn(theirs, "sky")
    for here, there in zip(pairs(ours).values(), pairs(theirs).values(), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))


def test_a_restored_method_goes_on_as_one_that_was_not_interrupted(tmp_path):
    method, fresh = slao(), slao()
    for task in ("sky", "sea"):
        ended(method, task)
        method.save(task, tmp_path / task)
        fresh.restore(task, tmp_path / task)
    assert method.storage()["state"] == sum(b.nbytes for _, b in pairs(method).values())
    first, second = ended(method, "ice"), ended(fresh, "ice")
    for one, other in ((first, second), (pairs(method), pairs(fresh))):
        for here, there in zip(one.values(), other.values(), strict=True):
            assert all(torch.equal(left, right) for left, right in zip(here, there, strict=True))


def test_validation_is_of_the_merged_b_which_answers_and_leaves_the_trained_one():
    method, rows = slao(), encode(task_named("sea").train, small.TEMPLATE)
    ended(method, "sky")
    memory = Memory(0)
    memory.add(task_named("sky"))
    method.begin_task(task_named("sea"), memory)
    with torch.no_grad():
        for number, (_, b_OR) in enumerate(method.pool.pairs("shared").values()):
            b_OR += 0.1 * torch.randn(b_OR.shape, generator=torch.Generator().manual_seed(number))
    trained, part = pairs(method), Collator(pad_id(small.TEMPLATE), "tokens", 4096).batch(rows, [*range(len(rows))])
    with torch.no_grad():
        judged, own = method.validation_logits(part), method.logits(part)
    for before, after in zip(trained.values(), pairs(method).values(), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    with torch.no_grad():
        method.end_task(task_named("sea"), memory)
        torch.testing.assert_close(judged, method.logits(part))
    assert not torch.allclose(judged, own, atol=1e-3)


@pytest.mark.parametrize("exponent", [-0.5, 1.5])
def test_an_exponent_out_of_range_is_refused(exponent):
    with pytest.raises(ConfigError, match=r"method\.exponent must be between 0 and 1"):
        slao(exponent)
