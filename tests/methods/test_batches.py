"""Batches for a method's own passes: each rank's share of the same rows, and gradients of the whole."""

import pytest
import torch

from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup

ROWS = [Example(str(n), "why " * (n % 5 + 1), "because " * (n % 3 + 1), "qa" if n % 2 else "sa") for n in range(7)]


def method(make_pool, template, rank=0, ranks=1, **optim):
    setup = Setup(make_pool("shared"), template, OptimConfig(**optim), 0, rank, ranks)
    return SeqFt(setup).eval()  # without dropout, which every pass draws by itself


def test_ranks_share_the_rows_of_each_batch_and_all_of_them_are_counted(make_pool, template):
    methods = [method(make_pool, template, rank, 2) for rank in (0, 1)]
    for first, second, rows in zip(
        *(one.batches(ROWS, 3) for one in methods), (ROWS[:3], ROWS[3:6], ROWS[6:]), strict=True
    ):
        assert sorted(first.ids + second.ids) == [row.id for row in rows]
    assert [one.drawn for one in methods] == [{"sa": 4, "qa": 3}] * 2


def test_only_batches_that_were_taken_count(make_pool, template):
    made = method(make_pool, template)
    next(made.batches(ROWS, 2))
    assert made.drawn == {"sa": 1, "qa": 1}


@pytest.mark.parametrize("loss_reduction", ["tokens", "examples"])
def test_gradients_are_those_of_the_mean_loss_of_the_whole_batch(make_pool, template, loss_reduction):
    """Computed in parts, by several ranks, and in a hook that runs without gradients."""
    whole = method(make_pool, template, loss_reduction=loss_reduction)
    (batch,) = whole.batches(ROWS, 7)
    whole.loss(batch).backward()
    expected = [weight.grad for weight in whole.trained_weights()]

    shares = []
    for rank in (0, 1):
        one = method(make_pool, template, rank, 2, loss_reduction=loss_reduction, max_tokens_per_microbatch=20)
        one.average = lambda tensor: tensor
        (batch,) = one.batches(ROWS, 7)
        assert batch.parts > 1
        with torch.no_grad():
            shares.append(one.gradients(batch))
        assert all(weight.grad is None for weight in one.trained_weights())
    for theirs, *ours in zip(expected, *shares, strict=True):
        torch.testing.assert_close(sum(ours) / 2, theirs, rtol=1e-4, atol=1e-6)
