"""SAPT: attention and its drift against the authors' numbers and explicit sums, and keys that are kept."""

import math

import pytest
import torch
from torch import nn

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.sapt import Sapt, attention, drift
from see_lightning.methods.setup import Setup
from tests.adapters import small
from tests.methods.worded import learn, prompts, remembered, task

TARGETS = ["q_proj", "down_proj", "lm_head"]
KEYS = torch.tensor([[0.3, -0.8, 0.5, 1.0], [-0.6, 0.2, 0.9, -0.4], [1.0, 0.5, -0.5, 0.25]])


def sapt(**changed) -> Sapt:
    settings = {"ratio": 0.5, "strength": 1.0, "width": 12} | changed
    return Sapt(Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(), 0), **settings)


def test_attention_and_drift_are_those_of_the_authors_code():
    """Run on these tensors: ``cal_attention`` and ``memory_replay`` of src/llama_prompt.py, circle-hit/SAPT, commit 52a52b9."""
    method = sapt(width=3)
    method.query = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False), nn.SiLU(), nn.LayerNorm(4))
    given = {
        "0.weight": torch.tensor([[0.5, -1.0, 0.25, 0.75], [1.5, 0.5, -0.5, -0.25], [-0.75, 0.25, 1.0, 0.5]]),
        "1.weight": torch.tensor([[1.0, -0.5, 0.25], [0.5, 0.75, -1.0], [-1.25, 0.5, 0.5], [0.25, 1.0, 0.75]]),
        "3.weight": torch.tensor([1.0, 0.5, 2.0, 1.5]), "3.bias": torch.tensor([0.1, 0.0, -0.2, 0.3]),
    }  # fmt: skip
    method.query.load_state_dict(given)
    method.key_H, *method.old_keys = nn.Parameter(KEYS[0]), *KEYS[1:]
    embeddings = torch.tensor(
        [[[0.4, -0.2, 1.0, 0.6], [-1.0, 0.5, 0.3, -0.7]], [[0.1, 0.9, -0.5, 0.2], [0.6, -0.3, 0.2, 0.8]]]
    )
    pooled = torch.stack([method.pool_tokens(one) for one in embeddings])
    found = method.weights_of(pooled).detach()
    expected = [
        [0.6263095140457153, 0.054666001349687576, 0.3190244138240814],
        [0.6698417663574219, 0.17031961679458618, 0.15983866155147552],
    ]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)
    assert drift(torch.tensor([0.7, 0.3]), found.log()).item() == pytest.approx(1.472354531288147, abs=1e-5)


def test_drift_is_the_sum_over_tasks_and_zero_where_attention_is_what_it_was():
    log_p = attention(KEYS, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    target = [0.25, 0.75]
    expected = sum(
        sum(share * (math.log(share) - float(row[1 + place])) for place, share in enumerate(target)) for row in log_p
    )
    assert drift(torch.tensor(target), log_p).item() == pytest.approx(expected / 3, abs=1e-6)
    assert drift(log_p[0].exp(), log_p[:1]).item() == pytest.approx(0, abs=1e-6)


def test_the_drift_s_gradient_vanishes_at_the_target():
    queries = torch.randn(1, 4, generator=torch.Generator().manual_seed(1))
    keys = KEYS.clone().requires_grad_(True)
    target = attention(KEYS, queries)[0].exp()
    (there,) = torch.autograd.grad(drift(target, attention(keys, queries)), keys)
    assert there.abs().max() < 1e-6
    (elsewhere,) = torch.autograd.grad(drift(target.flip(0), attention(keys, queries)), keys)
    assert elsewhere.abs().max() > 1e-3


def test_the_penalty_is_the_drift_of_each_past_task_s_stored_prompts():
    method = sapt(strength=3.0)
    learn(method, "sky")
    learn(method, "sea", "sky")
    memory = remembered("sky", "sea")
    method.drawn.clear()
    method.begin_task(task("ice"), memory)
    assert method.drawn == {"sky": 2, "sea": 2}
    rows = memory.rehearse(task("ice"), ratio=0.5, resample="once")
    expected = 0.0
    for name in ("sky", "sea"):
        own = [small.TEMPLATE.prompt_ids(row.prompt) for row in rows if row.task == name]
        assert len(own) == 2
        table = method.pool.model.get_input_embeddings().weight
        pooled = torch.stack([table[prompt].max(0).values for prompt in own])
        keys = torch.stack([method.key_H, *method.old_keys])
        p = (method.query(pooled) @ keys.T / keys.shape[1] ** 0.5).softmax(1)[:, -len(method.targets[name]) :]
        target = method.targets[name]
        expected += float((target * (target.log() - p.log())).sum(1).mean().detach())
    assert [len(target) for target in method.targets.values()] == [1, 2]
    assert method.penalty().item() == pytest.approx(3 * expected, rel=1e-4)


def test_attention_on_stored_prompts_stays_nearer_with_the_penalty():
    far = {}
    for strength in (0.0, 10.0):
        method = sapt(ratio=1.0, strength=strength)
        learn(method, "sky")
        learn(method, "sea", "sky", steps=30)
        with torch.no_grad():
            far[strength] = drift(method.targets["sky"], method.prompt_weights(prompts("sky")).log()).item()
    assert far[10.0] < far[0.0] / 2


def test_without_stored_prompts_there_is_no_penalty():
    for changed in ({"ratio": 0.0}, {"strength": 0.0}):
        method = sapt(**changed)
        learn(method, "sky")
        method.begin_task(task("sea"), remembered("sky"))
        assert method.penalty() is None
        assert sum(weight.numel() for weight in method.trained_weights()) > 0


def test_old_keys_and_adapters_do_not_move_and_new_ones_do():
    method = sapt()
    learn(method, "sky")
    key, adapter = method.key_H.detach().clone(), [w.detach().clone() for w in method.pool.weights_of(["sky"])]
    query = [weight.detach().clone() for weight in method.query.parameters()]
    losses = learn(method, "sea", "sky")
    assert losses[-1] < losses[0]
    assert torch.equal(method.old_keys[0], key)
    assert all(map(torch.equal, adapter, method.pool.weights_of(["sky"])))
    assert not all(map(torch.equal, query, method.query.parameters()))
    weights = method.prompt_weights(prompts("sea"))
    torch.testing.assert_close(weights.sum(1), torch.ones(4))


def test_folders_bring_adapters_keys_and_attention_back(tmp_path):
    method, again = sapt(), sapt()
    for name, past in (("sky", ()), ("sea", ("sky",))):
        learn(method, name, *past)
        method.save(name, tmp_path / name)
    for name in ("sky", "sea"):
        again.restore(name, tmp_path / name)
    assert torch.equal(again.prompt_weights(prompts("ice")), method.prompt_weights(prompts("ice")))
    assert again.storage() == method.storage()
    assert learn(method, "ice", "sky", "sea") == learn(again, "ice", "sky", "sea")


@pytest.mark.parametrize("changed", [{"ratio": 10}, {"strength": -1.0}, {"width": 0}])
def test_a_setting_out_of_range_is_refused(changed):
    with pytest.raises(ConfigError, match=f"method.{next(iter(changed))}"):
        sapt(**changed)
