"""Each layer imports only what stands below it: held by import-linter, which is itself put to the test."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """The contracts of ``folder``'s pyproject on the package that lies in it."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_imports_keep_every_contract():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken." in done.stdout


@pytest.mark.parametrize(
    ("module", "planted", "contract"),
    [
        ("data/split.py", "import see_lightning.tasks.memory", "each layer imports only what stands below it"),
        ("routing/verdicts.py", "import see_lightning.methods.see", "each layer imports only what stands below it"),
        ("evaluation/scores.py", "import see_lightning.engine.ledger", "each layer imports only what stands below it"),
        ("reporting/svg.py", "import torch", "reporting needs neither torch nor methods"),
        ("evaluation/protocols.py", "import see_lightning.adapters.pool", "reporting needs neither torch nor methods"),
        ("config/schema.py", "import torch", "data and configuration start without torch"),
        ("files/writing.py", "import see_lightning.config.schema", "each layer imports only what stands below it"),
        ("frame.py", "import see_lightning.data.split", "each layer imports only what stands below it"),
        ("methods/loss.py", "import omegaconf", "methods know neither configuration files nor trackers"),
    ],
)
def test_a_planted_import_is_reported(tmp_path, module, planted, contract):
    shutil.copytree(ROOT / "see_lightning", tmp_path / "see_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "see_lightning" / module).open("a") as file:
        file.write(f"\n{planted}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{contract} BROKEN" in done.stdout


def test_a_module_that_no_layer_names_is_reported(tmp_path):
    shutil.copytree(ROOT / "see_lightning", tmp_path / "see_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "see_lightning" / "loose.py").touch()
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "see_lightning.loose" in done.stdout
