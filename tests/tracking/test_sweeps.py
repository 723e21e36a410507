"""The sweeps of W&B: each combination is a run of ours, and the real client carries a sweep out."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from see_lightning.config.explain import known_keys
from see_lightning.config.identity import run_key
from see_lightning.config.instantiate import bind
from see_lightning.config.search_path import CONF, register
from see_lightning.config.validation import validate
from tests.runs import toy
from tests.tracking.conftest import TWO_TASKS, promised

ROOT = CONF.parent
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


def combinations(sweep):
    """The overrides of every job that a sweep may start."""
    choices = {
        key: item["values"] if "values" in item else [item["value"]] for key, item in sweep["parameters"].items()
    }
    for values in itertools.product(*choices.values()):
        yield [f"{key}={value}" for key, value in zip(choices, values, strict=True)]


def test_there_are_sweeps():
    assert {path.stem for path in SWEEPS} >= {"ratio", "methods", "orders", "adapter"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_names_settings_that_there_are_and_each_combination_is_another_run(path):
    sweep = yaml.safe_load(path.read_text())
    register()
    assert set(sweep["parameters"]) <= set(known_keys())
    runs = set()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for overrides in combinations(sweep):
            cfg = compose("run", overrides=overrides)
            validate(cfg)
            bind(cfg.method, "setup")
            assert cfg.logger._target_ == "see_lightning.engine.tracking.WandbTracker"
            runs.add((run_key(cfg), cfg.seed))
    assert len(runs) == len(list(combinations(sweep)))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_starts_our_command_seeks_a_metric_of_ours_and_says_how_it_is_started(path):
    text = path.read_text()
    sweep = yaml.safe_load(text)
    assert text.startswith(f"# wandb sweep sweeps/{path.name}, then: wandb agent ")
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["command"] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    assert sweep["metric"]["name"] in promised()


@pytest.mark.nightly
def test_the_real_client_sweeps_two_jobs_from_end_to_end(data, backend, tmp_path):
    settings = dict(setting.split("=", 1) for setting in (*toy.SETTINGS, *TWO_TASKS))
    settings |= {"benchmark.reader.folder": str(data), "paths.runs": str(tmp_path / "runs"), "logger": "wandb"}
    parameters = {key: {"value": value} for key, value in settings.items()} | {"ratio": {"values": [0.0, 0.5]}}
    sweep = yaml.safe_load((ROOT / "sweeps" / "ratio.yaml").read_text()) | {"parameters": parameters}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WANDB_DIR": str(tmp_path),
        "WANDB_AGENT_REPORT_INTERVAL": "1",
        "WANDB_SILENT": "false",
    }

    def client(*words):
        command = [sys.executable, "-m", "wandb", *words]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=180
        )

    made = client("sweep", "-e", "someone", "-p", "see_lightning", str(tmp_path / "sweep.yaml"))
    assert made.returncode == 0, made.stderr
    started = re.search(r"wandb agent (\S+)", made.stdout + made.stderr)
    assert started, made.stderr
    agent = client("agent", *shlex.split(started[1]))
    assert agent.returncode == 0, agent.stderr

    found = {toy.read_results(path.parent)["ratio"]: path for path in tmp_path.glob("runs/**/results.json")}
    assert set(found) == {0.0, 0.5}, agent.stderr
    assert len(backend.runs) == 2
    for run in backend.runs.values():
        results = toy.read_results(found[run.config["ratio"]].parent)
        assert run.exits == [0]
        assert run.about["sweep"] == "abcdefgh"
        assert run.about["displayName"] == "/".join(found[run.config["ratio"]].parts[-5:-1])
        assert run.config["method.ratio"] == run.config["ratio"], "resolved, beside what the sweep gave"
        assert run.summary["continual/AR"] == results["metrics"]["AR"]
        assert set(run.artifacts.values()) == {"report"}
