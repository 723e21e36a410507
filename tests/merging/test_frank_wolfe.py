"""Frank-Wolfe merging against closed forms on quadratics."""

import itertools

import pytest
import torch

from see_lightning.errors import ConfigError
from see_lightning.merging import changes
from see_lightning.merging.frank_wolfe import FrankWolfe, hard, on_simplex, soft
from see_lightning.merging.rule import Merged
from tests.merging.test_rules import added, vector


def quadratic(points, target):
    """The gradient of half the squared distance of a weighted sum of points to a target."""
    return lambda weights_C: points @ (weights_C @ points - target)


def points(number=4, size=6):
    generator = torch.Generator().manual_seed(0)
    return torch.cat([torch.zeros(1, size), torch.randn(number, size, generator=generator)]).double()


EVEN = torch.full((5,), 0.2, dtype=torch.float64)


@pytest.mark.parametrize("search", [hard, soft])
def test_a_target_in_the_hull_is_reached(search):
    all_ = points()
    inside = torch.tensor([0.1, 0.4, 0.0, 0.2, 0.3], dtype=torch.float64)
    found = search(quadratic(all_, inside @ all_), EVEN, 4000, 1.0)
    torch.testing.assert_close(found, inside, atol=0.02, rtol=0)
    assert float(found.sum()) == pytest.approx(1)
    assert float(found.min()) >= 0


@pytest.mark.parametrize("search", [hard, soft])
def test_beyond_a_model_that_model_is_taken_alone(search):
    all_ = points()
    for place in range(5):
        away = all_[place] - all_.mean(0)
        found = search(quadratic(all_, all_[place] + 20 * away), EVEN, 2000, 1.0)
        torch.testing.assert_close(found, torch.eye(5, dtype=torch.float64)[place], atol=1e-6, rtol=0)


def test_of_two_models_the_weights_are_those_of_the_projection():
    one, other = points(2)[1:]
    target = torch.ones(6, dtype=torch.float64)
    along = other - one
    expected = float(((target - one) @ along / (along @ along)).clamp(0, 1))
    two = torch.stack([one, other])
    for search in (hard, soft):
        found = search(quadratic(two, target), torch.full((2,), 0.5, dtype=torch.float64), 3000, 1.0)
        assert float(found[1]) == pytest.approx(expected, abs=0.01)


def test_the_first_step_is_whole_and_each_later_one_shorter():
    seen = []

    def noted(weights_C):
        seen.append(weights_C)
        return -torch.eye(5, dtype=torch.float64)[len(seen) % 5]

    found = hard(noted, EVEN, 3, 1.0)
    assert seen[1].tolist() == [0, 1, 0, 0, 0], "gamma is 1 at first"
    torch.testing.assert_close(found, torch.tensor([0, 1 / 6, 1 / 3, 1 / 2, 0]).double())


def test_the_point_on_the_simplex_is_the_nearest_one():
    grid = [torch.tensor(one).double() / 40 for one in itertools.product(range(41), repeat=3) if sum(one) == 40]
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        point = 2 * torch.randn(3, generator=generator, dtype=torch.float64)
        found = on_simplex(point)
        assert float(found.sum()) == pytest.approx(1)
        assert float(found.min()) >= 0
        nearest = min(float((point - one).norm()) for one in grid)
        assert float((point - found).norm()) <= nearest + 1e-9


def test_equal_derivatives_move_nothing():
    assert torch.equal(soft(lambda weights_C: torch.ones(5).double(), EVEN, 10, 1.0), EVEN)


def test_coefficients_come_back_without_the_loss():
    rule = FrankWolfe(variant="hard", iterations=30, step=1, rows=4)
    merged = None
    for number in range(3):
        merged = added(rule, merged, [vector(past) for past in range(number)], vector(number))
    assert sum(merged.numbers.values()) == pytest.approx(1)
    assert list(merged.numbers) == ["coefficient 0", "coefficient 1", "coefficient 2", "coefficient 3"]
    back = None
    for number in range(3):
        back = rule.restored(back, vector(number), merged.numbers if number == 2 else {})
    assert isinstance(back, Merged)
    for layer, change in rule.result(merged).items():
        expected = sum(
            merged.numbers[f"coefficient {place + 1}"] * changes.dense(vector(place).changes[layer])
            for place in range(3)
        )
        torch.testing.assert_close(changes.dense(change), expected)
        torch.testing.assert_close(changes.dense(rule.result(back)[layer]), expected)


def test_without_rows_there_are_no_coefficients():
    with pytest.raises(ConfigError, match="chooses merging coefficients on rows of the tasks"):
        FrankWolfe(variant="hard", iterations=1, step=1, rows=4).add(None, vector(0))
