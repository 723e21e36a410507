"""Distances under one covariance against numpy on all tasks at once, in every order of tasks."""

from itertools import permutations

import numpy as np
import pytest
import torch

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.setup import Setup
from see_lightning.methods.stl import Stl
from see_lightning.routing.lda import Lda
from tests.adapters import small

SIZES = {"sky": 4, "sea": 30, "ice": 9}


def states(name: str) -> torch.Tensor:
    draw = torch.Generator().manual_seed(SIZES[name])
    return torch.randn(SIZES[name], 5, generator=draw) + 2 * torch.randn(5, generator=draw)


@pytest.fixture
def method() -> Stl:
    return Stl(Setup(small.pool("sky"), small.TEMPLATE, OptimConfig(), 0)).eval()


@pytest.mark.parametrize("shrinkage", [0.1, 0.5])
@pytest.mark.parametrize("order", [*permutations(SIZES)], ids=" ".join)
def test_in_any_order_of_tasks_distances_are_those_under_the_covariance_of_all_at_once(method, order, shrinkage):
    router = Lda(method, shrinkage=shrinkage)
    for name in order:
        router.fit(name, states(name))
    rows_of = {name: states(name).double().numpy() for name in order}
    centred = np.concatenate([rows - rows.mean(0) for rows in rows_of.values()])
    covariance = (1 - shrinkage) * centred.T @ centred / 43
    covariance += shrinkage * np.trace(centred.T @ centred / 43) / 5 * np.eye(5)
    queries = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    for row, found in zip(queries.double().numpy(), router.score(queries), strict=True):
        apart = [row - rows.mean(0) for rows in rows_of.values()]
        expected = [-(float(one @ np.linalg.inv(covariance) @ one) ** 0.5) for one in apart]
        assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_what_was_saved_after_each_task_is_taken_up_and_goes_on_alike(method):
    router, again = (Lda(method) for _ in range(2))
    for name in SIZES:
        router.fit(name, states(name))
        again.load_state(name, {key: tensor.clone() for key, tensor in router.state(name).items()})
        assert torch.equal(again.score(states("sea")), router.score(states("sea")))
    assert [list(router.state(name)) for name in SIZES] == [
        ["mean"],
        ["mean"],
        ["mean", "shared.scatter", "shared.rows"],
    ]
    for one in (router, again):
        one.fit("fog", states("sky") + 1)
    assert torch.equal(again.score(states("ice")), router.score(states("ice")))
    assert router.nbytes() == 8 * (4 * 5 + 15 + 1)


@pytest.mark.parametrize("shrinkage", [0.0, 1.5])
def test_an_unusable_setting_is_refused(method, shrinkage):
    with pytest.raises(ConfigError, match=r"router\.shrinkage must be"):
        Lda(method, shrinkage=shrinkage)
