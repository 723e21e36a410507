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
from tests.methods.linear import through_two_tasks

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


@pytest.fixture
def raw_logits(monkeypatch):
    """The authors' outputs: logits as they are."""
    monkeypatch.setattr("see_lightning.methods.mas.outputs", lambda logits_BV: logits_BV)


def test_importance_and_penalty_s_gradient_are_those_of_the_authors_code(raw_logits):
    """MAS_utils/MAS_based_Training.py of rahafaljundi/MAS-Memory-Aware-Synapses, commit c3e6a85, in batches of one row.

    Its importance is of a sum of squares, here of four outputs, and ours of their mean. The gradient is that of a step of
    its ``Weight_Regularized_SGD`` at the learning rate 1, with ``lambda`` 5 and no other gradient.
    """
    omega = [
        [1.84375, 1.3125, 1.21875], [3.390625, 3.09375, 3.015625],
        [3.015625, 2.765625, 2.671875], [2.36875, 1.9, 2.08125],
    ]  # fmt: skip
    slope = [
        [9.21875, -3.28125, -6.09375], [8.4765625, 7.734375, -15.078125],
        [-15.078125, -13.828125, 13.359375], [-11.84375, 3.8, 14.56875],
    ]  # fmt: skip
    method = through_two_tasks(mas(strength=4 * 5.0))
    torch.testing.assert_close(4 * method.importance["weight"], torch.tensor(omega), rtol=1e-5, atol=1e-6)
    (found,) = torch.autograd.grad(method.penalty(), method.pool.weight)
    torch.testing.assert_close(found, torch.tensor(slope), rtol=1e-5, atol=1e-5)


def test_the_authors_batches_of_two_rows_have_less_importance(raw_logits):
    """The same code in batches of two rows: gradients of unlike sign cancel, most where they are nearly opposite."""
    omega = [
        [1.0625, 1.3125, 1.21875], [3.390625, 0.96875, 1.453125],
        [2.546875, 2.140625, 2.359375], [1.55625, 1.9, 2.08125],
    ]  # fmt: skip
    ours = 4 * through_two_tasks(mas()).importance["weight"]
    assert (ours >= torch.tensor(omega) - 1e-5).all()
    assert ours[1, 1] > 3 * omega[1][1]


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
        logits.var(unbiased=False).backward()
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


def test_a_shift_of_all_logits_has_no_part_in_it(monkeypatch):
    method = mas()
    learn(method, "sky")
    rows, forward = task_named("sky").train, method.pool.forward
    with torch.no_grad():
        first = method.importance_of(rows)
        monkeypatch.setattr(method.pool, "forward", lambda *given: forward(*given) + 30)
        second = method.importance_of(rows)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(one.max()), rtol=1e-3)


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
