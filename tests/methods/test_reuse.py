"""Whom a returning task gets, against PEFT's own forward of each row alone."""

import math
import random

import pytest
import torch

from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.methods.reuse import LOOKED_AT, relative_gain, reusable
from see_lightning.methods.see import See
from see_lightning.methods.setup import Setup
from see_lightning.seeds import seed
from see_lightning.tasks.task import Task
from tests.adapters import small

NAMES = ("a", "b")


@pytest.fixture(scope="module", params=[False, True], ids=["ordinary", "activated"])
def pool(request):
    return small.pool(*NAMES, activated=request.param)


def see(pool, share=0.0, gain=0.0) -> See:
    words = {"pos": "<<pos>>", "neg": "<<neg>>"}
    method = See(
        Setup(pool, small.TEMPLATE, OptimConfig(), 5), ratio=0.1, resample="per_task", indicators=words,
        reuse="accept", reuse_share=share, reuse_gain=gain,
    ).eval()  # fmt: skip
    method.reuse.own_gains = dict.fromkeys(NAMES, 0.25)
    return method


def task_of(name: str, rows: int) -> Task:
    examples = [Example(f"{n}", f"{'xyz'[n % 3] * (3 + n % 5)} {n}?", f"{n} and so on", name) for n in range(rows)]
    return Task(name, tuple(examples), (), "exact_match", 4)


def loss_alone(model, examples, opening: str) -> float:
    """Mean negative log-likelihood of the answers' tokens, each row in a forward pass of its own."""
    nats, tokens = [], 0
    for example in examples:
        prompt = small.TEMPLATE.prompt_ids(example.prompt)
        target = small.TEMPLATE.target_ids(opening + example.target)
        # The tokens that the row has in common with the bare indicator say nothing about the answer.
        bare = small.TEMPLATE.target_ids(opening)[:-1] if opening else []
        skipped = next((n for n, (x, y) in enumerate(zip(target, bare, strict=False)) if x != y), len(bare))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        nll = (-logits.log_softmax(-1))[range(len(target)), target][skipped:]
        nats += nll.double().tolist()
        tokens += len(nll)
    return math.fsum(nats) / tokens


@pytest.mark.parametrize("rows", [9, LOOKED_AT + 6])
def test_gains_are_those_of_each_row_alone_over_the_base_model(pool, tmp_path, rows):
    task, method = task_of("new", rows), see(pool)
    looked_at = random.Random(seed(5, "new", "reuse")).sample(task.train, min(rows, LOOKED_AT))
    losses = {
        name: loss_alone(small.by_peft(pool, name, tmp_path), looked_at, "<<pos>> " if name else "")
        for name in (*NAMES, None)
    }
    gains = {name: relative_gain(losses[None], losses[name], 0.25) for name in NAMES}
    method.assign(task)
    assert method.report()["reuse_rows"] == len(looked_at)
    assert method.report()["reuse_gain"] == pytest.approx(gains, abs=5e-3)
    method.reuse.learn(Task("a", task.train, (), "exact_match", 4))
    own = random.Random(seed(5, "a", "reuse")).sample(task.train, len(looked_at))
    by = small.by_peft(pool, "a", tmp_path)
    expected = loss_alone(small.by_peft(pool, None, tmp_path), own, "") - loss_alone(by, own, "<<pos>> ")
    assert method.reuse.own_gains["a"] == pytest.approx(expected, abs=1e-3)


def test_the_best_of_those_that_accept_and_answer_is_chosen():
    accepted, gains = {"a": 1.0, "b": 0.9, "c": 0.9, "d": 0.89}, {"a": 0.4, "b": 0.7, "c": 0.7}
    assert reusable(accepted, gains, 0.9, 0.5) == "b", "the oldest of equals"
    assert reusable(accepted, gains, 0.95, 0.5) is None
    assert reusable(accepted, gains, 0.95, 0.4) == "a"
    assert reusable({}, {}, 0.0, 0.0) is None


def test_an_expert_that_learned_nothing_is_not_reused(pool):
    method = see(pool, gain=0.01)
    method.reuse.own_gains = dict.fromkeys(NAMES, -1.0)  # with a negative divisor harm would look like help
    assert method.assign(task_of("new", 5)).expert == "new"


def test_asking_leaves_everything_as_it_is_and_the_state_comes_back(pool, tmp_path):
    method = see(pool)
    before, drawn = {name: pool.digest(name) for name in NAMES}, torch.get_rng_state()
    assert method.assign(task_of("new", 5)).expert in NAMES, "every share and every gain that is no harm is enough"
    assert {name: pool.digest(name) for name in NAMES} == before
    assert torch.equal(torch.get_rng_state(), drawn)
    method.save("new", tmp_path)
    again = see(pool)
    again.reuse.own_gains = {}
    again.restore("new", tmp_path)
    assert again.reuse.given == method.reuse.given
    for name in NAMES:
        again.load_state(name, method.state())
    assert again.reuse.own_gains == method.reuse.own_gains
