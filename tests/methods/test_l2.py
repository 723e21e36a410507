"""L2 on the product BA: the explicit product of layers that are not square, and what the penalty leaves free."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.l2 import L2, squared_distance
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from tests.adapters import small
from tests.methods.learning import assert_goes_on_when_restored, equal, fit, remembered, task_named, weights
from tests.methods.linear import SECOND, THIRD

TARGETS = ["q_proj", "v_proj", "down_proj"]  # the second and the third are not square
SHAPES = ((2, 3, 8), (4, 8, 3), (3, 5, 5), (6, 4, 3))  # rank, output, input; the last rank is above both sizes


def setup(**optim) -> Setup:
    return Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(**optim), 0)


def l2(*, strength: float = 1.0) -> L2:
    return L2(setup(), strength=strength)


def drawn(rank: int, outputs: int, inputs: int, *, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(rank)
    sizes = ((rank, inputs), (outputs, rank)) * 2
    a, b, old_a, old_b = (torch.randn(size, generator=draw, dtype=dtype) for size in sizes)
    return a, b, old_a, old_b


@pytest.mark.parametrize("shape", SHAPES)
def test_the_distance_and_its_gradients_are_those_of_the_explicit_products(shape):
    a, b, old_a, old_b = drawn(*shape)
    a.requires_grad_()
    b.requires_grad_()
    found, by_hand = squared_distance((a, b), (old_a, old_b)), (b @ a - old_b @ old_a).square().sum()
    torch.testing.assert_close(found, by_hand)
    slopes = (torch.autograd.grad(one, (a, b)) for one in (found, by_hand))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_another_basis_of_the_same_update_costs_nothing(shape):
    """A penalty on A and B would be large."""
    a, b, *_ = drawn(*shape)
    turn = torch.eye(shape[0], dtype=torch.float64) + 0.3 * torch.ones(shape[0], shape[0], dtype=torch.float64)
    other = torch.linalg.inv(turn) @ a, b @ turn
    assert squared_distance(other, (a, b)).item() == pytest.approx(0, abs=1e-10)
    assert (other[0] - a).square().sum() + (other[1] - b).square().sum() > 0.1


class OneLayer(nn.Module):
    """A pool of one layer, whose update is ``scale`` times BA."""

    names, layer, factor = ("shared",), "layer", 2.0

    def hold(self, update: Tensor, basis: Tensor) -> None:
        self.a, self.b = nn.Parameter(torch.linalg.inv(basis)), nn.Parameter(update @ basis / self.factor)

    def train_only(self, name: str) -> None:
        """It is trained anyway."""

    def pairs(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        return {self.layer: self.pair(self.layer, name)}

    def pair(self, layer: str, name: str) -> tuple[Tensor, Tensor]:
        return self.a, self.b

    def scale(self, layer: str, name: str) -> float:
        return self.factor


def test_the_penalty_is_that_of_public_code_on_the_layer_s_weight_whatever_its_factors():
    """Of ``L2`` in agents/regularization.py, GT-RIPL/Continual-Learning-Benchmark, commit d78b997, with ``reg_coef`` 5.

    ``EWC_MC`` of learners/kd.py, shaunak27/data-free-continual-learning, commit b25364c, gives the same with ``eps`` 5. Both
    hold the weights of the layer, and their penalties have no factor of one half.
    """
    method = l2(strength=2 * 5.0)
    method.pool = OneLayer()
    method.pool.hold(SECOND, torch.eye(3) + 0.5)
    method.begin_task(None, SimpleNamespace(past=["one"]))
    method.pool.hold(THIRD, torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0], [0.25, 0.0, 1.0]]))
    assert method.penalty().item() == pytest.approx(12.3375, rel=1e-5)


def test_a_small_distance_is_exact_in_single_precision():
    """The sum of squares of both products less twice that of the cross product loses it, and may be below zero."""
    a, b, step, other = drawn(4, 30, 20, dtype=torch.float32)
    near = a + 1e-5 * step, b + 1e-5 * other
    exact = (near[1].double() @ near[0].double() - b.double() @ a.double()).square().sum().item()
    assert squared_distance(near, (a, b)).item() == pytest.approx(exact, rel=1e-3)

    def gram(left, right) -> Tensor:
        return ((left[1].T @ right[1]) * (left[0] @ right[0].T)).sum()

    assert gram(near, near) + gram((a, b), (a, b)) - 2 * gram(near, (a, b)) != pytest.approx(exact, rel=0.5)
    assert squared_distance((a, b), (a, b)) == 0


def test_the_penalty_is_half_the_strength_times_the_squared_change_of_the_layers_weights():
    method = l2(strength=3.0)
    fit(method, "sky")
    assert method.penalty() is None
    assert len({method.pool.delta(layer, "shared").shape for layer in method.pool.layers}) == 3
    for past, task in ((("sky",), "sea"), (("sky", "sea"), "ice")):
        before = {layer: method.pool.delta(layer, "shared") for layer in method.pool.layers}
        fit(method, task, past, answer="no")
        by_hand = sum((method.pool.delta(layer, "shared") - old).square().sum().item() for layer, old in before.items())
        assert method.penalty().item() == pytest.approx(1.5 * by_hand, rel=1e-3)
        assert by_hand > 0


def test_the_first_step_of_a_task_is_free():
    """At the anchor the penalty and its gradient are zero."""
    method = l2(strength=1e6)
    fit(method, "sky")
    method.begin_task(task_named("sea"), remembered("sky"))
    penalty = method.penalty()
    assert penalty.item() == 0
    assert not any(slope.any() for slope in torch.autograd.grad(penalty, method.trained_weights()))


def test_the_update_moves_less_the_stronger_it_is():
    moved = []
    for strength in (0.0, 0.1, 10.0):
        method = l2(strength=strength)
        fit(method, "sky")
        before = [method.pool.delta(layer, "shared") for layer in method.pool.layers]
        fit(method, "sea", ("sky",), steps=20, lr=0.01, answer="no")
        pairs = zip(method.pool.layers, before, strict=True)
        moved.append(sum((method.pool.delta(layer, "shared") - old).square().sum().item() for layer, old in pairs))
    assert moved[0] > 1.5 * moved[1] > 3 * moved[2]


def test_without_a_past_it_is_sequential_fine_tuning_bit_for_bit():
    ours, theirs = l2(), SeqFt(setup())
    assert fit(ours, "sky") == fit(theirs, "sky")
    assert equal(weights(ours), weights(theirs))


def test_a_restored_method_goes_on_as_one_that_was_not_interrupted(tmp_path):
    assert_goes_on_when_restored(l2, tmp_path)
    assert not (tmp_path / "method_state.safetensors").exists(), "the anchor is the adapter itself"


@pytest.mark.parametrize("strength", [-1.0, float("nan")])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ConfigError, match=r"method\.strength must be at least 0"):
        l2(strength=strength)
