"""GEM: the dual by enumeration and by NNLS, the authors' numbers, and the rows by which a step is projected."""

from itertools import product

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.gem import Gem, project, solve_dual
from see_lightning.methods.setup import Setup
from tests.adapters import small
from tests.methods.learning import assert_trains_as_seqft, flat, learn, remembered, rows_of_steps, task_named

TARGETS = ["q_proj", "down_proj"]


def gem(*, activated: bool = False, ratio: float = 1.0, reference_batch: int = 3, memory_strength: float = 0.0) -> Gem:
    setup = Setup(small.pool(rank=4, targets=TARGETS, activated=activated), small.TEMPLATE, OptimConfig(), 0)
    return Gem(setup, ratio=ratio, reference_batch=reference_batch, memory_strength=memory_strength)


def drawn(tasks: int, number: int, size: int = 12) -> tuple[Tensor, Tensor]:
    """A gradient, (N,), and references, (K, N), that it opposes in part; with an even number two of them are equal."""
    draw = torch.Generator().manual_seed(number)
    g = torch.randn(size, generator=draw)
    references = torch.randn(tasks, size, generator=draw) - 0.4 * g
    if tasks > 1 and number % 2 == 0:
        references[1] = references[0]
    return g, references


def enumerated(g: Tensor, references: Tensor) -> Tensor:
    """The feasible point nearest to g: the best of those with each subset of the constraints active."""
    points = []
    for chosen in product((False, True), repeat=len(references)):
        active = references[torch.tensor(chosen)]
        points.append(g - active.T @ torch.linalg.pinv(active.T) @ g if len(active) else g)
    feasible = [point for point in points if (references @ point).min() > -1e-9]
    return min(feasible, key=lambda point: (point - g).norm())


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("tasks", [1, 3, 6])
def test_a_projected_gradient_is_the_nearest_that_opposes_no_past_task(tasks, number):
    g, references = drawn(tasks, number)
    found = flat(project([g[:4], g[4:].view(2, 4)], [(r[:4], r[4:].view(2, 4)) for r in references], 0.0))
    torch.testing.assert_close(found, enumerated(g.double(), references.double()), atol=1e-5, rtol=1e-5)
    assert (references.double() @ found).min() > -1e-5 * g.norm() * references.norm()
    assert tasks == 1 or (found - g).norm() > 0.1, "some of these constraints act"


@pytest.mark.parametrize("tasks", [2, 8, 25])
def test_the_dual_is_a_nonnegative_least_squares_problem(tasks):
    r"""$\lVert G^\top v + g\rVert$ over $v \ge 0$, also with more references than weights, where $P$ is singular."""
    for number in range(4):
        g, references = (one.double() for one in drawn(tasks, number, size=10))
        g, references = g / g.norm(), references / references.norm(dim=1, keepdim=True)
        v = solve_dual(references @ references.T, references @ g)
        by_scipy, least = nnls(references.T.numpy(), -g.numpy())
        assert (v >= 0).all()
        assert (references.T @ v + g).norm().item() == pytest.approx(least, abs=1e-9)
        torch.testing.assert_close(references.T @ v, references.T @ torch.from_numpy(by_scipy), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("strength", "authors"),
    [
        (0.0, [3.2970056533813477, 0.18286092579364777, -0.9157152771949768, 2.930778980255127]),
        (0.5, [3.4616177082061768, 0.34593257308006287, -0.8075041770935059, 2.769214153289795]),
    ],
)
def test_the_authors_code_gives_the_same_numbers(strength, authors):
    """Those of ``project2cone2`` in facebookresearch/GradientEpisodicMemory at 34c6b8e9, with quadprog 0.1.14.

    It adds 0.001 to the diagonal of P, as a further weight of each reference alone does.
    """
    g = torch.tensor([3.0, -2.0, 1.0, 4.0])
    references = torch.tensor([[-1.0, 2.0, 0.0, 1.0], [0.0, 1.0, -3.0, -1.0], [2.0, 1.0, 1.0, -2.0]])
    alone = 0.001**0.5 * torch.eye(3)
    found, _ = project([g, torch.zeros(3)], list(zip(references, alone, strict=True)), strength)
    torch.testing.assert_close(found, torch.tensor(authors), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_with_a_memory_strength_the_projection_begins_further_along_the_references(strength):
    g, references = drawn(4, 1)
    (found,) = project([g], [[r] for r in references], strength)
    expected = enumerated((g + strength * references.sum(0)).double(), references.double())
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    (without,) = project([g], [[r] for r in references], 0.0)
    assert (found - without).norm() > 0.1


def test_a_gradient_that_opposes_none_is_left_bit_for_bit_and_a_reference_of_zeros_changes_nothing():
    g, r, zeros = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, 0.1, 0.7]), torch.zeros(3)
    assert torch.equal(*project([g], [[r], [2 * r]], 0.5), g)
    assert torch.equal(*project([g], [[zeros]], 0.5), g)
    torch.testing.assert_close(project([g], [[-r], [zeros]], 0.0), project([g], [[-r]], 0.0))
    assert all(one.isfinite().all() for one in project([zeros], [[-r], [zeros]], 0.5))


@pytest.mark.parametrize("activated", [False, True])
def test_a_step_increases_the_loss_on_no_past_tasks_rows_to_first_order(activated):
    method = gem(activated=activated)
    learn(method, "sky")
    method.begin_task(task_named("ice"), remembered("sky", "sea"))
    method.eval()
    against = [
        method.gradients(batch) for name in ("sky", "sea") for batch in method.batches(task_named(name).train, 3)
    ]
    for weight, sky, sea in zip(method.trained_weights(), *against, strict=True):
        weight.grad = torch.full_like(weight, 1e-3) - 2 * sky - sea
    before = flat(weight.grad for weight in method.trained_weights())
    assert all(before @ flat(reference) < 0 for reference in against)
    method.edit_gradients()
    after = flat(weight.grad for weight in method.trained_weights())
    for reference in against:
        assert after @ flat(reference) > -1e-5 * before.norm() * flat(reference).norm()
    assert (after - before).norm() > 0.1 * before.norm()


def test_rows_are_drawn_from_each_past_task_by_seed_and_counted():
    first = gem(ratio=0.7, reference_batch=1)
    rows = rows_of_steps(first, 6)
    assert rows == rows_of_steps(gem(ratio=0.7, reference_batch=1), 6)
    assert [id_.split("-")[0] for step in rows for id_ in step] == ["sky", "sea"] * 6
    memory = {
        example.id for example in remembered("sky", "sea").rehearse(task_named("ice"), ratio=0.7, resample="once")
    }
    assert {id_ for step in rows for id_ in step} == memory
    assert first.drawn == {"sky": 6, "sea": 6}


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_without_a_memory_it_is_sequential_fine_tuning_bit_for_bit(ratio):
    ours = gem(ratio=ratio, memory_strength=0.5)
    assert_trains_as_seqft(ours, TARGETS)
    if ratio == 0:
        ours.begin_task(task_named("sea"), remembered("sky"))
        assert ours.past == {}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ratio": 1.5}, r"method\.ratio is the share of past examples"),
        ({"reference_batch": 0}, r"method\.reference_batch must be at least 1"),
        ({"memory_strength": -0.5}, r"method\.memory_strength must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        gem(**settings)
