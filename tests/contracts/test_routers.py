"""Every router of ``conf/router``: it adopts experts, chooses among those there are, and chooses the same however it is run.

No router is named here. Each routes a method whose own it is not, if such a method takes it; routers of one method share one
training. What is own to a method is tried with the method: interruptions by its contracts, ranks by ``tests/golden``.
"""

import inspect
import re
import shutil
from functools import cache
from pathlib import Path

import hydra.utils
import pytest
import torch
import yaml
from omegaconf import DictConfig

from see_lightning import load_ensemble
from see_lightning.config.search_path import CONF
from see_lightning.engine import launch
from see_lightning.engine.router import allowed_routers, routers_in, takes
from see_lightning.errors import ConfigError
from see_lightning.routing.router import Router
from see_lightning.tasks.datamodule import query_batch
from tests.contracts.conftest import FIRST, METHODS
from tests.nightly import all_but
from tests.runs import toy

TWO_RANKS = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
NAMES = list(toy.TASKS)
ROUTERS = sorted(path.stem for path in (CONF / "router").glob("*.yaml"))


def target(group: str, name: str) -> type:
    return hydra.utils.get_class(yaml.safe_load((CONF / group / f"{name}.yaml").read_text())["_target_"])


def is_own(method: str, router: str) -> bool:
    """Whether the method routes by it where none is named."""
    settings = yaml.safe_load((CONF / "method" / f"{method}.yaml").read_text())
    return target("method", method).router_for(settings) is target("router", router)


@cache
def method_for(router: str) -> str:
    """Of the methods that take a router the one with the shortest settings, its own last."""
    taking = [name for name in METHODS if takes(target("method", name), target("router", router))]
    return min(taking, key=lambda name: (is_own(name, router), (CONF / "method" / f"{name}.yaml").stat().st_size))


CHOSEN = [router for router in ROUTERS if not is_own(method_for(router), router)]
#: One that learns nothing and one that learns; ``make test-all`` tries the others too.
LEARNS = [router for router in CHOSEN if target("router", router).learn is not Router.learn]
DAILY = [*LEARNS[:1], *[router for router in CHOSEN if router not in LEARNS][:1]]


@cache
def own(base, method: str) -> toy.Seen:
    """A run by the method's own router."""
    return toy.run(toy.compose(toy.data_in(base), base / "own", f"method={method}"))


def beside_own(base, runs, router: str) -> DictConfig:
    """The configuration of a run by the router, beside one that has its experts and no other."""
    directory = own(base, method_for(router)).directory
    shutil.copytree(directory, runs / toy.place_of(directory))
    return toy.compose(toy.data_in(base), runs, f"method={method_for(router)}", f"router={router}")


@cache
def routed(base, router: str) -> toy.Seen:
    """A run by the router."""
    return toy.run(beside_own(base, base / f"by {router}", router))


@pytest.fixture(params=ROUTERS)
def router(request) -> str:
    return request.param


@pytest.fixture
def base(base, router) -> Path:
    """Where runs lie; with larger tasks for a router that would learn too few rows once it has held some back."""
    cfg = toy.compose(toy.data_in(base), base, f"method={method_for(router)}", f"router={router}")
    parts = list(routers_in(cfg.router))
    holds_out = any(part.holds_out or settings.get("target_recall") for part, settings in parts)
    fewest = max(part.fewest for part, _ in parts)
    return base / toy.LARGER if holds_out and fewest >= min(toy.TASKS.values()) else base


@pytest.fixture
def run(base, router) -> toy.Seen:
    return routed(base, router)


def test_it_trains_nothing_and_is_named_in_the_results(run, router):
    assert run.fits == 0
    assert toy.read_results(run.directory)["router"] == router


def test_it_routes_to_experts_that_there_are_and_its_accuracy_is_counted(run, router):
    method, needs_task = target("method", method_for(router)), target("router", router).needs_task
    for number, answers in enumerate(toy.read_answers(run.directory).values(), start=1):
        born = {*NAMES[:number], "base"} if method.traits.has_experts else {None}
        assert {one["expert"] for one in answers} <= born | ({"base"} if method.traits.schedule == "frozen" else set())
    results = toy.read_results(run.directory)
    assert ("routing" in results) == (method.traits.has_experts and not needs_task)
    if "routing" in results:
        right = [one["expert"] == one["task"] for one in answers]
        assert results["routing"]["accuracy"] == sum(right) / len(right)


def choices(method, prompts: list[str], told: list[str], rows: int) -> list[str | None]:
    with torch.inference_mode():
        batch = query_batch(prompts, method.template, tasks=told, max_new_tokens=4, rows=rows)
        return method.route(batch)


def test_a_loaded_ensemble_routes_alike_whatever_is_asked_together(run, base):
    method, prompts = load_ensemble(run.directory, max_new_tokens=4).method, toy.prompts(base)
    *_, last = toy.read_answers(run.directory).values()
    asked = [prompts[one["id"]] for one in last]
    told = [one["task"] for one in last] if method.needs_task_id else []
    found = choices(method, asked, told, 16)
    if method.traits.has_experts:
        assert [name or "base" for name in found] == [one["expert"] for one in last]
    fresh = load_ensemble(run.directory, max_new_tokens=4).method  # which has embedded nothing yet
    alone = [choices(fresh, [one], told[n : n + 1], 1)[0] for n, one in enumerate(asked)]
    assert alone == found == choices(fresh, asked, told, 3)


@pytest.mark.parametrize("router", all_but(DAILY, CHOSEN))
def test_what_it_learned_survives_every_interruption(run, router, base, tmp_path):
    resumed, interruptions = toy.broken_off(beside_own(base, tmp_path, router))
    assert interruptions > 3
    assert toy.kept(resumed.directory) == toy.kept(run.directory)


@pytest.mark.parametrize("router", all_but(DAILY, CHOSEN))
def test_two_ranks_choose_alike(run, router, base, tmp_path):
    cfg, log = beside_own(base, tmp_path, router), tmp_path / "log"
    cfg.trainer = toy.compose(toy.data_in(base), tmp_path, *TWO_RANKS).trainer
    assert toy.ended(toy.start_ranks(2, lambda: launch.launch(cfg, "test"), log)) == [0, 0], log.read_text()[-3000:]
    both = toy.read_answers(tmp_path / toy.place_of(run.directory))
    assert both == toy.read_answers(run.directory)


def test_a_method_that_does_not_take_it_names_those_that_it_takes(base, router, tmp_path):
    for name in FIRST:
        if not takes(target("method", name), target("router", router)):
            allowed = "|".join(allowed_routers(target("method", name)))
            cure = f"it takes router={allowed}" if allowed else "it weighs its adapters itself"
            with pytest.raises(ConfigError, match=re.escape(f"router={router}; {cure}")):
                toy.run(toy.compose(toy.data_in(base), tmp_path, f"method={name}", f"router={router}"))
    assert not list(tmp_path.iterdir()), "no folder is made for a run that is refused"


def test_the_defaults_of_its_class_are_those_of_its_file(router):
    defaults = {name: one.default for name, one in inspect.signature(target("router", router)).parameters.items()}
    settings = yaml.safe_load((CONF / "router" / f"{router}.yaml").read_text())
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    own = {name: value for name, value in settings.items() if name in defaults and not isinstance(value, dict)}
    assert {name: plain[name] for name in own} == own
    assert not {name for name in settings if not name.startswith("_")} - {"defaults"} - set(defaults)
