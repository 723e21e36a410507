"""Any-SSR: its router after several tasks is one ridge regression on the rows of all of them, and is kept as state."""

import numpy as np
import pytest
import torch

from see_lightning.adapters.embeddings import embed_prompts
from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.engine.router import learn_route
from see_lightning.errors import ConfigError
from see_lightning.methods.any_ssr import AnySsr
from see_lightning.methods.setup import Setup
from see_lightning.methods.stl import Stl
from see_lightning.routing.analytic import Analytic
from see_lightning.routing.knn import Knn
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task
from tests.adapters import small

TASKS = {"sky": "Name a colour.\n\nsky {} blue?", "sea": "Add.\n\n{} drops and {}", "ice": "How cold is {}"}
SETTINGS = {"features": 24, "ridge": 0.5, "layer": 1, "wordings": ["as_is", "input_only"]}


def setup(*experts: str) -> Setup:
    return Setup(small.pool(*experts), small.TEMPLATE, OptimConfig(), 0)


def task(name: str) -> Task:
    rows = tuple(Example(f"{name}-{n}", TASKS[name].format(n, 7 * n), "yes", name) for n in range(3, 9))
    return Task(name, rows, rows[:1], "rouge_l", 8)


def learned(*names: str, **changed) -> AnySsr:
    method = AnySsr(setup(*names), **(SETTINGS | changed)).eval()
    for name in names:
        method.end_task(task(name), Memory(0))
    return method


def worded(name: str) -> list[str]:
    """The prompts of a task, then without their definition; written out by hand."""
    prompts = [row.prompt for row in task(name).train]
    return prompts + [prompt.partition("\n\n")[2] for prompt in prompts if "\n\n" in prompt]


def test_after_all_tasks_its_weights_are_those_of_one_ridge_regression_on_all_rows():
    method = learned(*TASKS)
    of = [embed_prompts(method.pool, list(map(small.TEMPLATE.prompt_ids, worded(name))), layer=1) for name in TASKS]
    x = method.regression._random_features(torch.cat(of)).numpy()
    y = np.repeat(np.eye(3), [len(states) for states in of], axis=0)
    expected = np.linalg.solve(x.T @ x + 0.5 * np.eye(24), x.T @ y)
    np.testing.assert_allclose(method.regression.shared["weights"].numpy(), expected, atol=1e-6)


def test_it_routes_as_single_task_experts_under_the_same_router_do():
    method, other = learned(*TASKS), Stl(setup(*TASKS)).eval()
    other.chosen_router = Analytic(other, **SETTINGS)
    for name in TASKS:
        learn_route(other, task(name))
    queries = small.queries([prompt for name in TASKS for prompt in worded(name)])
    routes = method.route(queries)
    assert routes == other.route(queries)
    assert set(routes) == set(TASKS)


def test_its_state_is_the_whole_regression_and_a_task_ends_again_from_the_state_before(tmp_path):
    whole, again = learned(*TASKS), learned()
    part = learned("sky", "sea")
    part.save("sea", tmp_path)
    again.restore("sky", tmp_path)
    again.restore("sea", tmp_path)
    again.end_task(task("ice"), Memory(0))
    assert again.state().keys() == whole.state().keys()
    for name, tensor in whole.state().items():
        assert torch.equal(again.state()[name], tensor), name
    assert whole.storage()["state"] == 8 * (24 * 25 // 2 + 24 * 3)
    assert learned().state() == {}


def test_under_another_router_nothing_is_learned():
    method = learned()
    method.chosen_router = Knn(method)
    method.end_task(task("sky"), Memory(0))
    assert method.state() == {}


@pytest.mark.parametrize("changed", [{"features": 0}, {"ridge": 0.0}, {"layer": 9}, {"wordings": ["loud"]}])
def test_a_setting_out_of_range_is_refused(changed):
    with pytest.raises(ConfigError, match=next(iter(changed))):
        learned(**changed)
