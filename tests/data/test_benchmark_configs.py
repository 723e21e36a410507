"""The YAML of benchmarks and orders agrees with what the readers can read."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from see_lightning.data import Reader
from see_lightning.data.pocket import _TASKS as POCKET_TASKS

CONF = Path(__file__).parents[2] / "conf"
ORDERS = {
    "pocket_5": ("pocket", ["news", "sentiment", "simplify", "french", "words"]),
    "superni_5": ("superni", ["qa", "qg", "sa", "sum", "trans"]),
    "superni_5_order2": ("superni", ["trans", "sa", "qa", "sum", "qg"]),
    "superni_5_order3": ("superni", ["sum", "qg", "trans", "qa", "sa"]),
    "superni_10": ("superni", ["qa", "qg", "sa", "sum", "trans", "dsg", "expl", "para", "pe", "pos"]),
}
SCORES = {"rouge_l", "rouge_l_google", "exact_match", "accuracy"}


def composed(order: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+order={order}", "+paths.data=/data", *overrides])


def test_every_order_on_disk_is_known_here() -> None:
    assert {path.stem for path in CONF.glob("order/*.yaml")} == {*ORDERS, "jsonl"}


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_brings_its_benchmark_with_a_score_for_each_task(order: str) -> None:
    config = composed(order)
    benchmark, tasks = ORDERS[order]
    assert (config.order.name, config.benchmark.name) == (order, benchmark)
    assert list(config.order.tasks) == tasks
    for task in tasks:
        assert config.benchmark.tasks[task].score in SCORES


def test_a_key_of_one_task_and_the_whole_benchmark_can_be_overridden() -> None:
    config = composed("superni_5", "+benchmark.tasks.qa.max_new_tokens=32", "benchmark.tasks.sa.score=accuracy")
    assert config.benchmark.tasks.qa == {"score": "rouge_l", "max_new_tokens": 32}
    assert config.benchmark.tasks.sa == {"score": "accuracy"}
    assert composed("superni_5", "benchmark=jsonl").benchmark.name == "jsonl"


def test_a_users_own_tasks_take_the_default_score_unless_named() -> None:
    overrides = ("benchmark.reader.folder=/mine", "order.tasks=[a,b]", "+benchmark.tasks.a.score=accuracy")
    config = composed("jsonl", *overrides)
    assert config.benchmark.default == {"score": "rouge_l", "max_new_tokens": None}
    assert config.benchmark.tasks == {"a": {"score": "accuracy"}}
    assert list(config.order.tasks) == ["a", "b"]
    assert OmegaConf.missing_keys(composed("jsonl")) == {"order.tasks", "benchmark.reader.folder"}


def test_each_benchmark_makes_its_reader() -> None:
    for order, folder in (("superni_5", "/data/ssr_ni_split"), ("jsonl", "/mine")):
        overrides = ["benchmark.reader.folder=/mine", "order.tasks=[a]"] if order == "jsonl" else []
        reader = instantiate(composed(order, *overrides).benchmark.reader)
        assert str(reader.folder) == folder


def test_the_pocket_benchmark_names_every_task_and_the_packages_it_is_read_from() -> None:
    config = composed("pocket_5").benchmark
    reader: Reader = instantiate(config.reader)
    assert list(config.tasks) == reader.tasks()
    for name, task in config.tasks.items():
        assert task.package == " ".join(POCKET_TASKS[str(name)].packages.values())
        assert task.licence
        assert task.citation
