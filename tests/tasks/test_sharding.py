"""Dealing queries to ranks: complete, even, steady from stage to stage, and close to the best there is."""

import os
import random
from pathlib import Path

import pytest

from see_lightning.data.checks import RowChecks
from see_lightning.data.example import Example
from see_lightning.data.ssr import SsrReader
from see_lightning.models.tiny import tiny_tokenizer
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.sharding import balance, expected_costs, shard_of
from see_lightning.tasks.task import Task

TEMPLATE = PromptTemplate(tiny_tokenizer(), style="chat", max_length=4096)


def columns(draw: random.Random) -> list[list[float]]:
    return [[draw.expovariate(0.01) for _ in range(draw.randrange(0, 40))] for _ in range(draw.randint(1, 6))]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("case", range(10))
def test_every_query_goes_to_one_rank_and_no_rank_has_a_query_more_than_it_must(case, ranks):
    costs = columns(random.Random(case))
    balanced = balance(costs, ranks)
    for column, shares in zip(costs, balanced, strict=True):
        assert sorted(query for share in shares for query in share) == list(range(len(column)))
        assert all(share == sorted(share) for share in shares)
    for tasks in range(1, len(costs) + 1):  # after every stage
        loads = [sum(costs[t][q] for t in range(tasks) for q in balanced[t][rank]) for rank in range(ranks)]
        dearest = max((cost for column in costs[:tasks] for cost in column), default=0.0)
        assert max(loads) - min(loads) <= dearest + 1e-9


def test_a_querys_rank_does_not_hang_on_tasks_that_come_later():
    costs = columns(random.Random(1))
    whole = balance(costs, 3)
    for tasks in range(len(costs) + 1):
        assert balance(costs[:tasks], 3) == whole[:tasks]


def task(name: str, answers: list[str], prompts: list[str]) -> Task:
    train = tuple(Example(f"{name}-train-{n}", "p", answer, name) for n, answer in enumerate(answers))
    test = tuple(Example(f"{name}-test-{n}", prompt, "a", name) for n, prompt in enumerate(prompts))
    return Task(name=name, train=train, test=test, score="rouge_l", max_new_tokens=9)


def test_what_a_query_costs_is_its_prompt_and_the_usual_answer_of_its_task():
    short, long = task("a", ["x"], ["one", "one two"]), task("b", ["x" * 30, "x" * 50], ["one"])
    first, second = expected_costs(short, TEMPLATE)
    (other,) = expected_costs(long, TEMPLATE)
    assert second - first == len(" two")
    assert other - first == 8 * (40 - 1)
    untrained = Task(name="c", train=(), test=short.test, score="rouge_l", max_new_tokens=100)
    assert expected_costs(untrained, TEMPLATE)[0] > other


def test_the_ranks_shares_are_the_tasks_themselves():
    tasks = [task("a", ["x"], ["q" * n for n in range(1, 8)]), task("b", ["xx"], ["r" * n for n in range(1, 4)])]
    shares = [shard_of(tasks, TEMPLATE, rank=rank, ranks=2) for rank in (0, 1)]
    for one in tasks:
        balanced = [shares[rank][one.name] for rank in (0, 1)]
        assert sorted(e.id for share in balanced for e in share.test) == sorted(e.id for e in one.test)
        assert all((share.train, share.score, share.name) == (one.train, one.score, one.name) for share in balanced)
    assert shard_of(tasks, TEMPLATE, rank=0, ranks=1) == {one.name: one for one in tasks}


@pytest.mark.data
@pytest.mark.parametrize("ranks", [2, 8])
def test_on_recorded_lengths_the_slowest_rank_takes_at_most_a_quarter_more_than_the_best_possible(ranks):
    """Dealt by what is expected; the load is what the recorded answers take: prompts read and tokens written."""
    folder = Path(os.environ["SEE_DATA"]) / "ssr_ni_split"
    tasks, true_costs = [], []
    for name in ("qa", "qg", "sa", "sum", "trans", "dsg", "expl", "para", "pe", "pos"):
        split = SsrReader(folder=str(folder)).read(name, RowChecks("skip"))
        tests = split.test[:100]
        tasks.append(Task(name, split.train[:100], tests, "rouge_l", 100))
        true_costs.append([len(e.prompt) + 8 * len(e.target) for e in tests])
    balanced = balance([expected_costs(one, TEMPLATE) for one in tasks], ranks)
    loads = [
        sum(true_costs[t][query] for t, shares in enumerate(balanced) for query in shares[rank])
        for rank in range(ranks)
    ]
    bound = max(sum(loads) / ranks, max(map(max, true_costs)))
    assert max(loads) <= 1.25 * bound
