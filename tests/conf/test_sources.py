"""A benchmark made of several: each task keeps the settings of its own, and the run key tells what matters."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from see_lightning.config.identity import numbers_config, run_key
from see_lightning.config.instantiate import instantiate
from see_lightning.config.search_path import CONF, register
from see_lightning.config.sources import combine_sources, combined
from see_lightning.config.trust import allowed, refuse_code
from see_lightning.config.validation import validate
from see_lightning.errors import ConfigError
from see_lightning.tasks.task import Benchmark

SOURCES = {
    "natural_instructions": "superni_15",
    "superni": "superni",
    "pocket": "pocket",
    "trace": "trace_500",
    "cl_benchmark": "cl_benchmark",
}


@cache
def composed_once(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("run", overrides=list(overrides))


@pytest.fixture
def stream(monkeypatch) -> Callable[..., DictConfig]:
    """The configuration of a run on the stream of 24 tasks, with further settings by dotted name."""
    monkeypatch.setenv("SEE_DATA", "/data")

    def make(settings: dict[str, Any] | None = None) -> DictConfig:
        cfg = deepcopy(composed_once("order=stream_24"))
        for name, value in (settings or {}).items():
            OmegaConf.update(cfg, name, value, force_add=True)
        combine_sources(cfg)
        return cfg

    return make


@cache
def alone(name: str) -> Benchmark:
    """A benchmark as a run on it alone has it."""
    return instantiate(composed_once("order=superni_5", f"benchmark={SOURCES[name]}").benchmark)


def test_every_task_keeps_score_limit_origin_and_paraphrases_of_its_benchmark(stream):
    cfg = stream()
    validate(cfg)
    together: Benchmark = instantiate(cfg.benchmark)
    for task in cfg.order.tasks:
        (own,) = (alone(name) for name in SOURCES if task in alone(name).tasks)
        assert together.settings(task) == (
            own.settings(task) if task != "ScienceQA" else ("first_char_trace", "number", 16)
        )
        assert together.paraphrases.get(task) == own.paraphrases.get(task)
        for name in ("licence", "citation"):
            assert together.tasks[task][name] == own.tasks[task].get(name, getattr(own, name))


def test_the_protocol_is_that_of_each_tasks_authors(stream):
    everywhere = instantiate(stream({"benchmark.max_new_tokens": "protocol"}).benchmark)
    of_one = instantiate(stream({"benchmark.sources.superni.max_new_tokens": "protocol"}).benchmark)
    for name, task in (("superni", "qa"), ("cl_benchmark", "agnews"), ("trace", "Py150")):
        limit = alone(name).protocol_max_new_tokens
        assert everywhere.settings(task)[1:] == ("protocol", limit)
        assert of_one.settings(task)[1:] == (("protocol", limit) if name == "superni" else ("training", None))


def test_a_protocol_is_its_number_in_the_run_key(stream):
    of_one = {"order.tasks": ["qa"]}
    rule, number = ({**of_one, "benchmark.sources.superni.max_new_tokens": value} for value in ("protocol", 512))
    assert run_key(stream(rule)) == run_key(stream(number)) != run_key(stream(of_one))
    everywhere = numbers_config(stream({"benchmark.max_new_tokens": "protocol"}))["benchmark"]["tasks"]
    assert (everywhere["qa"]["max_new_tokens"], everywhere["agnews"]["max_new_tokens"]) == (512, 50)


def test_the_readers_are_those_of_the_sources(stream):
    reader = instantiate(stream().benchmark).reader
    assert {name: str(getattr(one, "folder", "")) for name, one in reader.readers.items()} == {
        "natural_instructions": "/data/natural_instructions",
        "superni": "/data/ssr_ni_split",
        "pocket": "",
        "trace": "/data/trace_500",
        "cl_benchmark": "/data/cl_benchmark",
    }
    mine = stream({"benchmark.sources.superni.reader.folder": "/mine"})
    assert mine.benchmark.reader.readers.superni.folder == "/mine"


def test_the_key_has_the_versions_of_the_sources_and_neither_their_place_nor_their_licences(stream, monkeypatch):
    key = run_key(stream())
    for name, value in (
        ("superni.version", "9"),
        ("superni.tasks.qa.score", "accuracy"),
        ("cl_benchmark.reader.task_name", True),
    ):
        assert run_key(stream({f"benchmark.sources.{name}": value})) != key, name
    for name, value in (
        ("superni.licence", "mine"),
        ("natural_instructions.reader.published_at", "elsewhere"),
        ("superni.protocol_max_new_tokens", 9),
        ("pocket.tasks.sentiment.score", "rouge_l"),
    ):
        assert run_key(stream({f"benchmark.sources.{name}": value})) == key, name
    assert run_key(stream({"paths.data": "/elsewhere"})) == key
    assert set(numbers_config(stream())["benchmark"]["tasks"]) == set(stream().order.tasks)


def test_settings_of_the_combination_come_before_those_of_a_source(stream):
    tasks = stream({"benchmark.tasks.qa": {"score": "accuracy", "max_new_tokens": 7}}).benchmark.tasks
    assert (tasks.qa.score, tasks.qa.max_new_tokens, tasks.qg.score) == ("accuracy", 7, "rouge_l")
    assert tasks.qa.licence == tasks.qg.licence


def source(*tasks: str) -> dict[str, object]:
    return {"version": "1", "reader": {"_target_": "x"}, "tasks": {task: {"score": "accuracy"} for task in tasks}}


def test_a_task_of_the_order_in_two_sources_is_refused_and_another_is_not():
    benchmark = {
        "name": "mine",
        "version": "1",
        "reader": {},
        "sources": {"a": source("x", "y"), "b": source("x", "z")},
    }
    with pytest.raises(ConfigError, match="^the sources a and b of benchmark mine both have a task 'x'; leave one"):
        combined(benchmark, ["z", "x"])
    assert set(combined(benchmark, ["z"])["tasks"]) == {"x", "y", "z"}


def test_a_combination_of_nothing_is_refused_with_what_to_write():
    cfg = deepcopy(composed_once("order=superni_5", "benchmark=combined"))
    with pytest.raises(ConfigError, match=r"^benchmark combined combines no sources; write a file conf/benchmark/NAME"):
        combine_sources(cfg)


def test_a_wrong_setting_of_a_source_is_refused_by_name(stream):
    cfg = stream({"benchmark.sources.superni.reader.foldr": "/x"})
    with pytest.raises(ConfigError, match="SsrReader takes no 'foldr'. Did you mean 'folder'"):
        instantiate(cfg.benchmark)


def test_foreign_queries_may_come_from_a_combination():
    inner = {
        "name": "both",
        "version": "1",
        "reader": {"_target_": "y"},
        "sources": {"a": source("p"), "b": source("q")},
    }
    cfg = deepcopy(composed_once("order=pocket_5", "ood=trace_500"))
    OmegaConf.update(cfg, "ood.sources.all", inner, force_add=True)
    combine_sources(cfg)
    assert cfg.ood.sources["all"].reader.readers.a == {"_target_": "x"}
    assert set(cfg.ood.sources["all"].tasks) == {"p", "q"}


def test_a_readers_class_may_stand_where_it_is_combined_and_another_may_not(stream):
    settings = OmegaConf.to_container(stream(), resolve=True)
    refuse_code(Path("config.yaml"), settings)
    settings["benchmark"]["reader"]["readers"]["pocket"]["_target_"] = "os.system"
    with pytest.raises(
        ConfigError, match="names os.system as its benchmark.reader, which is not part of see_lightning"
    ):
        refuse_code(Path("config.yaml"), settings)
    assert "see_lightning.data.combined.CombinedReader" in allowed()["benchmark.reader"]
