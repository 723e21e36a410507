"""Gradients of everything that is masked, against finite differences of the relaxed function, unchosen entries included.

The relaxed function has the mask's entries as numbers: of weights ``(B m) (m A)``, of ranks ``sum_u m_u b_u (a_u x)``, a rank's
entry once. Straight-through hands its slope at the mask to the size of every score (WSN, equation 5).
"""

import pytest
import torch
from torch import nn

from see_lightning.adapters.lora import update
from see_lightning.adapters.rank_mixture import MixtureOfRanks, activations
from see_lightning.methods.subnetworks.mixture import routed
from tests.adapters import small
from tests.methods.subnetwork import RANK, learning

STEP = 1e-3


def one_layer(granularity, experts, k=1):
    """Masks over the query projection, gated where there are several experts."""
    return learning(
        granularity, experts=experts, k=k, density=0.5, targets=["q_proj"], weights_seed=11, gated=experts > 1
    )


def slopes(of, at):
    """Central differences of a function of one tensor, entry by entry; exact where it is linear in each."""
    at = at.contiguous()
    found = torch.zeros_like(at)
    for place in range(at.numel()):
        nudge = torch.zeros_like(at).flatten()
        nudge[place] = STEP
        nudge = nudge.view_as(at)
        found.view(-1)[place] = (of(at + nudge) - of(at - nudge)) / (2 * STEP)
    return found


@pytest.mark.parametrize(
    ("granularity", "experts", "k"),
    [("rank", 1, 1), ("rank", 3, 3), ("rank", 3, 2), ("weight", 1, 1), ("weight", 3, 2)],
)
def test_scores_get_the_slope_of_the_relaxed_mask(granularity, experts, k):
    pool, made = one_layer(granularity, experts, k)
    layer = small.first(pool)
    draw = torch.Generator().manual_seed(12)
    x = torch.randn(6, pool.layers[layer].in_features, generator=draw, dtype=torch.float64)
    upstream = torch.randn(6, pool.layers[layer].out_features, generator=draw, dtype=torch.float64)
    made.learn(layer, x, torch.zeros_like(upstream)).backward(upstream)

    a, b = (weight.detach().double() for weight in pool.pair(layer, "pool"))
    fixed = made.mask(layer).fixed()
    gates = routed(x, made.routers[0], fixed.ranks(), k).detach() if experts > 1 else x.new_ones(6, 1)
    gates = gates.repeat_interleave(RANK, dim=-1)

    def loss(a_masked, b_masked):
        return 1.5 * (((x @ a_masked.T) * gates) @ b_masked.T * upstream).sum()

    halves = [part.expand_as(weight).double() for part, weight in zip((fixed.down, fixed.up), (a, b), strict=True)]
    if granularity == "rank":
        expected = [slopes(lambda m: loss(a * m[:, None], b), fixed.up[0].double())]
    else:
        expected = [
            slopes(lambda m: loss(a * m, b * halves[1]), halves[0]),
            slopes(lambda m: loss(a * halves[0], b * m), halves[1]),
        ]
    chosen = [fixed.up[0]] if granularity == "rank" else [fixed.down, fixed.up]
    for scores, slope, mask in zip(made.scores[0].values, expected, chosen, strict=True):
        torch.testing.assert_close(scores.grad.double(), slope * scores.detach().sign(), rtol=1e-4, atol=1e-5)
        assert scores.grad[~mask].abs().max() > 0.01, "what is not chosen can be learned to be chosen"


def test_weights_outside_the_mask_get_no_gradient():
    for granularity in ("rank", "weight"):
        pool, made = one_layer(granularity, 3, 2)
        pool.train_only("pool")
        layer = small.first(pool)
        made.learn(
            layer, torch.randn(6, pool.layers[layer].in_features), torch.zeros(6, pool.layers[layer].out_features)
        ).square().sum().backward()
        mask = made.mask(layer).fixed()
        for weight, part in zip(pool.pair(layer, "pool"), (mask.down, mask.up), strict=True):
            assert not weight.grad[~part.expand_as(weight)].any()
            assert weight.grad.any()


@pytest.mark.parametrize("temperature", [None, 0.3])
def test_a_mixture_of_ranks_has_the_gradient_of_what_it_computes(temperature):
    """Here nothing is relaxed: the ranks beyond the budget are constant nearby, and get nothing."""
    pool = small.pool(rank=RANK, alpha=6.0, targets=["q_proj"])
    for number, name in enumerate(("old", "new")):
        pool.add_adapter(name, number)
        for layer in pool.layers:
            for weight in pool.pair(layer, name):
                nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(number))
    mixture = MixtureOfRanks(pool.eval(), ["new", "old"], budget=5, temperature=temperature, threshold=0.0)
    layer = small.first(pool)
    x = torch.randn(3, pool.layers[layer].in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    upstream = torch.randn(
        3, pool.layers[layer].out_features, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )
    pool.train_only("new")
    a, b = pool.pair(layer, "new")
    mixture.learn(layer, x, torch.zeros_like(upstream)).backward(upstream)
    old = [weight.detach().double() for weight in pool.pair(layer, "old")]

    def loss(a_new, b_new):
        low = x @ torch.cat([a_new, old[0]]).T
        acted = _in_double(low, 5, temperature)
        return 1.5 * ((low * acted) @ torch.cat([b_new, old[1]], dim=1).T * upstream).sum()

    for weight, of in ((a, lambda w: loss(w, b.detach().double())), (b, lambda w: loss(a.detach().double(), w))):
        torch.testing.assert_close(weight.grad.double(), slopes(of, weight.detach().double()), rtol=1e-3, atol=1e-3)


def _in_double(low, budget, temperature):
    """``activations`` without its rounding to single precision, which differences would magnify."""
    scores = low / low.norm(dim=-1, keepdim=True)
    scores = scores.abs() if temperature is None else scores
    kept = torch.zeros_like(scores).scatter(-1, scores.topk(budget, dim=-1).indices, 1.0)
    weights = (
        scores * kept if temperature is None else (scores / temperature).masked_fill(kept == 0, -torch.inf).softmax(-1)
    )
    torch.testing.assert_close(weights.float(), activations(low, budget, temperature), rtol=1e-4, atol=1e-5)
    return weights


def test_a_plain_update_is_the_oracle_of_the_ungated_one():
    pool, made = one_layer("rank", 1)
    layer = small.first(pool)
    x = torch.randn(2, pool.layers[layer].in_features)
    a, b = made.pair(layer)
    torch.testing.assert_close(
        made.learn(layer, x, torch.zeros(2, pool.layers[layer].out_features)),
        update(torch.zeros(2, pool.layers[layer].out_features), x, a, b, scale=1.5, drop=0.0),
    )
