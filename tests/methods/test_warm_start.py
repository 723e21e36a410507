"""Which expert a new one begins as, against PEFT's own forward of each example alone."""

import random

import numpy as np
import pytest
import torch

from see_lightning.adapters.embeddings import embed_prompts
from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.methods.see import See
from see_lightning.methods.setup import Setup
from see_lightning.methods.stl import Stl
from see_lightning.methods.warm_start import NEIGHBOURS, WarmStart
from see_lightning.seeds import seed
from see_lightning.tasks.task import Task
from tests.adapters import small

NAMES = ("a", "b", "c")


def task_of(answers: str, rows: int = 30) -> Task:
    """Prompts whose beginning tells their answer."""
    examples = [
        Example(f"{n}", f"{answers[n % len(answers)] * 6} {n}", f"{answers[n % len(answers)]} and so on", "new")
        for n in range(rows)
    ]
    return Task("new", tuple(examples), (), "exact_match", 4)


@pytest.fixture(scope="module", params=[False, True], ids=["ordinary", "activated"])
def pool(request):
    return small.pool(*NAMES, activated=request.param)


@pytest.fixture(scope="module")
def alone(pool, tmp_path_factory):
    """Each expert as PEFT alone loads it, and the plain base model."""
    folder = tmp_path_factory.mktemp("experts")
    return {name: small.by_peft(pool, name, folder) for name in (*NAMES, None)}


def see(pool, **optim) -> See:
    words = {"pos": "<<pos>>", "neg": "<<neg>>"}
    return See(
        Setup(pool, small.TEMPLATE, OptimConfig(**optim), 5), ratio=0.1, resample="per_task",
        indicators=words,
    )  # fmt: skip


def probed(task: Task, size: int) -> list[Example]:
    return random.Random(seed(5, "new", "warm start")).sample(task.train, min(size, len(task.train)))


@pytest.mark.parametrize("mean", ["tokens", "examples"])
@pytest.mark.parametrize("size", [4, 99])
def test_by_loss_it_is_the_expert_to_whom_the_accepted_answers_are_likeliest(pool, alone, mean, size, monkeypatch):
    task = task_of("xyz", rows=9)
    losses = {}
    for name, model in alone.items():
        nlls = []
        for example in probed(task, size):
            prompt = small.TEMPLATE.prompt_ids(example.prompt)
            target = small.TEMPLATE.target_ids(f"<<pos>> {example.target}")
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            nlls.append((-logits.log_softmax(-1))[range(len(target)), target])
        losses[name] = float(
            torch.cat(nlls).mean() if mean == "tokens" else torch.stack([n.mean() for n in nlls]).mean()
        )
    method, expected = see(pool, loss_reduction=mean), sorted(losses, key=losses.get)
    expected = expected[: expected.index(None) + 1]
    monkeypatch.setattr(pool, "names", list(NAMES))
    for best in expected:  # with the best one gone, the next; with none that is better than the base model, afresh
        assert WarmStart("loss", size).choose(method, task) == best
        pool.names = [name for name in pool.names if name != best]


def test_a_voice_is_described_by_its_own_last_hidden_states(pool, alone):
    prompts = [small.TEMPLATE.prompt_ids(text) for text in ("a sum?", "why is the sky so blue?")]
    for name, model in alone.items():
        with torch.no_grad():
            states = [
                model(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0].mean(0)
                for prompt in prompts
            ]
        torch.testing.assert_close(embed_prompts(pool, prompts, name), torch.stack(states), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(embed_prompts(pool, prompts, "a"), embed_prompts(pool, prompts), atol=1e-2)


def test_by_neighbours_it_is_the_expert_in_whose_states_the_same_answers_lie_together(pool, alone):
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefgh ", k=9)) for _ in range(60)]
    rows = [Example(str(n), word, draw.choice("xyz"), "new") for n, word in enumerate(words)]
    task = Task("new", tuple(rows), (), "exact_match", 4)
    right = {}
    examples = probed(task, 50)
    for name in NAMES:
        features = []
        for example in examples:
            ids = torch.tensor([small.TEMPLATE.prompt_ids(example.prompt)])
            with torch.no_grad():
                features.append(
                    alone[name](input_ids=ids, output_hidden_states=True).hidden_states[-1][0].mean(0).numpy()
                )
        right[name] = 0
        for row in range(33, 50):
            near = sorted(range(33), key=lambda other: np.linalg.norm(features[row] - features[other]))[:NEIGHBOURS]
            votes = [examples[other].target for other in near]
            right[name] += max(votes, key=votes.count) == examples[row].target
    best = max(right, key=right.get)
    expected = best if right[best] / 17 > 1 / 3 else None
    assert WarmStart("knn", 50).choose(see(pool), task) == expected


def test_by_neighbours_nobody_is_chosen_for_a_task_of_one_answer(pool):
    assert WarmStart("knn", 30).choose(see(pool), task_of("x")) is None
    assert WarmStart("knn", 30).choose(see(pool), task_of("xy")) in NAMES


def test_without_earlier_experts_or_a_wish_for_them_a_task_begins_afresh(pool):
    assert WarmStart("none", 30).choose(see(pool), task_of("xy")) is None
    for how in ("loss", "knn"):
        assert WarmStart(how, 30).choose(see(small.pool()), task_of("xy")) is None


def test_choosing_leaves_everything_as_it_is(pool):
    method = see(pool)
    for training in (True, False):
        method.train(training)
        before, drawn = {name: pool.digest(name) for name in NAMES}, torch.get_rng_state()
        for how in ("loss", "knn"):
            WarmStart(how, 6).choose(method, task_of("xy"))
        assert {name: pool.digest(name) for name in NAMES} == before
        assert torch.equal(torch.get_rng_state(), drawn)
        assert all(module.training == training for module in method.modules())
        assert not method.counts


def test_only_methods_that_are_told_to_begin_as_others_do(pool):
    method = Stl(Setup(pool, small.TEMPLATE, OptimConfig(), 5))
    assert method.choose_parent(task_of("xy")) is None
