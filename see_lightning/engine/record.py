"""Commit, package versions and threads of a run, recorded at every start that differs from the one before."""

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import see_lightning

PACKAGES = ("torch", "lightning", "transformers", "peft", "hydra-core", "torchmetrics", "tokenizers")
ELSEWHERE = (
    "GIT_DIR",
    "GIT_COMMON_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
)  # set within a git hook
CODE = ("see_lightning", "conf", "run.py", "pyproject.toml")


def commit() -> str | None:
    """The commit of the running code; None outside a checkout, or for the reason that ``why_no_commit`` returns.

    For changed code, ``-dirty.`` and a digest of the changed files follow. A copy that was made for a cluster job has its
    commit in a file ``COMMIT``.
    """
    root = _root()
    if (root / "COMMIT").exists():
        return (root / "COMMIT").read_text(encoding="utf-8").strip()
    # An installed package may lie within the checkout of another project.
    if _git(root, "ls-files", "--error-unmatch", "see_lightning/__init__.py")[0] is None:
        return None
    head, changed = _git(root, "rev-parse", "HEAD")[0], _changed(root)
    return None if head is None or changed is None else head.strip() + changed


def why_no_commit() -> str | None:
    """The reason why the commit of a checkout cannot be read; None if it can, or if there is no checkout."""
    root = _root()
    return _git(root, "rev-parse", "HEAD")[1] if (root / ".git").exists() else None


def _root() -> Path:
    return Path(see_lightning.__file__).parent.parent


def _changed(root: Path) -> str | None:
    """The suffix for code that differs from its commit: a digest of changed and untracked files; empty without any."""
    tracked, _ = _git(
        root, "diff", "HEAD", "--name-only", "--no-renames", "--no-ext-diff", "--relative", "-z", "--", *CODE
    )
    new, _ = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *CODE)
    if tracked is None or new is None:
        return None
    digest, names = hashlib.sha256(), sorted(filter(None, {*tracked.split("\0"), *new.split("\0")}))
    for name in names:
        path = root / name
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "gone"
        digest.update(f"{name}\0{content}\0".encode(errors="surrogateescape"))
    return f"-dirty.{digest.hexdigest()[:8]}" if names else ""


def _git(root: Path, *command: str) -> tuple[str | None, str | None]:
    """The output of a git command that only reads, and None; or None, and the reason of its failure.

    No hook or program that the checkout configures is run. ``root`` may belong to another user, as on a shared disk, since
    its code is run anyway; for folders above it git's own check of the owner applies.
    """
    if shutil.which("git") is None:
        return None, "git is not installed"
    settings = [
        f"safe.directory={root}",
        "core.fsmonitor=false",
        "core.hooksPath=/dev/null",
        "diff.autoRefreshIndex=false",
    ]
    options = [part for setting in settings for part in ("-c", setting)]
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *options, *command],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env=environment,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"git: {error}"
    if done.returncode:
        return None, next(iter(done.stderr.strip().splitlines()), f"git ended with {done.returncode}")
    return done.stdout, None


@cache
def _installed() -> dict[str, str]:
    return {package: version(package) for package in PACKAGES}


def versions() -> dict[str, str]:
    """Versions of this package, Python and its main dependencies, and the number of threads."""
    return {
        "see_lightning": see_lightning.__version__,
        "python": platform.python_version(),
        **_installed(),
        "threads": str(torch.get_num_threads()),  # results depend on it as on a version
    }


def starts_of(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The recorded starts of a run; runs of earlier versions have recorded only the first."""
    return about.get("starts") or [
        {
            "command": about["command"],
            "commit": about["commits"][-1],
            "versions": about["versions"],
            "dtype": about["dtype"],
        }
    ]


def differing(last: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences between two starts of a run, in words; empty if only the command differs.

    >>> differing({"commit": "a", "versions": {"torch": "1"}}, {"commit": "a", "versions": {"torch": "2"}, "ranks": 1})
    'torch 2; the last start had torch 1'
    """
    then, here = ({**start["versions"], **_plain(start)} for start in (last, now))
    names = [name for name in here if name in then and here[name] != then[name]]
    lists = [", ".join(f"{name} {of[name]}" for name in names) for of in (here, then)]
    return f"{lists[0]}; the last start had {lists[1]}" if names else ""


def _plain(start: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in start.items() if name not in ("command", "versions")}
