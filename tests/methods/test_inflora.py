"""InfLoRA: the designed A by SVD of the inputs, the protected subspace under AdamW, and what is kept."""

import pytest
import torch

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.inflora import InfLora, design
from see_lightning.methods.setup import Setup
from see_lightning.methods.subspace import Subspace, input_covariances
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.methods.fixed import fading
from tests.methods.learning import after_two_tasks, ended, equal, learn, remembered, task_named, weights

TARGETS = ["q_proj", "down_proj"]
DEFAULT = {"threshold": 0.9, "threshold_step": 0.01, "rows": 300}


def inflora(*, rank: int = 4, activated: bool = False, **settings) -> InfLora:
    pool = small.pool(rank=rank, targets=TARGETS, activated=activated)
    return InfLora(Setup(pool, small.TEMPLATE, OptimConfig(), 0), **DEFAULT | settings)


@pytest.mark.parametrize("kept", [0, 2, 5])
def test_a_has_the_principal_directions_of_the_inputs_outside_the_protected_subspace(kept):
    draw = torch.Generator().manual_seed(kept)
    x = torch.randn(8, 30, generator=draw).double() * torch.arange(1, 9)[:, None]
    basis = torch.linalg.qr(torch.randn(8, kept, generator=draw).double()).Q
    found = design(x @ x.T, Subspace(basis.float(), is_free=False), 3).double()
    u, _, _ = torch.linalg.svd(x - basis @ basis.T @ x)
    torch.testing.assert_close(found @ found.T, torch.eye(3).double() / 3, atol=1e-6, rtol=0)
    torch.testing.assert_close(3**0.5 * (found @ u[:, :3]).abs(), torch.eye(3).double(), atol=1e-5, rtol=0)
    assert (found @ basis).abs().sum() < 1e-6


def test_without_a_free_direction_a_is_zero_and_its_rank_may_exceed_the_input():
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    nothing = Subspace(torch.zeros(6, 0), is_free=True)
    assert not design(x @ x.T, nothing, 4).any()
    one = design(x @ x.T, Subspace(torch.eye(6)[:, 1:], is_free=False), 4)
    torch.testing.assert_close(one[0].abs(), torch.eye(6)[0] / 3**0.5)
    assert not one[1:].any()
    assert design(x @ x.T, Subspace.empty(6, x.device), 9).any(dim=1).tolist() == [True] * 6 + [False] * 3


def test_a_and_the_protected_directions_are_those_of_the_authors_code_which_squares_the_energies():
    """Those of ``_train`` and ``update_DualGPM`` in methods/inflora.py of liangyanshuo/InfLoRA at e08b00e, four tasks.

    That code takes singular values and vectors of the covariance, not of the inputs: ours gives its numbers for the
    covariance times itself. In the first task it protects one direction less. The largest entry of a row is positive here.
    """
    theirs = [
        [
            [0.56866342, 0.06247109, -0.03353907, -0.07017196, -0.00190391, 3.496e-05],
            [-0.0701222, 0.51155323, -0.2579883, 0.01023946, 0.00814185, -0.00058535],
        ],
        [
            [0.03298415, 0.01254486, 0.5758881, 0.00377745, -0.02064886, -0.00049426],
            [0.06948411, 0.00597163, -0.00693902, 0.57098156, 0.026533, -0.04120042],
        ],
        [
            [0.00149912, -0.00669895, 0.02063279, -0.01903489, 0.5678885, 0.10000389],
            [0.00413135, 0.00746832, -0.00372603, 0.04485503, -0.0981489, 0.56709927],
        ],
        [[-0.06340282, 0.5737046, -0.00857888, 0.00080909, 0.00829135, -0.00577876]],
    ]
    second_row_in_the_fourth_task = torch.tensor(
        [[0.57369864, 0.06357836, -0.0023771, -9.571e-05, -0.01175487, 0.00413054]]
    )
    of_code, ours = (inflora(threshold=0.98, threshold_step=0.002) for _ in range(2))
    for past, expected in enumerate(theirs):
        covariance = fading(past) @ fading(past).T
        memory = remembered(*("sky", "sea", "ice")[:past])
        protected = of_code.subspace("q", covariance)
        found = design(covariance @ covariance, protected, 2)
        torch.testing.assert_close(found[: len(expected)], torch.tensor(expected), atol=1e-5, rtol=0)
        of_code.protect("q", covariance @ covariance, memory)
        ours.protect("q", covariance, memory)
        if not past:
            assert of_code.protected["q"].dimension() == 2, "theirs: 1"
            of_code.protected["q"] = Subspace.empty(6, covariance.device).grow(covariance, 0.7)
        assert of_code.protected["q"].dimension() == (1, 3, 5, 6)[past]
        assert ours.protected["q"].dimension() == (2, 5, 6, 6)[past]
    # Before the fourth task one direction is free, and A has two rows.
    assert protected.remove(second_row_in_the_fourth_task).norm() < 1e-4, "theirs is in protected directions"
    assert not found[1].any()


@pytest.mark.parametrize("activated", [False, True])
def test_updates_have_no_component_in_the_protected_subspace_under_adamw(activated):
    method = ended(inflora(activated=activated), "sky")
    before = input_covariances(method, task_named("sky").train, 300)
    protected = dict(method.protected)
    losses = learn(method, "sea", steps=40)
    assert losses[-1] < losses[0]
    for layer in method.pool.layers:
        delta = method.pool.delta(layer, "sea")
        assert delta.norm() > 0.1
        leaked = delta - protected[layer].remove(delta)
        assert leaked.norm() < 1e-5 * delta.norm()
        energy = (delta @ before[layer] @ delta.T).trace()
        assert energy < 0.1001 * delta.norm() ** 2 * before[layer].trace(), "the others have a tenth of the energy"


def test_b_alone_is_trained_and_earlier_adapters_rest():
    method = ended(inflora(), "sky")
    rested = weights(method, "sky")
    method.begin_task(task_named("sea"), Memory(0))
    trained = {id(parameter) for parameter in method.trained_weights()}
    assert trained == {id(b) for _, b in method.pool.pairs("sea").values()}
    designed = [a.detach().clone() for a, _ in method.pool.pairs("sea").values()]
    optimizer = torch.optim.AdamW(method.trained_weights(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        batch = next(method.batches(task_named("sea").train, 3))
        optimizer.zero_grad()
        method.loss(batch).backward()
        optimizer.step()
    assert all(
        torch.equal(a, before) for (a, _), before in zip(method.pool.pairs("sea").values(), designed, strict=True)
    )
    assert equal(weights(method, "sky"), rested)
    assert all(b.detach().any() for _, b in method.pool.pairs("sea").values())


def test_the_share_of_protected_energy_rises_with_every_task():
    dimensions = []
    for past in ((), ("sea",) * 5, ("sea",) * 99):
        method = ended(inflora(threshold=0.5, threshold_step=0.05), "sky", past=past)
        dimensions.append([one.dimension() for one in method.protected.values()])
        assert 0 < method.report()["protected_share"] <= 1
    assert sum(dimensions[0]) < sum(dimensions[1]) < sum(dimensions[2])


def test_a_restored_method_goes_on_as_one_that_was_not_interrupted(tmp_path):
    method, fresh = after_two_tasks(inflora, tmp_path)
    size = method.pool.adapter_bytes("sky")
    state = sum(one.basis_IK.nbytes for one in method.protected.values())
    assert method.storage() == fresh.storage() == {"pool": size, "weights": 2 * size, "state": state}
    assert learn(method, "ice") == learn(fresh, "ice")
    for task in ("sky", "sea", "ice"):
        assert equal(weights(method, task), weights(fresh, task))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"threshold": 1.2}, r"method\.threshold must be between 0 and 1"),
        ({"threshold_step": -0.1}, r"method\.threshold_step must be between 0 and 1"),
        ({"rows": 0}, r"method\.rows must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        inflora(**settings)
