"""The classifier of inputs against the condition of its minimum, and the inputs that it is given."""

import numpy as np
import pytest
import torch

from see_lightning.data.example import Example
from see_lightning.evaluation import input_bound as module
from see_lightning.evaluation.input_bound import classified_right, input_bound, logistic_regression
from see_lightning.tasks.task import Task
from tests.adapters import small


def cloud(number: int, centre: float, draw: int) -> torch.Tensor:
    return torch.randn(number, 3, generator=torch.Generator().manual_seed(draw)) + centre


@pytest.mark.parametrize("decay", [0.01, 1.0])
def test_the_gradient_of_the_penalised_loss_is_zero_which_is_convex(decay):
    x, y = torch.cat([cloud(20, centre, int(centre)) for centre in (0.0, 1.0, 2.0)]).double(), np.repeat([0, 1, 2], 20)
    weights, offset = (found.numpy() for found in logistic_regression(x, torch.from_numpy(y), decay))
    likely = np.exp(x.numpy() @ weights + offset)
    error = likely / likely.sum(1, keepdims=True) - np.eye(3)[y]
    np.testing.assert_allclose(x.numpy().T @ error / 60 + decay * weights, 0, atol=1e-6)
    np.testing.assert_allclose(error.mean(0), 0, atol=1e-6)


def test_what_is_told_apart_is_right_and_equal_inputs_are_right_by_chance():
    far = {"sky": cloud(30, 0.0, 0), "sea": cloud(40, 9.0, 1)}
    right = classified_right(far, {"sky": cloud(9, 0.0, 2), "sea": cloud(5, 9.0, 3)})
    assert {name: (len(one), bool(one.all())) for name, one in right.items()} == {"sky": (9, True), "sea": (5, True)}
    same = classified_right(
        {"sky": cloud(50, 0.0, 0), "sea": cloud(50, 0.0, 1)}, {"sky": cloud(200, 0.0, 2), "sea": cloud(200, 0.0, 2)}
    )
    assert int(same["sky"].sum() + same["sea"].sum()) == 200, "each query is given to one of two tasks that it equals"
    assert torch.equal(same["sky"], ~same["sea"])


def rows(name: str, texts: list[str]) -> tuple[Example, ...]:
    return tuple(Example(f"{name}-{n}", text, "x", name) for n, text in enumerate(texts))


def test_definitions_are_left_out_of_training_and_test_inputs(monkeypatch):
    given = []
    monkeypatch.setattr(module, "classified_right", lambda *both: given.extend(both) or {
        "sky": torch.tensor([True, False]), "sea": torch.tensor([True])
    })  # fmt: skip
    pool, embedded = small.pool(), {}
    tasks = [
        Task(
            "sky",
            rows("sky", ["Tell.\n\none", "Tell.\n\ntwo"]),
            rows("sky", ["Tell.\n\nten", "Tell.\n\nelf"]),
            "rouge_l",
            8,
        ),
        Task("sea", rows("sea", ["a", "b"]), rows("sea", ["c"]), "rouge_l", 8),
    ]
    bound = input_bound(pool, small.TEMPLATE, tasks, embedded=embedded)
    assert (bound.accuracy, bound.per_task, bound.left_out) == (
        pytest.approx(2 / 3),
        {"sky": 0.5, "sea": 1.0},
        ("sea",),
    )
    texts = {tuple(small.TEMPLATE.prompt_ids(text)): text for text in ("one", "two", "ten", "elf", "a", "b", "c")}
    assert {(layer, texts[ids]) for layer, ids in embedded} == {(1, text) for text in texts.values()}
    train_of, test_of = given
    assert torch.equal(train_of["sky"][1], embedded[1, tuple(small.TEMPLATE.prompt_ids("two"))])
    assert torch.equal(test_of["sea"][0], embedded[1, tuple(small.TEMPLATE.prompt_ids("c"))])
