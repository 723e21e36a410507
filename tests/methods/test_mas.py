"""MAS: the importance in closed form and by PEFT alone, and without labels."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.mas import Mas, sensitivity
from see_lightning.methods.setup import Setup
from see_lightning.models.tiny import tiny_model
from tests.adapters import small
from tests.methods.learning import ended, equal, learn, task_named

TARGETS = ["q_proj", "down_proj"]


def mas(*, activated: bool = False, strength: float = 1.0) -> Mas:
    pool = small.pool(rank=4, targets=TARGETS, activated=activated)
    return Mas(Setup(pool, small.TEMPLATE, OptimConfig(), 0), strength=strength)


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
        found = method.importance_of(examples)
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
        first = method.importance_of(rows)
        second = method.importance_of([replace(row, target="another and a longer one") for row in rows])
    assert equal(first, second)


def test_importances_of_all_tasks_add_up():
    method = ended(mas(), "sky")
    first = {name: importance.clone() for name, importance in method.importance.items()}
    ended(method, "sea")
    with torch.no_grad():
        second = method.importance_of(task_named("sea").train)
    for (name, importance), own in zip(method.importance.items(), second, strict=True):
        torch.testing.assert_close(importance, first[name] + own)
        assert importance.min() >= 0


@pytest.mark.parametrize("strength", [-1.0, float("inf")])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ConfigError, match=r"method\.strength must be at least 0"):
        mas(strength=strength)
