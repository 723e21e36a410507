"""Ranks that activate themselves, against sums written out number by number and the adapters of PEFT."""

import math
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F

from see_lightning.adapters.lora import update
from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.rank_mixture import Activity, MixtureOfRanks, activations
from tests.adapters import small


def by_hand(low: list[float], budget: int, temperature: float | None, threshold: float) -> list[float]:
    """The paper's sentences, one after the other, for one token."""
    length = math.sqrt(sum(number**2 for number in low))
    scores = [number / length for number in low]
    if temperature is None:
        scores = [abs(score) for score in scores]
    best = sorted(range(len(low)), key=lambda rank: -scores[rank])[:budget]
    if temperature is None:
        weights = {rank: scores[rank] for rank in best}
    else:
        powers = {rank: math.exp(scores[rank] / temperature) for rank in best}
        weights = {rank: power / sum(powers.values()) for rank, power in powers.items()}
    return [weights.get(rank, 0.0) if not threshold or score >= threshold else 0.0 for rank, score in enumerate(scores)]


@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("temperature", [None, 0.03, 1.0])
@pytest.mark.parametrize(("ranks", "budget"), [(1, 1), (6, 1), (6, 3), (6, 6), (6, 9)])
def test_how_far_a_rank_acts_is_what_the_paper_says(ranks, budget, temperature, threshold):
    low = torch.randn(2, 5, ranks, generator=torch.Generator().manual_seed(ranks))
    found = activations(low, budget, temperature, threshold)
    expected = [[by_hand(token, budget, temperature, threshold) for token in row] for row in low.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_gradients_go_through_the_weights_of_the_ranks_that_act():
    torch.manual_seed(0)
    low, given = torch.randn(7, 6, requires_grad=True), torch.randn(7, 6)
    ours = low * activations(low, 3, 0.1)
    # As the authors' code has it.
    scores = F.normalize(low, dim=-1)
    top = scores.topk(3, dim=-1)
    theirs = low * (torch.full_like(scores, -torch.inf).scatter(-1, top.indices, top.values) / 0.1).softmax(-1)
    (found,), (expected,) = (torch.autograd.grad((one * given).sum(), low) for one in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.03])
def test_how_far_a_rank_acts_hangs_on_directions_alone_and_is_told_in_full_precision(temperature):
    low = torch.randn(9, 8, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    found = activations(low, 4, temperature, 0.1)
    assert found.dtype == torch.float32
    assert torch.equal(activations(low * 2**40, 4, temperature, 0.1), found)
    assert torch.equal(activations(low * 2**-40, 4, temperature, 0.1), found)


def test_equal_ranks_take_no_more_than_the_budget():
    assert (activations(torch.ones(3, 8), 5, 1.0) > 0).sum(-1).tolist() == [5, 5, 5]
    assert (activations(torch.ones(3, 8), 5, None) > 0).sum(-1).tolist() == [5, 5, 5]


@pytest.mark.parametrize("temperature", [None, 0.03])
def test_a_token_in_which_no_rank_finds_anything_adds_nothing_and_harms_no_gradient(temperature):
    low = torch.zeros(1, 4, requires_grad=True)
    added = low * activations(low, 2, temperature)
    added.sum().backward()
    assert added.tolist() == [[0.0] * 4]
    assert low.grad.isfinite().all()


def test_by_size_a_silent_rank_takes_nothing_from_the_others():
    low = torch.tensor([[3.0, -4.0, 1.0]])
    wide = torch.tensor([[3.0, -4.0, 1.0, 0.0, 0.0]])
    assert torch.equal(activations(wide, 5, None)[:, :3], activations(low, 3, None))


def pool_of(*adapters: str, dropout: float = 0.0, rank: int = 4) -> ExpertPool:
    made = small.pool(*adapters, rank=rank, targets=["q_proj", "down_proj"])
    made.adapter.dropout = dropout
    return made


def inputs(pool: ExpertPool) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    return [torch.randn(2, 3, pool.layers[layer].in_features, generator=draw) for layer in pool.layers]


def prune(pool: ExpertPool, adapter: str, *ranks: int) -> None:
    for layer in pool.layers:
        a, b = pool.pair(layer, adapter)
        with torch.no_grad():
            a[list(ranks)] = 0
            b[:, list(ranks)] = 0


@torch.no_grad()
def written_out(pool, layer, x, adapters, *, budget, temperature, threshold, gone=()) -> torch.Tensor:
    """The sum over tasks and ranks, one after the other, for each token."""
    ranks = [
        (a, b) for one in adapters for place, (a, b) in enumerate(zip(pool.pair(layer, one)[0], pool.pair(layer, one)[1].T, strict=True))
        if (one, place) not in gone
    ]  # fmt: skip
    added = torch.zeros(*x.shape[:-1], pool.layers[layer].out_features)
    for place in torch.cartesian_prod(*map(torch.arange, x.shape[:-1])):
        token = tuple(place.tolist())
        low = [float(a @ x[token]) for a, _ in ranks]
        for weight, number, (_, b) in zip(by_hand(low, budget, temperature, threshold), low, ranks, strict=True):
            added[token] += pool.scale(layer, adapters[0]) * weight * number * b
    return added


#: ``MoRAMLinear`` of TRACE/utils/my_peft/tuners/moram.py, Artificer-AI-Lab/MoRAM, commit 05c3d61, run in double precision on the
#: tensors of the test, with temperature 0.3 and threshold 0.2: three numbers of two tokens' updates.
AUTHORS = {
    ("k=3", "inference"): [[8.389674504993232, -1.4914795953757771, -5.927553158781374], [11.896507750967242, -3.174578791825191, -6.1212566802607595]],
    ("k=3", "training"): [[8.22833427606906, -1.5805064225497785, -5.853441200719409], [11.999254363789273, -3.46206498625388, -6.154123419903387]],
    ("k=1", "inference"): [[9.11951689804783, -1.621227780056041, -6.443208394248325], [13.18517380595704, -3.5184588626453888, -6.78432989997015]],
    ("k=1", "training"): [[9.14510036781555, -1.6256712656657137, -6.420574922431361], [13.18517380595704, -3.5184588626453888, -6.78432989997015]],
}  # fmt: skip


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize(("budget", "theirs"), [(3, "k=3"), (2, "k=1")])
def test_the_update_is_that_of_the_authors_code(budget, theirs, mode):
    """With k = 1 the code takes two ranks. Where only old ranks act, as here in inference, it leaves out the scale."""

    def drawn(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    x, expected = drawn(94, 1, 2, 32).float(), torch.tensor(AUTHORS[theirs, mode])
    for alpha in (3.0, 6.0):
        pool = small.pool("old", "new", rank=3, alpha=alpha, targets=["q_proj"]).train(mode == "training")
        layer = small.first(pool)
        pool.load_weights("old", {layer: (drawn(90, 3, 32), drawn(91, 32, 3))})
        pool.load_weights("new", {layer: (drawn(92, 3, 32), drawn(93, 32, 3))})
        mixture = MixtureOfRanks(pool, ("new", "old"), budget=budget, temperature=0.3, threshold=0.2)
        added = mixture.add(layer, x) if mode == "inference" else mixture.learn(layer, x, torch.zeros(1, 2, 32))
        torch.testing.assert_close(added[0, :, :3], alpha / 3 * expected, atol=1e-4, rtol=1e-5)


SETTINGS = [
    {"budget": 3, "temperature": 0.1, "threshold": 0.2},
    {"budget": 3, "temperature": None, "threshold": 0.3},
    {"budget": 99, "temperature": 0.5, "threshold": 0.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("pruned", [False, True])
def test_a_voice_is_the_sum_over_the_ranks_of_all_tasks(settings, pruned):
    pool = pool_of("old", "older", "new")
    if pruned:
        prune(pool, "old", 1, 2)
    adapters = ("new", "old", "older")
    adapter, gone = MixtureOfRanks(pool, adapters, **settings), {("old", 1), ("old", 2)} if pruned else set()
    for layer, x in zip(pool.layers, inputs(pool), strict=True):
        expected = written_out(pool, layer, x, adapters, gone=gone, **settings)
        torch.testing.assert_close(adapter.add(layer, x), expected, atol=1e-5, rtol=1e-4)
        y = torch.ones_like(expected)
        torch.testing.assert_close(adapter.learn(layer, x, y), y + expected, atol=1e-5, rtol=1e-4)


def test_the_threshold_is_for_answering():
    pool = pool_of("old", "new")
    adapters, settings = ("new", "old"), SETTINGS[0]
    adapter, layer, x = MixtureOfRanks(pool, adapters, **settings), small.first(pool), inputs(pool)[0]
    pool.train()
    expected = written_out(pool, layer, x, adapters, **settings | {"threshold": 0.0})
    torch.testing.assert_close(adapter.learn(layer, x, torch.zeros_like(expected)), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, adapter.add(layer, x), atol=1e-3)


def test_a_single_rank_learns_as_plain_lora_does_with_the_same_dropout():
    pool = pool_of("new", dropout=0.25, rank=1).train()
    adapter = MixtureOfRanks(pool, ("new",), budget=1, temperature=0.03, threshold=0.2)
    layer, x = small.first(pool), inputs(pool)[0]
    y = torch.randn(*x.shape[:-1], pool.layers[layer].out_features)
    outcomes = []
    for ours in (True, False):
        torch.manual_seed(4)
        pair, scale = pool.pair(layer, "new"), pool.scale(layer, "new")
        out = adapter.learn(layer, x, y) if ours else update(y, x, *pair, scale=scale, drop=0.25)
        outcomes.append((out, *torch.autograd.grad(out.square().sum(), pair)))
    for here, there in zip(*outcomes, strict=True):
        torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)


def test_only_the_newest_ranks_learn_also_behind_an_answer_in_inference_mode():
    pool = pool_of("old", "new")
    pool.train_only("new")
    adapter, layer, x = MixtureOfRanks(pool, ("new", "old"), **SETTINGS[0]), small.first(pool), inputs(pool)[0]
    with torch.inference_mode():
        adapter.add(layer, x)
        adapter.learn(layer, x, torch.zeros(2, 3, pool.layers[layer].out_features))
    adapter.learn(layer, x.requires_grad_(), torch.zeros(2, 3, pool.layers[layer].out_features)).sum().backward()
    assert all(weight.grad.any() for weight in pool.pair(layer, "new"))
    assert [weight.grad for weight in pool.pair(layer, "old")] == [None, None]
    assert x.grad.any()
    fresh = MixtureOfRanks(pool, ("new", "old"), **SETTINGS[0])
    assert not fresh.add(layer, x.detach()).requires_grad, "ranks that answer are frozen"


def test_ranks_are_stacked_once_while_they_rest():
    pool = pool_of("old", "new")
    adapter, layer, x = MixtureOfRanks(pool, ("new", "old"), **SETTINGS[0]), small.first(pool), inputs(pool)[0]
    y = torch.zeros(2, 3, pool.layers[layer].out_features)
    before = adapter.add(layer, x), adapter.learn(layer, x, y)
    with patch("see_lightning.adapters.rank_mixture.living", side_effect=AssertionError("stacked again")):
        assert torch.equal(adapter.add(layer, x), before[0])
        assert torch.equal(adapter.learn(layer, x, y), before[1])
        assert torch.equal(adapter.add(layer, x), before[0])


@pytest.mark.parametrize("moved", ["old", "new"])
def test_weights_that_move_are_heard(moved):
    pool = pool_of("old", "new")
    adapters, settings = ("new", "old"), SETTINGS[0]
    adapter, layer, x = MixtureOfRanks(pool, adapters, **settings), small.first(pool), inputs(pool)[0]
    y = torch.zeros(2, 3, pool.layers[layer].out_features)
    before = adapter.add(layer, x), adapter.learn(layer, x, y)
    with torch.no_grad():
        pool.pair(layer, moved)[0].neg_()
    expected = written_out(pool, layer, x, adapters, **settings)
    for was, found in zip(before, (adapter.add(layer, x), adapter.learn(layer, x, y)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found, was, atol=1e-3)


def test_what_a_file_holds_are_the_newest_ranks_and_what_counts_are_all():
    pool = pool_of("old", "new")
    adapter = MixtureOfRanks(pool, ("new", "old"), **SETTINGS[0])
    pool.register("one", adapter)
    layer = small.first(pool)
    assert all(
        torch.equal(held, weight) for held, weight in zip(adapter.pair(layer), pool.pair(layer, "new"), strict=True)
    )
    digests = [pool.digest("one")]
    for name in ("old", "new"):
        with torch.no_grad():
            pool.pair(layer, name)[1].neg_()
        digests.append(pool.digest("one"))
    assert len(set(digests)) == 3


def test_activity_is_summed_over_all_tokens_and_changes_nothing():
    pool = pool_of("old", "new")
    adapter = MixtureOfRanks(pool, ("new", "old"), **SETTINGS[0])
    activity, layer = Activity(adapter), small.first(pool)
    first, second = inputs(pool)[0], -inputs(pool)[0][:1, :2]
    assert torch.equal(activity.add(layer, first), adapter.add(layer, first))
    activity.add(layer, second)
    tokens = torch.cat([first.flatten(0, 1), second.flatten(0, 1)])
    rows = torch.cat([pool.pair(layer, name)[0] for name in ("new", "old")])
    expected = sum(torch.tensor(by_hand(token, 3, 0.1, 0.2)) for token in (tokens @ rows.T).tolist())
    torch.testing.assert_close(activity.sums[layer], expected, atol=1e-5, rtol=1e-4)
