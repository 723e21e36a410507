"""Benchmarks made of several others: the settings of their sources become those of one benchmark.

    sources: {superni: {...}, pocket: {...}}  ->  reader: {readers: {superni: ..., pocket: ...}}
                                                  tasks: {qa: ..., news: ...}, paraphrases: {qa: ..., news: ...}

So a run, its key and its results know one benchmark, in which each task has its own score, limits and origin.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from see_lightning.errors import ConfigError

#: Settings of a source that become those of each of its tasks, unless the task has its own.
OF_TASKS = ("max_new_tokens", "protocol_max_new_tokens", "licence", "citation")


def combine_sources(cfg: DictConfig) -> None:
    """Replace a benchmark that has ``sources`` by one benchmark with their tasks; also for ``ood``.

    Args:
        cfg: composed; changed in place.

    Raises:
        ConfigError: a combined benchmark has no source, or a task of the order is in two of them.
    """
    places = [("benchmark", cfg), *((name, cfg.ood.sources) for name in (cfg.ood.sources if cfg.get("ood") else ()))]
    for name, parent in places:
        if "sources" in parent[name]:
            plain: Any = OmegaConf.to_container(parent[name], resolve=False)
            parent[name] = combined(plain, cfg.order.tasks if name == "benchmark" else ())


def combined(benchmark: Mapping[str, Any], tasks: Any = ()) -> dict[str, Any]:
    """The settings of one benchmark with the tasks of its sources.

    Args:
        benchmark: plain settings with ``sources``; its own ``tasks`` and ``paraphrases`` come before those of the sources.
        tasks: names that must be in one source alone.

    Raises:
        ConfigError: there is no source, or a task is in two of them.

    >>> pocket = {"version": "2", "reader": {}, "tasks": {"news": {"score": "accuracy"}}, "licence": "MIT"}
    >>> benchmark = combined({"version": "1", "reader": {}, "sources": {"pocket": pocket}})
    >>> benchmark["tasks"], benchmark["version"]
    ({'news': {'licence': 'MIT', 'score': 'accuracy'}}, '1 of pocket 2')
    """
    sources = {
        name: combined(source) if "sources" in source else source for name, source in benchmark["sources"].items()
    }
    if not sources:
        raise ConfigError(
            f"benchmark {benchmark.get('name')} combines no sources; write a file conf/benchmark/NAME.yaml that names some"
            f" (docs/data.md)."
        )
    for task in tasks:
        owners = [name for name, source in sources.items() if task in source["tasks"]]
        if len(owners) > 1:
            raise ConfigError(
                f"the sources {' and '.join(owners)} of benchmark {benchmark['name']} both have a task {task!r}; leave one of"
                f" them out."
            )
    readers = {name: source["reader"] for name, source in sources.items()}
    of_tasks = {name: one for source in sources.values() for name, one in _tasks(source).items()}
    paraphrases = {name: one for source in sources.values() for name, one in (source.get("paraphrases") or {}).items()}
    versions = [f"{name} {source['version']}" for name, source in sources.items()]
    return {
        **{name: value for name, value in benchmark.items() if name != "sources"},
        "version": f"{benchmark['version']} of {', '.join(versions)}",
        "reader": {**benchmark["reader"], "readers": readers},
        "tasks": of_tasks
        | {name: {**of_tasks.get(name, {}), **(own or {})} for name, own in (benchmark.get("tasks") or {}).items()},
        "paraphrases": paraphrases | (benchmark.get("paraphrases") or {}),
    }


def _tasks(source: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each task of a source, with those that hold for all of its tasks."""
    common = {name: source[name] for name in OF_TASKS if source.get(name) not in (None, "training")}
    default = {name: value for name, value in (source.get("default") or {}).items() if value is not None}
    return {name: {**common, **default, **(own or {})} for name, own in source["tasks"].items()}
