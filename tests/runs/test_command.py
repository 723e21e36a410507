"""The commands as people type them, each in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import see_lightning
from see_lightning.evaluation.protocols import PROTOCOLS
from see_lightning.reporting.report.sections import matrix_csv
from tests.runs import toy

ROOT = Path(see_lightning.__file__).parent.parent


@pytest.fixture(scope="module")
def place(base, tmp_path_factory):
    """A checkout in a folder with a blank in its name, and the toy's data in another."""
    folder = tmp_path_factory.mktemp("a place") / "my check out"
    folder.mkdir()
    for name in ("see_lightning", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", folder)
    shutil.copytree(toy.data_in(base), folder / "my data")
    return folder


def shell(place, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, *words], cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def test_a_run_from_its_command_to_its_report_and_to_a_query(place):
    command = (
        "run.py",
        "debug=fast",
        *(setting for setting in toy.SETTINGS if not setting.startswith(("optim.epochs", "seed"))),
        "benchmark.reader.folder='my data'",
        "order.tasks=[sea]",
        "paths.runs='my runs'",
    )
    first = shell(place, *command)
    assert first.returncode == 0, first.stderr
    path = Path(first.stdout.splitlines()[-1])
    assert path.name == "results.json"
    assert path.parts[:3] == ("my runs", "jsonl", "see")
    directory = (place / path).parent
    results = toy.read_results(directory)
    assert results["command"].startswith("python run.py debug=fast order=jsonl")
    assert "paths.runs='\"'\"'my runs'\"'\"'" in results["command"], "as a shell would take it again"
    assert results["counts"]["train_examples"] == [8]
    assert (directory / "matrix.csv").read_text() == matrix_csv(results)
    assert "<svg" in (directory / "report.html").read_text(encoding="utf-8")
    assert "Warning" not in first.stderr
    assert "Traceback" not in first.stderr

    written = {file: file.stat().st_mtime_ns for file in directory.rglob("*")}
    again = shell(place, *command)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert {file: file.stat().st_mtime_ns for file in directory.rglob("*")} == written
    assert again.stderr == ""  # a model that is loaded and trained is told of there

    other = shell(place, *command, "protocol=olora")
    assert other.returncode == 0, other.stderr
    assert other.stdout.splitlines()[-1] == str(path)
    assert "predict_exact_match" in other.stdout
    assert "predict_exact_match" not in first.stdout
    assert other.stdout.count(PROTOCOLS["olora"]["predict_exact_match"]) == 1
    assert f"{results['protocols']['olora']['metrics']['predict_exact_match']:.2f}" in other.stdout
    assert {file: file.stat().st_mtime_ns for file in directory.rglob("*")} == written
    assert other.stderr == ""

    asked = shell(place, "-m", "see_lightning.ask", str(path.parent), "seasea111?", "What is this?")
    assert asked.returncode == 0, asked.stderr
    who = [line for line in asked.stdout.splitlines() if line.startswith("  by ")]
    assert len(who) == 2
    assert all(line.startswith(("  by sea (sea pos)", "  by base (sea ne")) for line in who)
