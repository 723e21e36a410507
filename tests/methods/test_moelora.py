"""MoELoRA: gates and balance against loops over experts and tokens, and a loss that micro-batches do not change."""

from dataclasses import replace

import pytest
import torch

from see_lightning.adapters.routed_experts import imbalance
from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.moelora import MoeLora
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.methods.learning import learn, task_named

TARGETS = ["q_proj", "down_proj", "lm_head"]


def setup(*, activated: bool = False, reduction: str = "tokens") -> Setup:
    pool = small.pool(rank=8, targets=TARGETS, activated=activated)
    return Setup(pool, small.TEMPLATE, OptimConfig(loss_reduction=reduction), 0)


def moelora(*, activated: bool = False, reduction: str = "tokens", **changed) -> MoeLora:
    settings = {"experts": 4, "top_k": 4, "balance": 0.01} | changed
    return MoeLora(setup(activated=activated, reduction=reduction), **settings)


def test_the_imbalance_is_the_sum_over_experts_of_shares_times_means():
    draw = torch.Generator().manual_seed(0)
    probabilities = torch.randn(9, 3, generator=draw).softmax(1)
    rows = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2, 2])
    found = imbalance(probabilities, rows, 4)
    for row in range(4):
        own = [probabilities[token].tolist() for token in range(9) if rows[token] == row]
        expected = sum(
            3 * (sum(one[expert] == max(one) for one in own) / len(own)) * (sum(one[expert] for one in own) / len(own))
            for expert in range(3)
            if own
        )
        assert found[row].item() == pytest.approx(expected, abs=1e-6)
    even = torch.eye(3).repeat(2, 1)
    assert imbalance(even, torch.zeros(6, dtype=torch.long), 1).item() == pytest.approx(1)
    assert imbalance(even[:1], torch.zeros(1, dtype=torch.long), 1).item() == pytest.approx(3)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_each_token_gets_the_gated_updates_of_its_experts(top_k):
    method = moelora(top_k=top_k)
    learn(method, "sky")
    layer, pool = small.first(method.pool), method.pool
    x = torch.randn(2, 3, pool.layers[layer].in_features, generator=torch.Generator().manual_seed(1))
    found = method.mixture.add(layer, x)
    (a, b), router = pool.pair(layer, method.ADAPTER), method.mixture.router(layer)
    for row in range(2):
        for token in range(3):
            one = x[row, token]
            scores = router @ one
            best = scores.topk(top_k).indices.tolist()
            weights = scores[best].softmax(0)
            expected = sum(
                weight * pool.scale(layer, method.ADAPTER) * b[:, 2 * e : 2 * e + 2] @ (a[2 * e : 2 * e + 2] @ one)
                for weight, e in zip(weights, best, strict=True)
            )
            torch.testing.assert_close(found[row, token], expected, rtol=1e-4, atol=1e-5)
    assert found.abs().max() > 1e-3
    y = torch.ones_like(found)
    torch.testing.assert_close(method.mixture.learn(layer, x, y), y + found)


def test_the_update_is_that_of_the_authors_code():
    """Run on these tensors: ``CoINMOELoraLinear`` of CoIN/peft/tuners/coinmoelora.py, zackschen/CoIN, commit 4122465."""

    def drawn(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    method = moelora()
    method.begin_task(task_named("sky"), Memory(0))
    layer = small.first(method.pool)
    method.pool.load_weights(method.ADAPTER, {layer: (drawn(10, 8, 32), drawn(11, 32, 8))})
    with torch.no_grad():
        method.mixture.router(layer).copy_(drawn(12, 4, 32) / 4)
    expected = [
        [[17.438809473518138, -4.096534955142884, 7.236694504565361], [10.659385394658088, 2.494923461271587, -23.874474210340047]],
        [[-5.205528502729887, 7.63724266114327, -14.930048843469944], [37.636356662357564, -22.23445811467373, -4.637402214073257]],
    ]  # fmt: skip
    x = drawn(13, 2, 2, 32).float()
    torch.testing.assert_close(method.mixture.add(layer, x)[..., :3], torch.tensor(expected), atol=1e-4, rtol=1e-5)
    learned = method.mixture.learn(layer, x, torch.zeros(2, 2, 32))
    torch.testing.assert_close(learned[..., :3], torch.tensor(expected), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("reduction", ["tokens", "examples"])
def test_loss_and_gradients_do_not_depend_on_micro_batches_or_padding(reduction, activated):
    method = moelora(balance=0.5, top_k=2, reduction=reduction, activated=activated)
    learn(method, "sky")
    rows = [*task_named("sky").train, *task_named("a longer sea").train]
    (whole,) = method.batches(rows, 9)
    weights = method.trained_weights()
    expected = torch.autograd.grad(method.loss(whole), weights)
    parts = replace(whole, parts=3).split(reduction)
    assert len(parts) == 3
    assert {part.input_ids_BS.shape[1] for part in parts} != {whole.input_ids_BS.shape[1]}
    found = [torch.zeros_like(weight) for weight in weights]
    for part in parts:
        torch._foreach_add_(found, torch.autograd.grad(part.weight * method.loss(part), weights))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    plain = moelora(balance=0.0, top_k=2, reduction=reduction, activated=activated)
    plain.pool, plain.mixture = method.pool, method.mixture
    assert method.loss(whole).item() - plain.loss(whole).item() >= 0.5 * 0.99, "at least 1 for each row and layer"


def test_training_with_the_balance_spreads_the_tokens_more_evenly():
    spread = {}
    for balance in (0.0, 5.0):
        method = moelora(balance=balance, top_k=1)
        method.begin_task(task_named("sky"), Memory(0))
        with torch.no_grad():
            for router in method.mixture.routers:
                router[0] += 0.3 * router[0].sign()
        optimizer = torch.optim.AdamW(method.trained_weights(), lr=0.01)
        (batch,) = method.batches(task_named("sky").train, 3)
        for _ in range(15):
            optimizer.zero_grad()
            method.loss(batch).backward()
            optimizer.step()
        with (
            torch.no_grad(),
            method.mixture.noting(batch.attention_mask_BS.bool(), (batch.labels_BS >= 0).sum(1)) as noted,
        ):
            method.logits(batch)
        spread[balance] = torch.stack(noted).mean().item()
    assert spread[5.0] < spread[0.0] - 0.05


def test_one_expert_is_sequential_fine_tuning():
    ours, theirs = moelora(experts=1, top_k=1), SeqFt(setup())
    for task in ("sky", "sea"):
        assert learn(ours, task) == pytest.approx(learn(theirs, task), rel=1e-4)
    assert [weight.shape for weight in ours.trained_weights()] == [weight.shape for weight in theirs.trained_weights()]


def test_folders_bring_experts_and_routers_back(tmp_path):
    method, again = moelora(top_k=2), moelora(top_k=2)
    for task in ("sky", "sea"):
        learn(method, task)
        method.save(task, tmp_path / task)
    for task in ("sky", "sea"):
        again.restore(task, tmp_path / task)
    assert again.pool.digest("shared") == method.pool.digest("shared")
    assert again.storage() == method.storage()
    assert learn(method, "ice") == learn(again, "ice")


@pytest.mark.parametrize(
    ("changed", "name"),
    [({"experts": 0}, "method.experts"), ({"top_k": 5}, "method.top_k"), ({"balance": -1.0}, "method.balance"),
     ({"experts": 3, "top_k": 1}, "adapter.rank=8")],
)  # fmt: skip
def test_a_setting_out_of_range_is_refused(changed, name):
    with pytest.raises(ConfigError, match=name):
        moelora(**changed)
