"""Whom a new expert begins as: against nearest neighbours counted in numpy, and the loss that training has."""

import numpy as np
import pytest
import torch

from see_lightning.methods.loss import answer_loss
from see_lightning.methods.transferability import above_chance, below, mean_loss, neighbours_accuracy
from see_lightning.tasks.batches import IGNORED


def oracle(features: np.ndarray, labels: list[int], k: int) -> float:
    """The last 34 % guessed by k of the others, ordered by distance."""
    known = int(0.66 * len(labels))
    right = 0
    for row in range(known, len(labels)):
        distances = [(float(((features[row] - features[other]) ** 2).sum()), other) for other in range(known)]
        near = [labels[other] for _, other in sorted(distances)[:k]]
        most = max(np.unique(near, return_counts=True)[1])
        guess = next(label for label in near if near.count(label) == most)
        right += guess == labels[row]
    return right / (len(labels) - known)


@pytest.mark.parametrize("k", [1, 2, 5, 40])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_neighbours_guess_as_numpy_counts_them(k, spread):
    draw = np.random.default_rng(k)
    labels = draw.integers(0, 4, 47).tolist()
    features = draw.normal(size=(4, 6))[labels] + spread * draw.normal(size=(47, 6))
    found = neighbours_accuracy(torch.tensor(features), labels, k)
    assert found == oracle(features, labels, k)
    assert (found > 0.9) == (spread == 0.3 and k < 40)


@pytest.mark.parametrize(
    ("k", "right"),
    [(1, 0.7272727489471436), (3, 0.8181818127632141), (5, 0.9090909361839294), (15, 0.9090909361839294)],
)
def test_the_accuracy_of_neighbours_is_that_of_the_authors_code(k, right):
    """Run on these features: ``KNN`` of utils/my_utils.py, prateeky2806/exessnet, commit 1e768f8, with 66 % as neighbours."""
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(70), dtype=torch.float64)
    labels = torch.randint(0, 2, (30,), generator=torch.Generator().manual_seed(71))
    found = neighbours_accuracy(features + labels[:, None], labels.tolist(), k)
    assert found == pytest.approx(right, rel=1e-6)


def test_of_equally_many_the_nearest_neighbour_is_believed():
    lies = torch.tensor([[1.0], [2.0], [9.0], [0.0]])  # two of four are known
    assert neighbours_accuracy(lies, [5, 3, 5, 5], k=2) == 0.5
    assert neighbours_accuracy(lies, [3, 5, 5, 3], k=2) == 1.0, "9 lies nearer to 2, 0 nearer to 1"
    authors = [3, 3]  # the same ``KNN`` predicts the smallest label of equally many, wherever the row lies
    assert neighbours_accuracy(lies, [5, 3, *authors], k=2) == 0.5


def test_small_differences_between_large_numbers_count():
    lies = torch.cat([torch.full((30, 1), 4096.0), torch.full((30, 1), 4096.01)]).repeat(1, 64)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    labels = (order >= 30).int().tolist()
    assert neighbours_accuracy(lies[order], labels, k=3) == 1.0


def test_with_too_few_examples_nobody_is_told_apart():
    assert neighbours_accuracy(torch.zeros(1, 2), [1], k=3) == 0.0
    assert neighbours_accuracy(torch.zeros(2, 2), [1, 1], k=3) == 1.0, "one is known, one guessed"


def test_only_what_is_better_than_chance_or_than_the_base_is_taken_and_the_oldest_of_equals():
    assert above_chance({"a": 0.5, "b": 0.75, "c": 0.75}, [1, 2, 1]) == "b"
    assert above_chance({"a": 0.5}, [1, 2, 1]) is None, "as good as chance"
    assert above_chance({"a": 1.0}, [1, 1]) is None, "of one label all guesses are right"
    assert below({"a": 2.0, "b": 1.0, "c": 1.0}, base=1.5) == "b"
    assert below({"a": 1.5}, base=1.5) is None


@pytest.mark.parametrize("mean", ["tokens", "examples"])
def test_the_mean_loss_is_that_of_training(mean):
    draw = torch.Generator().manual_seed(3)
    sizes = [3, 1, 5]
    labels = torch.full((3, 6), IGNORED)
    for row, size in enumerate(sizes):
        labels[row, 6 - size :] = torch.randint(0, 7, (size,), generator=draw)
    logits = torch.randn(sum(sizes), 7, generator=draw)
    nlls = -logits.log_softmax(-1)[range(9), labels[labels != IGNORED]]
    sums = [float(part.sum()) for part in nlls.split(sizes)]
    assert mean_loss(sums, sizes, mean) == pytest.approx(float(answer_loss(logits, labels, mean)), rel=1e-5)
