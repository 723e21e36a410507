"""Recursive least squares against ridge regression on all tasks at once, in every order of tasks."""

from itertools import permutations

import numpy as np
import pytest
import torch

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.setup import Setup
from see_lightning.methods.stl import Stl
from see_lightning.routing import analytic
from see_lightning.routing.analytic import Analytic, random_features, recursive_least_squares
from tests.adapters import small

TASKS = {"sky": 9, "sea": 40, "ice": 3}


def states(name: str, hidden: int = 6) -> torch.Tensor:
    draw = torch.Generator().manual_seed(len(name) + TASKS[name])
    return torch.randn(TASKS[name], hidden, generator=draw) + 3 * torch.randn(hidden, generator=draw)


@pytest.fixture
def method() -> Stl:
    return Stl(Setup(small.pool("sky"), small.TEMPLATE, OptimConfig(), 0)).eval()


def ridge(x_of: dict[str, np.ndarray], strength: float) -> np.ndarray:
    """The solution on all tasks at once, by an augmented least-squares problem instead of the normal equations."""
    x = np.concatenate(list(x_of.values()))
    y = np.concatenate([np.eye(len(x_of))[[place] * len(rows)] for place, rows in enumerate(x_of.values())])
    features = x.shape[1]
    padded = (
        np.concatenate([x, strength**0.5 * np.eye(features)]),
        np.concatenate([y, np.zeros((features, y.shape[1]))]),
    )
    return np.linalg.lstsq(*padded, rcond=None)[0]


@pytest.mark.parametrize("order", [*permutations(TASKS)], ids=" ".join)
def test_in_any_order_of_tasks_it_is_ridge_regression_on_all_at_once(method, order, monkeypatch):
    monkeypatch.setattr(analytic, "ROWS", 16)  # so one task comes in several parts
    router = Analytic(method, features=32, ridge=0.5)
    for name in order:
        router.fit(name, states(name))
    x_of = {name: router._random_features(states(name)).numpy() for name in TASKS}
    expected = ridge(x_of, 0.5)[:, [list(TASKS).index(name) for name in order]]
    np.testing.assert_allclose(router.shared["weights"].numpy(), expected, atol=1e-6)
    own = torch.cat([states(name) for name in TASKS])
    np.testing.assert_allclose(router.score(own).numpy(), np.concatenate(list(x_of.values())) @ expected, atol=1e-6)


def test_the_inverse_is_that_of_the_sum_over_all_rows():
    x = torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inverse, weights = torch.eye(8, dtype=torch.float64) / 2, torch.zeros(8, 3, dtype=torch.float64)
    for start in (0, 1, 20):
        stop = {0: 1, 1: 20, 20: 50}[start]
        inverse, weights = recursive_least_squares(inverse, weights, x[start:stop], y[start:stop])
    expected = torch.linalg.inv(x.T @ x + 2 * torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(inverse, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(weights, expected @ x.T @ y, atol=1e-12, rtol=0)


def test_features_do_not_change_with_the_scale_of_hidden_states_and_are_of_the_order_one(method):
    router = Analytic(method, features=4096)
    one = router._random_features(states("sea"))
    torch.testing.assert_close(router._random_features(1024 * states("sea")), one)
    assert float(one.square().mean()) == pytest.approx(0.5, rel=0.1)
    x = torch.tensor([[3.0, 4.0]])
    assert random_features(x, torch.tensor([[1.0, -1.0], [0.0, 0.0]])).tolist() == [[pytest.approx(3 / 12.5**0.5), 0.0]]


def test_the_random_map_depends_on_the_runs_seed_alone(method):
    torch.manual_seed(1)
    one = Analytic(method, features=8)._random_features(states("sky"))
    torch.manual_seed(2)
    assert torch.equal(Analytic(method, features=8)._random_features(states("sky")), one)
    other = Stl(Setup(small.pool("sky"), small.TEMPLATE, OptimConfig(), 1))
    assert not torch.equal(Analytic(other, features=8)._random_features(states("sky")), one)


def test_what_was_saved_after_each_task_is_taken_up_and_goes_on_alike(method):
    router, again = (Analytic(method, features=32) for _ in range(2))
    for name in TASKS:
        router.fit(name, states(name))
        assert set(router.state(name)) == {"shared.inverse", "shared.weights"}
        again.load_state(name, {key: tensor.clone() for key, tensor in router.state(name).items()})
        assert torch.equal(again.score(states("sea")), router.score(states("sea")))
    assert [list(router.state(name)) for name in TASKS] == [[], [], ["shared.inverse", "shared.weights"]], (
        "of the newest task alone"
    )
    for one in (router, again):
        one.fit("fog", states("sky") + 1)
    assert all(torch.equal(again.shared[key], router.shared[key]) for key in router.shared)
    assert router.nbytes() == 8 * (32 * 33 // 2 + 32 * 4)


@pytest.mark.parametrize(("setting", "told"), [({"features": 0}, "router.features"), ({"ridge": 0.0}, "router.ridge")])
def test_an_unusable_setting_is_refused(method, setting, told):
    with pytest.raises(ConfigError, match=told):
        Analytic(method, **setting)


def test_weights_are_those_of_the_authors_code(method):
    """Run on these rows: ``train_initial_router`` on two tasks and ``train_subsequent_router`` on each further one.

    Of train_router_ana_continual.py, ZHUANGHP/Any-SSR, commit bfc65a5, in double precision, its map the identity.
    """
    router = Analytic(method, features=5, ridge=100.0)
    router._map_HF = torch.eye(5, dtype=torch.float64)
    for number, rows in enumerate((4, 3, 5, 2)):
        draw = torch.Generator().manual_seed(30 + number)
        positive = torch.randn(rows, 5, generator=draw, dtype=torch.float64).abs()  # so a ReLU changes nothing
        router.fit(str(number), positive)
    expected = [
        [0.021362985690733687, 0.01611696775958481, 0.01270713764248107, 0.018593493839096056],
        [0.03423899325242838, 0.01818699061870696, 0.01338573609189122, 0.00038351305241123707],
        [0.023070823809247624, 0.01603664926919498, 0.05167080455638524, 0.006051470860167703],
        [0.022154413419206757, 0.016792347494720437, 0.017026615776583886, 0.01144699345061938],
        [0.008449368350026134, 0.022870527335350253, 0.036658880115126545, 0.01858068553178562],
    ]
    torch.testing.assert_close(
        router.shared["weights"], torch.tensor(expected, dtype=torch.float64), atol=1e-13, rtol=0
    )
