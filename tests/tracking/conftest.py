"""W&B's client as on a machine where nobody has used it, and toy runs that report to it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from omegaconf import DictConfig

from see_lightning.config.search_path import CONF
from tests.runs import toy
from tests.tracking.standin import Standin

TWO_TASKS = ("order.tasks=[sky,sea]", "optim.epochs=1")


@pytest.fixture(autouse=True)
def client(monkeypatch, tmp_path) -> Iterator[None]:
    """No login, no settings, and no traces outside of the test; the client's own process ends with the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "client"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def backend(monkeypatch) -> Iterator[Standin]:
    """A stand-in for W&B's backend, to which this test is logged in."""
    with Standin() as standin:
        monkeypatch.setenv("WANDB_BASE_URL", standin.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield standin
        wandb.teardown()


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """The toy's data."""
    return toy.write_tasks(tmp_path_factory.mktemp("tracking") / "data")


@pytest.fixture
def composed(data, tmp_path) -> Callable[..., DictConfig]:
    """The toy with two tasks, with these overrides."""
    return lambda *overrides: toy.compose(data, tmp_path / "runs", *TWO_TASKS, *overrides)


def promised() -> set[str]:
    """The names in the table of docs/loggers.md."""
    section = (
        (CONF.parent / "docs/loggers.md").read_text(encoding="utf-8").split("## What is logged\n")[1].split("\n## ")[0]
    )
    return {name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall("`(.*?)`", row)}


def inspected(directory: Path) -> list[list[dict[str, Any]]]:
    """For each offline run that lies in a run directory, oldest first, its records as ``wandb leet inspect`` tells them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    folders = sorted((directory / "wandb").glob("offline-run-*"))
    told = [subprocess.run([*command, str(folder)], capture_output=True, text=True, check=True) for folder in folders]
    return [[json.loads(line) for line in one.stdout.splitlines()] for one in told]


def of_kind(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The contents of the records of one kind, in their order."""
    return [record[kind] for record in records if record["type"] == kind]
