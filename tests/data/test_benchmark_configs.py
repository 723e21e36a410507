"""The YAML of benchmarks and orders agrees with what the readers can read."""

import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from see_lightning.data import Reader
from see_lightning.data.hub import HubReader
from see_lightning.data.pocket import _TASKS as POCKET_TASKS
from see_lightning.tasks.task import Benchmark

CONF = Path(__file__).parents[2] / "conf"
STANDARD = {
    "standard_4_order1": "dbpedia amazon yahoo agnews",
    "standard_4_order2": "dbpedia amazon agnews yahoo",
    "standard_4_order3": "yahoo amazon agnews dbpedia",
    "long_15_order4": "MNLI CB WiC COPA QQP BoolQA RTE IMDB yelp amazon SST-2 dbpedia agnews MultiRC yahoo",
    "long_15_order5": "MultiRC BoolQA WiC MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yelp amazon yahoo",
    "long_15_order6": "yelp amazon MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yahoo MultiRC BoolQA WiC",
}
# Super-NaturalInstructions by the numbers of its tasks.
NUMBERED = {
    "superni_15_order1": "1572 363 1290 181 002 1510 639 1729 073 1590 748 511 591 1687 875",
    "superni_15_order2": "748 073 1590 639 1572 1687 591 363 1510 1729 181 511 002 1290 875",
    "citb_19_order1": "848 611 565 1714 574 1590 1730 294 576 1600 1500 639 1729 1501 1713 766 1603 1384 573",
    "citb_19_order2": "848 1603 1714 565 611 1590 1600 639 294 1500 1384 1713 1501 576 574 1729 766 573 1730",
    "citb_19_order3": "1713 576 1384 294 573 611 1729 1600 574 1590 848 639 766 1501 565 1603 1730 1500 1714",
    "citb_38_order1": "864 967 1553 1549 639 766 636 1501 459 1203 1500 611 347 574 598 379 1384 1360 1714 576 082 1590 1729"
    " 565 1730 1603 301 298 306 1600 1427 848 1713 1151 927 294 1607 573",
    "citb_38_order2": "1203 967 347 1501 379 576 639 766 1384 1729 294 1730 1603 1714 1151 298 1600 1607 082 848 1549 636 565"
    " 574 598 459 927 1553 1427 301 864 573 1713 1500 1590 1360 611 306",
    "citb_38_order3": "598 379 301 1151 639 1590 1553 1500 864 565 967 636 927 1384 1729 1603 1360 1501 082 1714 306 1203"
    " 573 459 1607 1713 1549 347 576 1427 294 766 611 1600 848 298 1730 574",
}
ORDERS = {
    "pocket_5": ("pocket", ["news", "sentiment", "simplify", "french", "words"]),
    "superni_5": ("superni", ["qa", "qg", "sa", "sum", "trans"]),
    "superni_5_order2": ("superni", ["trans", "sa", "qa", "sum", "qg"]),
    "superni_5_order3": ("superni", ["sum", "qg", "trans", "qa", "sa"]),
    "superni_10": ("superni", ["qa", "qg", "sa", "sum", "trans", "dsg", "expl", "para", "pe", "pos"]),
    "trace_order1": (
        "trace_500",
        ["C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten"],
    ),
    "trace_order2": (
        "trace_500",
        ["NumGLUE-cm", "NumGLUE-ds", "FOMC", "20Minuten", "C-STANCE", "Py150", "MeetingBank", "ScienceQA"],
    ),
    **{order: ("cl_benchmark", tasks.split()) for order, tasks in STANDARD.items()},
    **{
        order: ("long_sequence", STANDARD[alike].replace("QA", "Q").replace("-", "").lower().split())
        for order, alike in {"long_sequence_order3": "long_15_order4", "long_sequence_order4": "long_15_order6"}.items()
    },
}
YOURS = {"jsonl", "hub"}
COMBINED = {"stream_24"}
SCORES = {
    "rouge_l",
    "rouge_l_google",
    "rouge_l_trace",
    "exact_match",
    "exact_match_olora",
    "accuracy",
    "accuracy_trace",
}
SCORES |= {"first_char_trace", "edit_similarity", "sari_trace", "exact_match_sapt"}


def composed(order: str, *overrides: str, conf: Path = CONF) -> DictConfig:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose(overrides=[f"+order={order}", "+paths.data=/data", *overrides])


def test_every_order_on_disk_is_known_here() -> None:
    assert {path.stem for path in CONF.glob("order/*.yaml")} == {*ORDERS, *NUMBERED, *YOURS, *COMBINED}


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_brings_its_benchmark_with_a_score_for_each_task(order: str) -> None:
    config = composed(order)
    benchmark, tasks = ORDERS[order]
    assert (config.order.name, config.benchmark.name) == (order, benchmark)
    assert list(config.order.tasks) == tasks
    assert set(tasks) <= set(config.benchmark.tasks)
    assert settings(config) <= SCORES


@pytest.mark.parametrize("order", NUMBERED)
def test_an_order_of_numbered_tasks_is_the_published_one(order: str) -> None:
    config = composed(order)
    assert config.order.name == order
    family = order.rpartition("_")[0]
    assert config.benchmark.name == {"citb_19": "citb"}.get(family, family)
    assert " ".join(task.split("_")[0].removeprefix("task") for task in config.order.tasks) == NUMBERED[order]
    assert set(config.order.tasks) <= set(config.benchmark.tasks)
    assert settings(config) == {"rouge_l_sapt" if order.startswith("superni") else "rouge_l_google"}


def test_the_stream_is_the_random_order_that_its_file_tells_and_every_task_is_of_one_source() -> None:
    config = composed("stream_24")
    tasks = list(config.order.tasks)
    assert tasks == random.Random(0).sample(sorted(tasks), 24)
    assert "random.Random(0).sample(sorted(tasks), 24)" in (CONF / "order" / "stream_24.yaml").read_text()
    owners = [[name for name, one in config.benchmark.sources.items() if task in one.tasks] for task in tasks]
    assert Counter(name for (name,) in owners) == {
        "natural_instructions": 3,
        "superni": 10,
        "pocket": 4,
        "trace": 3,
        "cl_benchmark": 4,
    }


def settings(config: DictConfig) -> set[str]:
    """The scores of an order's tasks, as a run would ask for them."""
    node = OmegaConf.to_container(config.benchmark, resolve=True)
    assert isinstance(node, dict)
    benchmark = Benchmark(**{**{k: v for k, v in node.items() if k != "_target_"}, "reader": None})
    return {benchmark.settings(task)[0] for task in config.order.tasks}


@pytest.mark.parametrize("size", [500, 1000, 5000])
def test_trace_is_read_from_the_folder_of_its_size(size: int) -> None:
    config = composed("trace_order1", f"benchmark=trace_{size}")
    assert (config.benchmark.name, config.order.name) == (f"trace_{size}", "trace_order1")
    assert str(instantiate(config.benchmark.reader).folder) == f"/data/trace_{size}"
    assert settings(config) == {"accuracy_trace", "rouge_l_trace", "edit_similarity", "first_char_trace", "sari_trace"}


# What the benchmarks' authors generate, as their code has it.
PROTOCOL = {"superni": 512, "superni_15": 50, "trace_500": 512, "trace_1000": 512, "trace_5000": 512, "cl_benchmark": 50,
            "long_sequence": 50, "citb": 128, "citb_38": 128, "pocket": None, "jsonl": None, "hub": None,
            "combined": None, "stream_24": None}  # fmt: skip


@pytest.mark.parametrize("path", sorted(CONF.glob("benchmark/*.yaml")), ids=lambda path: path.stem)
def test_a_benchmark_says_how_long_an_answer_its_authors_generate_or_that_it_has_no_protocol(path: Path) -> None:
    config = composed("superni_5", f"benchmark={path.stem}").benchmark
    assert (config.max_new_tokens, config.get("protocol_max_new_tokens")) == ("training", PROTOCOL[path.stem])


def test_a_published_experiment_generates_what_its_paper_does_and_a_small_one_does_not() -> None:
    rules = {
        path.stem: OmegaConf.select(OmegaConf.load(path), "benchmark.max_new_tokens")
        for path in CONF.glob("experiment/*.yaml")
    }
    of_protocol = {name for name, rule in rules.items() if rule == "protocol"}
    assert of_protocol == {"ssr_superni_10", "standard_4", "superni_15", "trace"}
    assert set(rules.values()) == {None, "protocol"}
    assert OmegaConf.load(CONF / "experiment" / "long_15.yaml").defaults[0] == "standard_4"


def test_a_benchmark_of_data_sets_on_the_hub_needs_them_named() -> None:
    assert OmegaConf.missing_keys(composed("hub")) == {"order.tasks", "benchmark.reader.datasets"}


def test_the_benchmark_that_the_documentation_shows_composes_and_makes_its_reader(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(.*?)```", (CONF.parent / "docs" / "data.md").read_text(encoding="utf-8"), re.DOTALL)
    assert shown
    conf = shutil.copytree(CONF, tmp_path / "conf")
    (conf / "benchmark" / "mine.yaml").write_text(shown[1], encoding="utf-8")
    config = composed("hub", "benchmark=mine", "order.tasks=[news,entailment]", conf=conf)
    assert settings(config) == {"accuracy"}
    reader = HubReader(OmegaConf.to_container(config.benchmark.reader.datasets))
    assert reader.tasks() == ["news", "entailment"]
    assert (reader.sources["news"].test, reader.sources["entailment"].test) == ("test", "validation")
    assert reader.sources["news"].labels == {0: "world", 1: "sport", 2: "business", 3: "technology"}


def test_the_documentation_names_every_benchmark_and_every_order() -> None:
    text = (CONF.parent / "docs" / "data.md").read_text(encoding="utf-8")
    for path in CONF.glob("benchmark/*.yaml"):
        assert f"`{path.stem}`" in text
    families = {re.sub(r"_?order\d$", "", path.stem) for path in CONF.glob("order/*.yaml")}
    assert not [family for family in families if f"`{family}" not in text]


@pytest.mark.parametrize("path", sorted(CONF.glob("benchmark/*.yaml")), ids=lambda path: path.stem)
def test_a_benchmark_has_version_licence_and_citation(path: Path) -> None:
    config = composed("superni_5", f"benchmark={path.stem}").benchmark
    assert config.name == path.stem
    assert all(str(config[key]).strip() for key in ("version", "licence", "citation"))


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
