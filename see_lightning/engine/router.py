"""The router of a run: its class, the check that it fits the method, its learning, and the files of its state."""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from see_lightning.adapters.files import read_tensors, write_tensors
from see_lightning.config.identity import method_name
from see_lightning.config.instantiate import ROUTER_GIVEN, bind, instantiate, target_of
from see_lightning.config.schema import RunConfig
from see_lightning.config.search_path import options
from see_lightning.data.example import Example
from see_lightning.engine.origin import has_expert
from see_lightning.errors import ConfigError
from see_lightning.files.text import read_text
from see_lightning.methods.lookup import method_class
from see_lightning.methods.method import Method
from see_lightning.routing.router import NEEDS_PROMPT, Router
from see_lightning.tasks.held_back import HELD_BACK, hold_back
from see_lightning.tasks.task import Task
from see_lightning.tasks.variants import definition, in_wordings

FILE = "router.safetensors"  # beside an expert's weights: the router's state for its task


def router_class(cfg: DictConfig) -> type[Router]:
    """The class of a run's router; the method's own one if the run names none."""
    return method_class(cfg.method).router_for(cfg.method) if cfg.router is None else _router(cfg.router)


def _router(node: Any) -> type[Router]:
    router = target_of(node)
    if not (isinstance(router, type) and issubclass(router, Router)):
        raise ConfigError(f"router._target_={node['_target_']} is no router; give a subclass of Router.")
    return router


def router_name(cfg: DictConfig) -> str:
    """The name of a run's router: that of its class's module."""
    return router_class(cfg).__module__.rpartition(".")[2]


def decides_everything(cfg: DictConfig) -> bool:
    """Whether every expert decides on every test query, from which other orders and thresholds are studied.

    Not under a router that asks few experts for a query: further decisions would cost more than the routing itself.
    """
    router = router_class(cfg)
    return method_class(cfg.method).traits.learns_refusals and not router.asks_few


def takes(method: type[Method], router: type[Router]) -> bool:
    """Whether a router can choose among a method's experts; a method without experts takes its own alone."""
    if not method.traits.has_experts:
        return router is method.traits.router
    return bool(router.needs) and all(getattr(method.traits, name) for name in router.needs)


def settle_router(cfg: DictConfig, config: RunConfig) -> None:
    """Refuse a router that does not fit the method, and remove one that is the method's own, so that the run key has none.

    Args:
        cfg: composed; changed in place.
        config: its typed form; changed in place.

    Raises:
        ConfigError: the router does not fit the method or its experts, or an argument is unknown.
    """
    if cfg.router is None:
        return
    method = method_class(cfg.method)
    for part, node in routers_in(cfg.router):
        bind(node, *ROUTER_GIVEN)
        if not takes(method, part):
            allowed = "|".join(allowed_routers(method))
            cure = f"it takes router={allowed}." if allowed else "it weighs its adapters itself: leave router out."
            raise ConfigError(f"method={method_name(cfg)} cannot be routed by router={router_name(cfg)}; {cure}")
        if part.needs_prompt and config.adapter.activated:
            raise ConfigError(NEEDS_PROMPT.format(router_name(cfg)))
    router = router_class(cfg)
    defaults = {name: one.default for name, one in inspect.signature(router).parameters.items()}
    if router is method.router_for(cfg.method):  # its settings are the method's
        defaults |= {name: value for name, value in cfg.method.items() if name in defaults}
    plain = all(value == defaults[str(name)] for name, value in cfg.router.items() if not str(name).startswith("_"))
    if plain:
        for name, value in method.arguments_for(router).items():
            cfg.method[name] = config.method[name] = value
        if router is method.router_for(cfg.method):
            cfg.router = config.router = None


def allowed_routers(method: type[Method]) -> list[str]:
    """The options of ``router=`` that fit a method; an option whose class cannot be imported is left out."""
    names = []
    for path in options("router"):
        try:
            router: type[Router] = target_of(yaml.safe_load(read_text(path)))
        except (ConfigError, TypeError, KeyError, yaml.YAMLError):
            continue
        if takes(method, router):
            names.append(path.stem)
    return names


def check_prompts_suffice(cfg: DictConfig, tasks: Sequence[Task]) -> None:
    """Refuse tasks with too few training prompts for the run's router, before anything is trained.

    Raises:
        ConfigError: a task has too few different prompts, or a setting of the router does not fit the tasks.
    """
    if cfg.router is None:
        return  # a method checks its own router
    routers = list(routers_in(cfg.router))
    for router, node in routers:
        router.check_tasks(node, [task.name for task in tasks])
    fewest = max(router.fewest for router, _ in routers)
    holds_out = any(router.holds_out or node.get("target_recall") for router, node in routers)
    for task in tasks:
        learned, held_out = hold_back(task, holds_out=holds_out)
        if _different(learned) < fewest or (holds_out and not held_out):
            aside = (
                f", and {1 / HELD_BACK:.0%} of them are held out for its threshold"
                if holds_out and not task.held_out
                else ""
            )
            raise ConfigError(
                f"router={router_name(cfg)} knows a task by its prompts, of which it needs {fewest} different ones for"
                f" training{aside}; {task.name} has {_different(task.train)}. Give it more (train_size), or leave it out of"
                f" order.tasks."
            )


def routers_in(node: Any) -> Iterator[tuple[type[Router], Any]]:
    """The class and the settings of a router, and of each router that its settings name."""
    yield _router(node), node
    for part in node.values():
        if isinstance(part, DictConfig) and "_target_" in part:
            yield from routers_in(part)


def _different(examples: Sequence[Example]) -> int:
    """Number of different prompts."""
    return len({example.whole_prompt for example in examples})


def build_router(cfg: DictConfig, method: Method) -> None:
    """Build the router that a run names, if it names one, and give it to the method."""
    if cfg.router is not None:
        method.chosen_router = instantiate(cfg.router, method=method)


def learn_route(method: Method, task: Task) -> None:
    """Train a run's router on a task whose expert has just been trained; a method trains its own router itself."""
    router = method.chosen_router
    if not router or method.expert_of(task.name) != task.name:  # a reused expert has learned another task
        return
    common = definition((*task.train, *task.held_out))

    def prompts(examples: Sequence[Example]) -> list[list[int]]:
        worded = in_wordings(examples, common, router.wordings)
        return [method.template.prompt_ids(example) for example in worded]

    learned, held_out = hold_back(task, holds_out=router.holds_out)
    router.learn(task.name, prompts(learned))
    if held_out:
        router.hold_out(task.name, prompts(held_out))


def storage_of(method: Method) -> dict[str, int]:
    """Bytes that method and router store for all tasks so far, by part as in ``Method.storage``."""
    kept = method.chosen_router.nbytes() if method.chosen_router else 0
    return {**method.storage(), **({"router": kept} if kept else {})}


def save_expert(method: Method, task: str, folder: Path) -> None:
    """Write the files of a task's expert, and of the router's state for the task."""
    method.save(task, folder)
    if method.chosen_router and (tensors := method.chosen_router.state(task)):
        write_tensors(tensors, folder / FILE)


def restore_expert(method: Method, task: str, folder: Path) -> None:
    """Read the files that ``save_expert`` wrote; the router's is missing until this run has ended the task."""
    if not has_expert(method, task, folder):
        return
    method.restore(task, folder)
    if method.chosen_router and (folder / FILE).exists():
        device = method.pool.device()
        tensors = {name: tensor.to(device) for name, tensor in read_tensors(folder / FILE).items()}
        method.chosen_router.load_state(task, tensors)
