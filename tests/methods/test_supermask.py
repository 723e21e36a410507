"""Supermasks, which are sub-experts without a router, against dense products; PEFT is the oracle of what one says."""

import math

import numpy as np
import pytest
import torch

from see_lightning.methods.subnetworks.masks import top_share
from see_lightning.methods.subnetworks.mixture import MaskScores, SubExpert, TrainableSubnetwork
from see_lightning.methods.subnetworks.shared_adapter import SharedAdapter
from tests.adapters import small

DENSITY = 0.3


@pytest.fixture
def choosing():
    pool = small.pool(rank=4, alpha=12.0)
    shared = SharedAdapter(pool, "one", 0, draw_up=True)
    draw = torch.Generator().manual_seed(1)
    scores = []
    for layer in pool.layers:
        (ranks, inner), (outer, _) = (weight.shape for weight in shared.pair(layer))
        scores.append(MaskScores(1, "weight", (ranks, inner, outer), draw, math.ceil))
    made = TrainableSubnetwork(pool, "one", scores, density=DENSITY)
    pool.register("task", made)
    pool.train_only("task", "one")
    return pool.eval(), made


def frozen(pool, made):
    return SubExpert(pool, "one", [made.mask(layer).fixed() for layer in pool.layers])


def by_hand(pool, made, layer, x):
    """3 (B m) (A m) x, the masks by numpy's order of the scores' sizes."""
    masked = []
    for weight, scores in zip(pool.pair(layer, "one"), made.scores[list(pool.layers).index(layer)].values, strict=True):
        size = np.abs(scores.detach().numpy())
        mask = np.zeros(size.size, dtype=bool)
        mask[np.argsort(-size.ravel())[: size.size - int((1 - DENSITY) * size.size)]] = True
        masked.append(weight.detach().numpy() * mask.reshape(size.shape))
    a, b = masked
    return 3 * x.numpy() @ a.T @ b.T


def test_both_forms_are_the_masked_product(choosing):
    pool, made = choosing
    fixed = frozen(pool, made)
    for layer in pool.layers:
        x = torch.randn(2, 3, pool.layers[layer].in_features, generator=torch.Generator().manual_seed(2))
        y = torch.randn(2, 3, pool.layers[layer].out_features, generator=torch.Generator().manual_seed(3))
        expected = torch.tensor(by_hand(pool, made, layer, x))
        for adapter in (made, fixed):
            torch.testing.assert_close(adapter.add(layer, x), expected, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(adapter.learn(layer, x, y), y + expected, rtol=1e-4, atol=1e-6)
        assert all(map(torch.equal, made.pair(layer), fixed.pair(layer)))


def test_gradients_go_to_the_chosen_weights_and_straight_through_to_all_scores(choosing):
    pool, made = choosing
    layer = small.first(pool)
    x = torch.randn(5, pool.layers[layer].in_features, generator=torch.Generator().manual_seed(4))
    upstream = torch.randn(5, pool.layers[layer].out_features, generator=torch.Generator().manual_seed(5))
    made.learn(layer, x, torch.zeros(5, pool.layers[layer].out_features)).backward(upstream)
    (a, b), values = pool.pair(layer, "one"), made.scores[0].values
    mask = made.mask(small.first(pool)).fixed()
    masked_a, masked_b = a.detach() * mask.down, b.detach() * mask.up
    slope_b = 3 * upstream.T @ (x @ masked_a.T)  # of the masked matrices, by hand
    slope_a = 3 * (upstream @ masked_b).T @ x
    for weight, scores, slope, part in zip((a, b), values, (slope_a, slope_b), (mask.down, mask.up), strict=True):
        torch.testing.assert_close(weight.grad, slope * part, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(scores.grad, slope * weight.detach() * scores.detach().sign(), rtol=1e-4, atol=1e-6)


def test_peft_alone_says_what_a_supermask_says(choosing, tmp_path):
    pool, made = choosing
    pool.register("task", frozen(pool, made))
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(8))
    with torch.no_grad(), pool.use_adapter("task") as model:
        found = model(input_ids=ids).logits
    with torch.no_grad():
        torch.testing.assert_close(
            found, small.by_peft(pool, "task", tmp_path)(input_ids=ids).logits, rtol=0, atol=1e-4
        )
        assert not torch.allclose(found, small.by_peft(pool, None, tmp_path)(input_ids=ids).logits, atol=1e-3)


def test_what_a_supermask_says_follows_its_own_weights_alone(choosing):
    pool, made = choosing
    fixed = frozen(pool, made)
    pool.register("task", fixed)
    layer = small.first(pool)
    x = torch.ones(1, pool.layers[layer].in_features)
    before, digest = fixed.add(layer, x), pool.digest("task")
    weight, used = pool.pair(layer, "one")[1], fixed.masks[layer].up
    with torch.no_grad():
        weight.copy_(torch.where(used, weight, weight + 1))
    assert torch.equal(fixed.add(layer, x), before)
    assert pool.digest("task") == digest
    with torch.no_grad():
        weight.copy_(torch.where(used, weight + 1, weight))
    assert not torch.equal(fixed.add(layer, x), before)
    assert pool.digest("task") != digest


def test_the_mask_has_the_share_with_the_largest_scores(choosing):
    pool, made = choosing
    mask, (a, b) = made.mask(small.first(pool)).fixed(), made.scores[0].values
    assert torch.equal(mask.down, top_share(a.reshape(1, -1), DENSITY).view_as(a))
    assert int(mask.up.sum()) == b.numel() - int((1 - DENSITY) * b.numel()), "as many as the authors' code keeps"
