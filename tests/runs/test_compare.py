"""Finished runs are compared as people type it: without torch, and with the numbers that the runs themselves hold."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import see_lightning
from tests.runs import toy

ROOT = Path(see_lightning.__file__).parents[1]


def shell(folder: Path, *words: str, module: str = "compare") -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """The command in a process of its own, and the modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"see_lightning.{module}", *words],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"},
    )  # fmt: skip
    found = (re.match(r"import time: +\S+ \| +\S+ \| +(\S+)", line) for line in done.stderr.splitlines())
    return done, {match[1] for match in found if match}


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """Two methods with two seeds each, and a run that is not finished."""
    folder = tmp_path_factory.mktemp("compare")
    found = {
        (method, seed): toy.run(
            toy.compose(toy.data_in(base), folder / "runs", f"method={method}", f"seed={seed}", "optim.epochs=2")
        ).directory
        for method in ("see", "seqft")
        for seed in (1, 2)
    }
    started = folder / "runs/jsonl/see/00000000/seed=0"
    started.mkdir(parents=True)
    (started / "ledger.json").write_text("{}")
    return folder, found


def test_runs_of_two_seeds_become_a_row_with_mean_and_deviation_and_no_torch(runs):
    folder, found = runs
    done, imported = shell(folder, "runs")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "runs/comparison.html"
    assert "note: not finished, so not counted: 1 (runs/jsonl/see/00000000/seed=0)" in done.stdout
    assert "see_lightning.reporting.comparison" in imported
    assert not {name.split(".")[0] for name in imported} & {"torch", "lightning", "transformers", "peft"}
    rows = list(csv.DictReader((folder / "runs" / "comparison.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["method"], row["seeds"]) for row in rows] == [("see", "1 2"), ("seqft", "1 2")]
    for row in rows:
        directories = [found[row["method"], seed] for seed in (1, 2)]
        assert row["key"] == directories[0].parent.name, "the key leads to the run"
        first, second = (json.loads((directory / "results.json").read_text()) for directory in directories)
        for name in ("AR", "FWT", "BWT", "forgetting"):
            a, b = first["metrics"][name], second["metrics"][name]
            assert float(row[f"{name}_mean"]) == pytest.approx((a + b) / 2)
            assert float(row[f"{name}_std"]) == pytest.approx(abs(a - b) / math.sqrt(2))
        mean = (first["metrics"]["AR"] + second["metrics"]["AR"]) / 2
        assert re.search(rf"{row['method']} +{mean:.2f} ± .* 2 +{row['key']}", done.stdout)
        if row["method"] == "see":
            shares = [content["routing"]["accuracy"] for content in (first, second)]
            assert float(row["routing_accuracy_mean"]) == pytest.approx(sum(shares) / 2)
    assert rows[1]["routing_accuracy_mean"] == ""
    lines = list(csv.DictReader((folder / "runs" / "runs.csv").read_text(encoding="utf-8").splitlines()))
    for line in lines:
        last = toy.read_results((folder / line["path"]).parent)["matrix"][-1]
        assert [float(line[f"score_{task}"]) for task in toy.TASKS] == last
    page = (folder / "runs" / "comparison.html").read_text(encoding="utf-8")
    assert page.count("<svg ") == 2
    for directory in found.values():
        assert f'href="{directory.relative_to(folder / "runs").as_posix().replace("=", "%3D")}/report.html"' in page


def test_what_cannot_be_compared_is_refused_in_a_line(runs):
    folder, _ = runs
    done, imported = shell(folder, "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert told == ["there is no nowhere; give folders that hold runs, or their results.json."]
    assert "torch" not in imported


def test_a_carried_copy_of_a_real_run_has_its_key(runs):
    folder, found = runs
    copy = folder / "copy.json"
    copy.write_bytes((found["see", 1] / "results.json").read_bytes())
    done, _ = shell(folder, "copy.json", "--out", "elsewhere")
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((folder / "elsewhere" / "comparison.csv").read_text(encoding="utf-8").splitlines())
    assert row["key"] == found["see", 1].parent.name


def test_figures_of_real_runs_take_no_torch(runs):
    folder, found = runs
    done, imported = shell(folder, "runs", "--out", "drawn", module="figures")
    assert done.returncode == 0, done.stderr
    kinds = [f"drawn/jsonl_{kind}.{form}" for kind in ("tasks", "capacity") for form in ("svg", "csv")]
    assert done.stdout.splitlines() == kinds
    assert not {name.split(".")[0] for name in imported} & {"torch", "lightning", "transformers", "peft"}
    rows = list(csv.DictReader((folder / "drawn" / "jsonl_tasks.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["label"] for row in rows] == ["seqft"] * 4 + ["see 50 %"] * 4
    last = [toy.read_results(found["see", seed])["matrix"][-1] for seed in (1, 2)]
    assert [float(row["score_mean"]) for row in rows[4:7]] == pytest.approx(
        [sum(pair) / 2 for pair in zip(*last, strict=True)]
    )
