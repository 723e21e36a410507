"""The files that the pages show are put into a folder, and run as a reader of the page would run them."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from see_lightning.config.search_path import CONF
from tests.runs import toy

ROOT = CONF.parent


def write_files(page: str, folder) -> list[str]:
    """Write every file of a page, named in the line before its block."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    files = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return list(files)


def call(folder, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "see_lightning", *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_method_of_the_page_runs_and_is_asked(tmp_path):
    assert write_files("add_a_method.md", tmp_path) == ["anchor_method.py", "conf/method/anchor.yaml"]
    toy.write_tasks(tmp_path / "data")
    settings = [one for one in toy.SETTINGS if not one.startswith(("order.", "data.", "ratio", "indicators"))]
    settings += ["order.tasks=[sky,sea]", "benchmark.reader.folder=data", "adapter.dropout=0"]
    scores = {}
    for strength in (0, 1000):
        printed = call(tmp_path, "run", *settings, "method=anchor", f"method.strength={strength}")
        results = tmp_path / printed.splitlines()[-1]
        scores[strength] = json.loads(results.read_text(encoding="utf-8"))["matrix"]
    assert scores[0] != scores[1000], "the penalty acts"
    assert call(tmp_path, "ask", str(results.parent), "skysky101?", "--trust", "anchor_method.Anchor")


@pytest.mark.nightly
def test_the_router_of_the_page_routes_experts_that_another_run_trained_and_is_asked(tmp_path):
    assert write_files("add_a_router.md", tmp_path) == ["nearest_router.py", "conf/router/nearest.yaml"]
    toy.write_tasks(tmp_path / "data")
    settings = [one for one in toy.SETTINGS if not one.startswith(("order.", "data.", "ratio", "indicators"))]
    settings += ["order.tasks=[sky,sea]", "benchmark.reader.folder=data", "method=stl"]
    told = call(tmp_path, "run", *settings).splitlines()[-1]
    routed = call(tmp_path, "run", *settings, "router=nearest").splitlines()[-1]
    results = json.loads((tmp_path / routed).read_text(encoding="utf-8"))
    assert results["grown_from"] == str((tmp_path / told).parent.relative_to(tmp_path))
    assert (results["router"], results["routing"]["accuracy"]) == ("nearest_router", 1.0)
    run_dir = str((tmp_path / routed).parent)
    assert call(tmp_path, "ask", run_dir, "skysky101?", "--trust", "nearest_router.Nearest")


def test_the_merge_rule_of_the_page_merges_experts_and_its_run_is_asked(tmp_path):
    assert write_files("merging.md", tmp_path) == ["median_rule.py", "conf/rule/median.yaml"]
    toy.write_tasks(tmp_path / "data")
    settings = [one for one in toy.SETTINGS if not one.startswith(("order.", "data.", "ratio", "indicators"))]
    settings += ["order.tasks=[sky,sea]", "benchmark.reader.folder=data", "method=merge"]
    results = tmp_path / call(tmp_path, "run", *settings, "rule=median").splitlines()[-1]
    config = json.loads(results.read_text(encoding="utf-8"))["config"]
    assert config["rule"] == {"_target_": "median_rule.Median", "scale": 1}
    assert call(tmp_path, "ask", str(results.parent), "skysky101?", "--trust", "median_rule.Median")


@pytest.mark.parametrize("page", ["add_a_method.md", "add_a_router.md", "merging.md"])
def test_the_class_is_short(page):
    code = (ROOT / "docs" / page).read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    body = re.sub(r'""".*?"""', "", code, flags=re.DOTALL)
    assert len([line for line in body.splitlines() if line.strip()]) <= 25


def test_the_benchmark_of_the_page_is_checked_and_composes(tmp_path):
    names = write_files("add_a_benchmark.md", tmp_path)
    assert names == ["conf/benchmark/reviews.yaml", "conf/order/reviews_2.yaml"]
    (tmp_path / "reviews").mkdir()
    for task, answer in {"tone": "good", "dish": "soup"}.items():
        for part, numbers in {"train": range(12), "test": range(20, 24)}.items():
            rows = [{"prompt": f"Name the {task}.\n\n{task} {number}", "answer": answer} for number in numbers]
            (tmp_path / "reviews" / f"{task}.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "tone" in call(tmp_path, "data", "check", "reviews", "model=tiny")
    composed = yaml.safe_load(call(tmp_path, "run", "order=reviews_2", "--cfg", "job"))
    assert composed["order"]["tasks"] == ["tone", "dish"]
    assert composed["benchmark"]["tasks"]["tone"]["score"] == "accuracy"


def test_the_conversations_of_the_page_are_checked_and_trained_on(tmp_path):
    names = write_files("your_data.md", tmp_path)
    assert names == ["mydata/guide.train.jsonl", "mydata/guide.test.jsonl"]
    page = (ROOT / "docs" / "your_data.md").read_text(encoding="utf-8")
    checked, trained = (
        shlex.split(line) for line in page.splitlines() if re.fullmatch(r"    .*benchmark\.reader\.train_on=all", line)
    )
    assert (checked[:2], trained[:2]) == (["see-lightning", "data"], ["python", "run.py"])
    rows = [line.split()[:2] for line in call(tmp_path, *checked[1:], "model=tiny").splitlines()]
    assert ["train", "3"] in rows
    settings = [one for one in toy.SETTINGS if not one.startswith(("order", "model.prompt"))]
    results = call(tmp_path, "run", *settings, *trained[2:]).splitlines()[-1]
    assert json.loads((tmp_path / results).read_text(encoding="utf-8"))["counts"]["train_examples"] == [3]
