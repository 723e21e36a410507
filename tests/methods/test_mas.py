"""MAS: the importance in closed form and by PEFT alone, without labels, and the penalty."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.mas import Mas, sensitivity
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.methods.learning import learn, task_named

TARGETS = ["q_proj", "down_proj"]


def mas(*, activated: bool = False, rank: int = 0, ranks: int = 1, strength: float = 1.0) -> Mas:
    pool = small.pool(rank=4, targets=TARGETS, activated=activated)
    return Mas(Setup(pool, small.TEMPLATE, OptimConfig(), 0, rank, ranks), strength=strength)


def weights(method) -> list[Tensor]:
    return [weight.detach().clone() for weight in method.pool.weights_of([method.ADAPTER])]


def ended(method, task: str, steps: int = 3):
    """The method after a task."""
    learn(method, task, steps)
    with torch.no_grad():
        method.end_task(task_named(task), Memory(0))
    return method


def test_the_importance_in_a_linear_layer_is_its_closed_form():
    r"""$F(x) = Wx$, so $\partial \lVert F(x)\rVert^2 / \partial W = 2\, W x x^\top$."""
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(5, 3, generator=draw, requires_grad=True), torch.randn(3, generator=draw)
    (found,) = sensitivity((weight @ x)[None], [weight])
    torch.testing.assert_close(5 * found, (2 * weight.detach() @ torch.outer(x, x)).abs())


def test_a_weight_that_no_output_depends_on_is_not_important():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    _, found = sensitivity(used[None], [used, unused])
    assert torch.equal(found, torch.zeros(3))


@pytest.mark.parametrize("activated", [False, True])
def test_the_importance_is_the_mean_of_each_examples_absolute_gradient_by_peft_alone(tmp_path, activated):
    method = mas(activated=activated)
    learn(method, "sky", steps=10)
    method.save("sky", tmp_path)
    model = PeftModel.from_pretrained(tiny_model(), tmp_path, is_trainable=True).eval()
    examples, expected, whole = task_named("sky").train, {}, {}
    for example in examples:
        logits = model(input_ids=torch.tensor([small.TEMPLATE.prompt_ids(example.prompt)])).logits[0, -1]
        model.zero_grad()
        ((logits**2).sum() / len(logits)).backward()
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                expected[name] = expected.get(name, 0) + weight.grad.abs() / len(examples)
                whole[name] = whole.get(name, 0) + weight.grad / len(examples)
    with torch.no_grad():
        found = method.mean_sensitivity(examples)
    assert len(expected) == len(found) == 2 * len(method.pool.layers)
    for importance, by_hand in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(importance, by_hand, atol=1e-4 * float(by_hand.max()), rtol=1e-3)
    of_the_mean = sum(total.abs().sum() for total in whole.values())
    assert sum(importance.sum() for importance in found) > 1.01 * of_the_mean, "gradients of a batch cancel"


def test_answers_have_no_part_in_it():
    method = mas()
    learn(method, "sky")
    rows = task_named("sky").train
    with torch.no_grad():
        first = method.mean_sensitivity(rows)
        second = method.mean_sensitivity([replace(row, target="another and a longer one") for row in rows])
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_ranks_share_the_examples():
    """Three examples for two ranks: the last of one rank counts for nothing."""
    alone = ended(mas(), "sky")
    shares = []
    for rank in (0, 1):
        one = mas(rank=rank, ranks=2)
        learn(one, "sky")
        one.average = lambda tensor: tensor
        shares.append(one.mean_sensitivity(task_named("sky").train))
    for importance, *both in zip(alone.importance.values(), *shares, strict=True):
        torch.testing.assert_close(sum(both) / 2, importance, rtol=1e-4, atol=1e-7)


def test_the_penalty_is_the_strength_times_the_weighted_squared_distance_from_the_last_tasks_weights():
    method = mas(strength=3.0)
    assert method.penalty() is None
    ended(method, "sky")
    anchor, importance = weights(method), list(method.importance.values())
    learn(method, "sea")
    by_hand = sum(
        3 * (omega * (weight - old).square()).sum().item()
        for weight, old, omega in zip(weights(method), anchor, importance, strict=True)
    )
    assert method.penalty().item() == pytest.approx(by_hand, rel=1e-5)
    assert by_hand > 0


def test_importances_of_all_tasks_add_up():
    method = ended(mas(), "sky")
    first = {name: importance.clone() for name, importance in method.importance.items()}
    ended(method, "sea")
    with torch.no_grad():
        second = method.mean_sensitivity(task_named("sea").train)
    for (name, importance), own in zip(method.importance.items(), second, strict=True):
        torch.testing.assert_close(importance, first[name] + own)
        assert importance.min() >= 0


def test_important_weights_move_less_the_stronger_it_is():
    moved = []
    for strength in (0.0, 1e4):
        method = ended(mas(strength=strength), "sky")
        anchor, importance = weights(method), list(method.importance.values())
        learn(method, "sea", steps=10)
        rows = zip(weights(method), anchor, importance, strict=True)
        moved.append(sum((omega * (weight - old).square()).sum().item() for weight, old, omega in rows))
    assert moved[1] < 0.1 * moved[0]


def test_without_a_past_it_is_sequential_fine_tuning_bit_for_bit():
    ours = mas()
    theirs = SeqFt(Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(), 0))
    assert learn(ours, "sky") == learn(theirs, "sky")
    assert all(torch.equal(here, there) for here, there in zip(weights(ours), weights(theirs), strict=True))


def test_a_restored_method_goes_on_as_one_that_was_not_interrupted(tmp_path):
    method, fresh = mas(strength=50.0), mas(strength=50.0)
    for task in ("sky", "sea"):
        ended(method, task).save(task, tmp_path / task)
        fresh.restore(task, tmp_path / task)
    assert load_file(tmp_path / "sea" / "method_state.safetensors").keys() == method.importance.keys()
    assert list(fresh.importance) == list(method.importance)
    assert method.storage()["state"] == method.storage()["weights"]
    assert learn(method, "ice") == learn(fresh, "ice")
    assert all(torch.equal(here, there) for here, there in zip(weights(method), weights(fresh), strict=True))


@pytest.mark.parametrize("strength", [-1.0, float("inf")])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ConfigError, match=r"method\.strength must be at least 0"):
        mas(strength=strength)
