"""A sum of adapters with weights of each row, against the pool's updates of each adapter and row alone."""

import pytest
import torch

from see_lightning.adapters.gated_sum import GatedSum, Weights
from see_lightning.errors import ConfigError
from see_lightning.tasks.batches import Batch, collate
from tests.adapters import small

WEIGHTS = torch.tensor([[0.2, 0.9], [1.5, 0.0], [0.0, 0.0]])


def gated(*names: str):
    pool = small.pool(*names, targets=["q_proj", "down_proj", "lm_head"])
    made = GatedSum(pool, names, lambda: [])
    pool.register("sum", made)
    return pool, made


def test_each_row_gets_the_weighted_updates_of_the_adapters():
    pool, made = gated("sky", "sea")
    layer = small.first(pool)
    x = torch.randn(3, 4, pool.layers[layer].in_features, generator=torch.Generator().manual_seed(0))
    found = made.of(WEIGHTS).add(layer, x)
    for row, (sky, sea) in enumerate(WEIGHTS.tolist()):
        expected = sky * pool.update_of(layer, "sky", x[row]) + sea * pool.update_of(layer, "sea", x[row])
        torch.testing.assert_close(found[row], expected)
    y = torch.ones_like(found)
    with made.weighted(Weights(WEIGHTS)):
        torch.testing.assert_close(made.learn(layer, x, y), y + found)
        torch.testing.assert_close(made.add(layer, x), found)


def test_training_passes_weigh_the_vocabulary_head_too_and_gradients_reach_the_first_adapter_and_the_weights():
    pool, made = gated("sky", "sea")
    pool.train_only("sum", "sky")
    pool.eval()
    assert any("lm_head" in layer for layer in pool.layers)
    prompts, answers = [[5, 6, 7], [8, 9], [4]], [[7], [8, 9, 3], [11, 12]]
    weights = WEIGHTS.clone().requires_grad_(True)
    ids, mask, labels = collate(prompts, answers, pad=0)
    with made.weighted(Weights(weights, (labels >= 0).sum(1))):
        logits = pool(ids, mask, labels)
    alone = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        given = Batch(*collate([prompt], [answer], pad=0), ["0"])
        alone.append(pool.logits(given, made.of(WEIGHTS[row : row + 1])))
    torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-4, atol=1e-4)
    logits.square().mean().backward()
    assert all(one.grad is not None and one.grad.any() for one in pool.weights_of(["sky"], [small.first(pool)]))
    assert all(one.grad is None for one in pool.weights_of(["sea"]))
    assert weights.grad.any(dim=0).all()


def test_a_pass_without_weights_and_a_batch_of_another_size_are_refused():
    pool, made = gated("sky", "sea")
    layer = small.first(pool)
    x = torch.zeros(2, 4, pool.layers[layer].in_features)
    with pytest.raises(ConfigError, match="Method.answer"):
        made.add(layer, x)
    with pytest.raises(ConfigError, match="keeps the rows of a batch together"):
        made.of(WEIGHTS).add(layer, x)
