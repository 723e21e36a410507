"""A-GEM: the projection as a constrained minimum, and the rows by which a step is projected."""

import pytest
import torch

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.agem import AGem, project
from see_lightning.methods.setup import Setup
from tests.adapters import small
from tests.methods.learning import assert_trains_as_seqft, flat, learn, remembered, rows_of_steps, task_named

TARGETS = ["q_proj", "down_proj"]


def agem(*, activated: bool = False, ratio: float = 1.0, reference_batch: int = 2) -> AGem:
    setup = Setup(small.pool(rank=4, targets=TARGETS, activated=activated), small.TEMPLATE, OptimConfig(), 0)
    return AGem(setup, ratio=ratio, reference_batch=reference_batch)


@pytest.mark.parametrize("number", range(6))
def test_a_projected_gradient_is_the_nearest_that_does_not_point_against_the_reference(number):
    r"""The conditions of the minimum of $\frac12 \lVert g' - g\rVert^2$ with $g'^\top r \ge 0$: its multiplier is $\mu \ge 0$."""
    draw = torch.Generator().manual_seed(number)
    shapes = ((3, 4), (4, 2))
    gradients = [torch.randn(shape, generator=draw) for shape in shapes]
    reference = [torch.randn(shape, generator=draw) for shape in shapes]
    found = flat(project(gradients, reference))
    g, r = flat(gradients), flat(reference)
    mu = ((found - g) @ r / (r @ r)).item()
    torch.testing.assert_close(found - g, mu * r, atol=1e-5, rtol=1e-5)
    assert mu >= -1e-7
    assert (found @ r).item() >= -1e-5
    assert abs(mu * (found @ r).item()) < 1e-5, "either nothing is changed, or the result is orthogonal"
    assert (mu > 1e-7) == ((g @ r).item() < 0)


def test_a_projected_gradient_is_that_of_public_code():
    """That of ``project`` in models/agem.py of aimagelab/mammoth at e75a491."""
    g, r = torch.tensor([3.0, -2.0, 1.0, 4.0]), torch.tensor([-1.0, 2.0, 0.0, 1.0])
    found = project([g[:1], g[1:].view(3, 1)], [r[:1], r[1:].view(3, 1)])
    torch.testing.assert_close(flat(found), torch.tensor([2.5, -1.0, 1.0, 4.5]).double())


def test_a_gradient_that_agrees_is_left_bit_for_bit_and_a_reference_of_zeros_changes_nothing():
    g, r = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, 0.1, 0.7])
    assert torch.equal(*project([g], [r]), g)
    assert torch.equal(*project([g], [torch.zeros(3)]), g)


@pytest.mark.parametrize("activated", [False, True])
def test_a_step_does_not_increase_the_loss_on_the_drawn_rows_to_first_order(activated):
    method = agem(activated=activated, reference_batch=3)
    learn(method, "sky")
    method.begin_task(task_named("sea"), remembered("sky"))
    method.eval()
    against = method.gradients(next(method.batches(task_named("sky").train, 3)))
    for weight, reference in zip(method.trained_weights(), against, strict=True):
        weight.grad = torch.ones_like(weight) - 2 * reference / flat(against).norm().float()
    before = [weight.grad.clone() for weight in method.trained_weights()]
    assert flat(before) @ flat(against) < 0
    method.edit_gradients()
    after = [weight.grad for weight in method.trained_weights()]
    assert abs(flat(after) @ flat(against)) < 1e-5 * flat(before).norm() * flat(against).norm()
    method.edit_gradients()
    for once, twice in zip(after, method.trained_weights(), strict=True):
        torch.testing.assert_close(twice.grad, once)


def test_rows_are_drawn_from_past_tasks_by_seed_and_counted():
    first, second = agem(ratio=0.5), agem(ratio=0.5)
    rows = rows_of_steps(first, 8)
    assert rows == rows_of_steps(second, 8)
    assert len({tuple(row) for row in rows}) > 1
    memory = {
        example.id for example in remembered("sky", "sea").rehearse(task_named("ice"), ratio=0.5, resample="once")
    }
    assert {id_ for step in rows for id_ in step} == memory
    assert all(len(step) == len(set(step)) == 2 for step in rows)
    assert first.drawn.total() == 16
    assert first.drawn.keys() == {"sky", "sea"}
    few = agem(reference_batch=100)
    assert {len(step) for step in rows_of_steps(few, 8)} == {6}, "the memory has no more"


def test_a_weight_without_a_gradient_gets_the_projections():
    method = agem()
    learn(method, "sky")
    method.begin_task(task_named("sea"), remembered("sky"))
    one, *rest = method.trained_weights()
    for weight, reference in zip(
        rest, method.gradients(next(method.batches(task_named("sky").train, 3)))[1:], strict=True
    ):
        weight.grad = -reference
    one.grad = None
    method.edit_gradients()
    assert one.grad.any()


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_without_a_memory_it_is_sequential_fine_tuning_bit_for_bit(ratio):
    ours = agem(ratio=ratio)
    assert_trains_as_seqft(ours, TARGETS)
    if ratio == 0:
        ours.begin_task(task_named("sea"), remembered("sky"))
        assert ours.past == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ratio": 1.5}, r"method\.ratio is the share of past examples"),
        ({"reference_batch": 0}, r"method\.reference_batch must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        agem(**settings)
