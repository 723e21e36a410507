"""Sub-experts against the formula, computed token by token and expert by expert."""

import pytest
import torch

from see_lightning.adapters.mixture import FixedMixture, gates
from see_lightning.methods.subnetworks.masks import top_share
from see_lightning.methods.subnetworks.mixture import SubExpert
from tests.adapters import small
from tests.methods.subnetwork import RANK, learning

EXPERTS = 3
GRANULARITIES = pytest.mark.parametrize("granularity", ["weight", "rank"])


def frozen(made):
    pool, learned = made
    masks = [learned.mask(layer).fixed() for layer in pool.layers]
    return SubExpert(pool, "pool", masks, list(learned.routers), k=learned.k)


def by_the_formula(pool, part, layer, x):
    """The sum over a token's k experts, each masked on its own."""
    a, b = (weight.detach() for weight in pool.pair(layer, "pool"))
    mask, router = part.masks[layer], part.routers[layer]
    down, up = mask.down.expand_as(a), mask.up.expand_as(b)
    experts = len(router)
    rank = len(a) // experts
    out = []
    for token in x:
        logits = {}
        for e in range(experts):
            own = slice(e * rank, (e + 1) * rank)
            if down[own].any() and up[:, own].any():
                logits[e] = float(router[e] @ token)
        best = sorted(logits, key=logits.get, reverse=True)[: part.k]
        gate = torch.tensor([logits[e] for e in best]).softmax(0)
        added = torch.zeros(len(b))
        for e, weight in zip(best, gate, strict=True):
            own = slice(e * rank, (e + 1) * rank)
            added += weight * (b * up)[:, own] @ ((a * down)[own] @ token)
        out.append(1.5 * added)  # alpha over rank
    return torch.stack(out)


@GRANULARITIES
@pytest.mark.parametrize("k", [1, 2, EXPERTS])
def test_a_sub_expert_is_the_gated_sum_of_its_masked_experts(granularity, k):
    pool, learned = made = learning(granularity, k=k)
    part = frozen(made)
    x = torch.randn(2, 5, next(iter(pool.layers.values())).in_features, generator=torch.Generator().manual_seed(6))
    for layer in list(pool.layers)[:2]:
        expected = by_the_formula(pool, part, layer, x.flatten(0, 1)).view(2, 5, -1)
        torch.testing.assert_close(part.add(layer, x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(learned.add(layer, x), expected, rtol=1e-4, atol=1e-5)


def test_a_mask_of_weights_has_its_share_in_each_expert_and_one_of_ranks_in_the_layer():
    pool, learned = learning("weight", density=0.25)
    layer = small.first(pool)
    mask = learned.mask(layer).fixed()
    a, b = learned.scores[0].values
    for e in range(EXPERTS):
        own = slice(e * RANK, (e + 1) * RANK)
        assert torch.equal(mask.down[own].flatten(), top_share(a[own].reshape(1, -1), 0.25)[0])
        assert torch.equal(mask.up[:, own].T.flatten(), top_share(b[:, own].T.reshape(1, -1), 0.25)[0])
    pool, learned = learning("rank", density=0.25)
    mask = learned.mask(small.first(pool)).fixed()
    assert int(mask.down.sum()) == int(0.25 * EXPERTS * RANK)
    assert torch.equal(mask.down[:, 0], mask.up[0])


def test_all_experts_are_the_dense_mixture():
    logits = torch.randn(7, EXPERTS, generator=torch.Generator().manual_seed(7))
    assert torch.equal(gates(logits, EXPERTS), logits.softmax(-1))
    few = gates(logits, 2)
    assert ((few > 0).sum(-1) == 2).all()
    torch.testing.assert_close(few.sum(-1), torch.ones(7))


@GRANULARITIES
def test_one_whole_expert_is_plain_lora(granularity):
    """The oracle is the pool's own expert of the same weights, which others compare with PEFT."""
    made = learning(granularity, experts=1, k=1, density=1.0)
    pool, part = made[0], frozen(made)
    pool.add_expert("plain", 0)
    for layer in pool.layers:
        for own, weight in zip(pool.pair(layer, "plain"), pool.pair(layer, "pool"), strict=True):
            own.data.copy_(weight.data)
    pool.register("task", part)
    pool.eval()
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        with pool.use_adapter("plain") as model:
            expected = model(input_ids=ids).logits
        with pool.use_adapter("task") as model:
            found = model(input_ids=ids).logits
        with pool.use_adapter(None) as model:
            assert not torch.allclose(found, model(input_ids=ids).logits, atol=1e-2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_ranks_that_a_task_does_not_use_are_not_multiplied():
    made = learning("rank", density=0.25)
    part, layer = frozen(made), small.first(made[0])
    ready, used = part._at(layer, torch.float32), int(0.25 * EXPERTS * RANK)
    experts = {rank // RANK for rank in part.masks[layer].ranks().nonzero().flatten().tolist()}
    assert ready.up_OR.shape[1] == used
    assert len(ready.down) == used + (len(experts) if len(experts) > 1 else 0), (
        "nor experts that it uses nothing of asked"
    )


def test_what_a_sub_expert_says_follows_the_pool_and_its_digest_too():
    made = learning("weight")
    pool, part = made[0], frozen(made)
    pool.register("task", part)
    layer = small.first(pool)
    x = torch.ones(1, pool.layers[layer].in_features)
    before, digest = part.add(layer, x), pool.digest("task")
    weight, used = pool.pair(layer, "pool")[0], part.masks[layer].down
    with torch.no_grad():
        weight.copy_(torch.where(used, weight, weight + 1))
    assert torch.equal(part.add(layer, x), before), "others' weights do not count"
    assert pool.digest("task") == digest
    with torch.no_grad():
        weight.copy_(torch.where(used, weight + 1, weight))
    assert not torch.equal(part.add(layer, x), before)
    assert pool.digest("task") != digest


def test_superposed_parts_add_up_by_their_weights():
    made = learning("weight")
    pool, learned = made
    masks = [learned.mask(layer).fixed() for layer in pool.layers]
    parts = [frozen(made), SubExpert(pool, "pool", masks, [-router for router in learned.routers], k=1)]
    layer = small.first(pool)
    x = torch.randn(1, 3, pool.layers[layer].in_features, generator=torch.Generator().manual_seed(9))
    alpha = torch.tensor([0.25, 0.75])
    expected = 0.25 * parts[0].add(layer, x) + 0.75 * parts[1].add(layer, x)
    for name, part in zip("ab", parts, strict=True):
        pool.register(name, part)
    torch.testing.assert_close(FixedMixture(pool, "ab", alpha).add(layer, x), expected)
