"""GPM: no change in protected directions under AdamW, what this leaves of old outputs, and what is kept."""

from functools import partial

import pytest
import torch
from torch import Tensor

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.gpm import Gpm
from see_lightning.methods.setup import Setup
from see_lightning.methods.subspace import Subspace, input_covariances
from tests.adapters import small
from tests.methods.fixed import fading, waves
from tests.methods.learning import (
    after_two_tasks,
    assert_trains_as_seqft,
    ended,
    equal,
    learn,
    remembered,
    task_named,
    weights,
)

TARGETS = ["q_proj", "down_proj"]
DEFAULT = {"threshold": 0.9, "threshold_step": 0.01, "rows": 300}


def gpm(*, activated: bool = False, **settings) -> Gpm:
    pool = small.pool(rank=8, targets=TARGETS, activated=activated)
    return Gpm(Setup(pool, small.TEMPLATE, OptimConfig(), 0), **DEFAULT | settings)


def moved(method) -> dict[str, Tensor]:
    """The change of each matrix since the task began."""
    names = [f"{layer}.{matrix}" for layer in method.pool.layers for matrix in "AB"]
    return {name: now - method.anchor[name] for name, now in zip(names, weights(method), strict=True)}


@pytest.mark.parametrize("activated", [False, True])
def test_changes_have_no_component_in_protected_directions_under_adamw(activated):
    method = ended(gpm(activated=activated), "sky")
    losses = learn(method, "sea", steps=40)
    assert losses[-1] < losses[0]
    for name, change in moved(method).items():
        leaked = change - method.protected[name].remove(change)
        assert change.norm() > 1e-2
        assert leaked.norm() < 1e-5 * change.norm()


def test_projecting_gradients_alone_would_leak(monkeypatch):
    method = ended(gpm(), "sky")
    monkeypatch.setattr(method, "after_step", lambda: None)
    learn(method, "sea", steps=40)
    leaked = sum((change - method.protected[name].remove(change)).norm() for name, change in moved(method).items())
    assert leaked > 0.01 * sum(change.norm() for change in moved(method).values())


def test_b_has_the_inputs_a_x_and_old_updates_stay_as_they_were_where_all_inputs_are_protected():
    """Within the inputs of the first task, the adapter's update is the same function after the second one."""
    method = ended(gpm(threshold=1.0), "sky")
    before = input_covariances(method, task_named("sky").train, 300)
    old = {layer: method.pool.delta(layer, "shared") for layer in method.pool.layers}
    learn(method, "sea", steps=20)
    for layer in method.pool.layers:
        change = method.pool.delta(layer, "shared") - old[layer]
        energy = (change @ before[layer] @ change.T).trace() / (old[layer] @ before[layer] @ old[layer].T).trace()
        assert energy < 1e-6
    a, _ = method.pool.pair(next(iter(method.pool.layers)), "shared")
    assert method.protected[f"{next(iter(method.pool.layers))}.B"].dimension() == len(a), "all ranks are taken"


def test_projected_gradients_are_those_of_the_authors_code_which_protects_one_direction_less_in_the_first_task():
    """Those of ``update_GPM`` and ``train_projected`` in main_cifar100.py of sahagobinda/GPM at 1a238ec."""
    theirs = [
        [
            [0.17329302, -0.83520918, -0.5702098, 0.95769381, -0.88080409, 0.94371602],
            [0.16508058, -0.08894867, 0.76376866, 0.86693034, 0.99593921, 0.79801837],
        ],
        [
            [0.10088115, -0.83231179, -0.02114298, 0.11265944, -0.93980115, 1.00452209],
            [0.0198194, -0.11380535, 0.03714549, 0.01531033, 0.98266229, 0.85980696],
        ],
        [
            [0.09440794, -0.85438351, 0.01277444, -0.00132519, -0.01213994, 0.00759248],
            [0.01202456, -0.10882117, 0.00162706, -0.00016879, -0.00154624, 0.00096704],
        ],
    ]
    method, rows = gpm(threshold=0.9, threshold_step=0.003), waves(2, 6, phase=3.0)
    covariances = [fading(number) @ fading(number).T for number in range(3)]
    method.protect("q.A", covariances[0], remembered())
    assert method.protected["q.A"].dimension() == 2, "theirs: 1, with 0.786 of the energy"
    method.protected["q.A"] = Subspace.empty(6, torch.device("cpu")).grow(covariances[0], 0.7)
    for past, (dimension, expected) in enumerate(zip((1, 3, 5), theirs, strict=True)):
        if past:
            method.protect("q.A", covariances[past], remembered(*("sky", "sea")[:past]))
        protected = method.protected["q.A"]
        assert protected.dimension() == dimension
        torch.testing.assert_close(protected.remove(rows), torch.tensor(expected).double(), atol=1e-5, rtol=0)


def test_the_first_task_is_sequential_fine_tuning_bit_for_bit():
    assert_trains_as_seqft(gpm(), TARGETS, rank=8)


def test_the_share_of_protected_energy_rises_with_every_task():
    dimensions = []
    for past in ((), ("sea",) * 99):
        method = ended(gpm(threshold=0.5, threshold_step=0.005), "sky", past=past)
        dimensions.append(sum(one.dimension() for one in method.protected.values()))
        assert all(0 < share <= 1 for share in method.report().values())
    assert dimensions[0] < dimensions[1]


def test_a_restored_method_goes_on_as_one_that_was_not_interrupted(tmp_path):
    method, fresh = after_two_tasks(partial(gpm, threshold=0.6), tmp_path)
    assert method.storage()["state"] == sum(one.basis_IK.nbytes for one in method.protected.values())
    assert learn(method, "ice") == learn(fresh, "ice")
    assert equal(weights(method), weights(fresh))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"threshold": -0.1}, r"method\.threshold must be between 0 and 1"),
        ({"threshold_step": 2.0}, r"method\.threshold_step must be between 0 and 1"),
        ({"rows": 0}, r"method\.rows must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        gpm(**settings)
