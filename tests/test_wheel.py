"""The installed package does what the clone does, with one's own configurations beside its own."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from see_lightning.config.search_path import CONF
from tests.runs.toy import write_tasks

ROOT = CONF.parent
PARTS = ("see_lightning", "conf", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "run.py")


def call(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel of the source distribution in it, far from the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        (source / part).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / part, source / part)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    call(sys.executable, "-c", build, str(folder), cwd=source)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(unpacked), cwd=folder)
    (wheel,) = folder.glob("*.whl")
    call(*pip, "install", "--no-deps", "--target", str(folder / "installed"), str(wheel), cwd=folder)
    return folder / "installed"


def test_the_wheel_has_every_configuration_template_and_data_file(installed):
    for path in (*CONF.rglob("*.yaml"), *(ROOT / "see_lightning").rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            base = CONF.parent if path.is_relative_to(CONF) else ROOT / "see_lightning"
            assert (installed / "see_lightning" / path.relative_to(base)).exists(), path
    assert (installed / "see_lightning" / "py.typed").exists()


@pytest.mark.nightly
def test_an_installed_package_runs_with_options_of_ones_own_and_every_command_knows_the_run(installed, tmp_path):
    write_tasks(tmp_path / "mine")
    for name, text in {
        "benchmark/mine.yaml": (CONF / "benchmark" / "jsonl.yaml").read_text(),
        "order/mine.yaml": (CONF / "order" / "jsonl.yaml").read_text().replace("jsonl", "mine"),
        "optim/quick.yaml": (CONF / "optim" / "small.yaml").read_text(),
        "optim/small.yaml": "epochs: 77\n",
    }.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = str(installed / "bin" / "see-lightning")
    here = {"cwd": tmp_path, "PYTHONPATH": str(installed)}
    settings = ("order=mine", "order.tasks=[sky]", "benchmark.reader.folder=mine", "model=tiny", "optim=quick")
    done = call(command, "run", *settings, "optim.epochs=1", "benchmark.default.max_new_tokens=4", **here)
    path = Path(done.stdout.splitlines()[-1])
    results = json.loads((tmp_path / path).read_text())
    assert (results["order"], results["tasks"], results["config"]["optim"]["epochs"]) == ("mine", ["sky"], 1)
    assert results["command"].startswith("see-lightning run order=mine")
    assert results["commit"] is None, "that of a checkout in which somebody installs it is not ours"
    assert "note: " in done.stderr
    assert "conf has optim/small.yaml, as see_lightning has; its own are read." in done.stderr
    assert (tmp_path / path).with_name("report.html").exists()
    assert "finished" in call(command, "runs", **here).stdout
    assert "by " in call(command, "ask", "runs/latest", "sky?", "--max-new-tokens", "2", **here).stdout
    assert call(command, "compare", "runs", **here).stdout.endswith("runs/comparison.html\n")
    assert "sky" in call(command, "data", "check", "mine", "benchmark.reader.folder=mine", **here).stdout
