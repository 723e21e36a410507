"""EWC and MAS alike: the ranks' shares of the importance, the penalty by hand, and what is kept."""

from functools import partial

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from see_lightning.config.schema import OptimConfig
from see_lightning.methods.consolidation import distance
from see_lightning.methods.ewc import Ewc
from see_lightning.methods.mas import Mas
from see_lightning.methods.setup import Setup
from tests.adapters import small
from tests.methods.learning import (
    after_two_tasks,
    assert_trains_as_seqft,
    ended,
    equal,
    learn,
    task_named,
    weights,
)

TARGETS = ["q_proj", "down_proj"]
KINDS = {"ewc": partial(Ewc, decay=1.0), "mas": Mas}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def made(kind: str, *, rank: int = 0, ranks: int = 1, strength: float = 1.0):
    setup = Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(), 0, rank, ranks)
    return KINDS[kind](setup, strength=strength)


def test_ranks_share_the_examples_of_the_importance(kind):
    """Three examples for two ranks: the last of one rank counts for nothing."""
    alone = ended(made(kind), "sky")
    shares = []
    for rank in (0, 1):
        one = made(kind, rank=rank, ranks=2)
        learn(one, "sky")
        one.average = lambda tensor: tensor
        shares.append(one.importance_of(task_named("sky").train))
    for importance, *both in zip(alone.importance.values(), *shares, strict=True):
        assert_close(sum(both) / 2, importance, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("kind", "factor"), [("ewc", 0.5), ("mas", 1.0)])
def test_the_penalty_is_the_weighted_squared_distance_from_the_last_tasks_weights(kind, factor):
    method = made(kind, strength=3.0)
    assert method.penalty() is None
    ended(method, "sky")
    anchor, importance = weights(method), list(method.importance.values())
    learn(method, "sea")
    by_hand = sum(
        3 * factor * (f * (weight - old).square()).sum().item()
        for weight, old, f in zip(weights(method), anchor, importance, strict=True)
    )
    assert method.penalty().item() == pytest.approx(by_hand, rel=1e-5)
    assert by_hand > 0


def test_important_weights_move_less_the_stronger_it_is(kind):
    moved = []
    for strength in (0.0, 1e4):
        method = ended(made(kind, strength=strength), "sky")
        anchor, importance = weights(method), list(method.importance.values())
        learn(method, "sea", steps=10)
        moved.append(distance(weights(method), anchor, importance).item())
    assert moved[1] < 0.1 * moved[0]


def test_without_a_past_it_is_sequential_fine_tuning_bit_for_bit(kind):
    assert_trains_as_seqft(made(kind), TARGETS)


def test_a_restored_method_goes_on_as_one_that_was_not_interrupted(kind, tmp_path):
    method, fresh = after_two_tasks(partial(made, kind, strength=50.0), tmp_path)
    assert load_file(tmp_path / "sea" / "method_state.safetensors").keys() == method.importance.keys()
    assert list(fresh.importance) == list(method.importance)
    assert method.storage()["state"] == method.storage()["weights"]
    assert learn(method, "ice") == learn(fresh, "ice")
    assert equal(weights(method), weights(fresh))
