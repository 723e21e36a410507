"""Which code, packages and threads made a run: noted at every start at which they differ from those of the last one."""

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
ELSEWHERE = ("GIT_DIR", "GIT_COMMON_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY")  # as within a hook
CODE = ("see_lightning", "conf", "run.py", "pyproject.toml")


def commit() -> str | None:
    """The commit of the code that runs; None outside a checkout, or where ``why_no_commit`` says why.

    If the code was changed since, ``-dirty.`` and a digest of the changed files follow. A copy that a cluster job was
    submitted with says in its file ``COMMIT`` what it is a copy of.
    """
    root = _root()
    if (root / "COMMIT").exists():
        return (root / "COMMIT").read_text(encoding="utf-8").strip()
    # An installed package may lie in somebody's own checkout, whose commit says nothing of it.
    if _git(root, "ls-files", "--error-unmatch", "see_lightning/__init__.py")[0] is None:
        return None
    head, changed = _git(root, "rev-parse", "HEAD")[0], _changed(root)
    return None if head is None or changed is None else head.strip() + changed


def why_no_commit() -> str | None:
    """Why the commit of a checkout is not known; None where it is, or where there is no checkout."""
    root = _root()
    return _git(root, "rev-parse", "HEAD")[1] if (root / ".git").exists() else None


def _root() -> Path:
    return Path(see_lightning.__file__).parent.parent


def _changed(root: Path) -> str | None:
    """What a commit lacks of the code that runs: a digest of the files that differ from it, or that it does not know."""
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
    """What git says of a checkout, or None and why; it only reads, and runs nothing that the checkout configures.

    The checkout may belong to another user, as on a shared disk: its code is run anyway. One further up may be anybody's,
    so that for those git's own rule stays in force.
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
    """What was installed."""
    return {
        "see_lightning": see_lightning.__version__,
        "python": platform.python_version(),
        **_installed(),
        "threads": str(torch.get_num_threads()),  # as much part of the numbers as a version
    }


def starts_of(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The starts of a run as its ledger has them; of a run of an earlier version what it noted of its first one."""
    return about.get("starts") or [
        {
            "command": about["command"],
            "commit": about["commits"][-1],
            "versions": about["versions"],
            "dtype": about["dtype"],
        }
    ]


def differing(last: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What two starts of a run differ in, in words; empty if it is nothing but the command.

    >>> differing({"commit": "a", "versions": {"torch": "1"}}, {"commit": "a", "versions": {"torch": "2"}, "ranks": 1})
    'torch 2; the last start had torch 1'
    """
    then, here = ({**start["versions"], **_plain(start)} for start in (last, now))
    names = [name for name in here if name in then and here[name] != then[name]]
    told = [", ".join(f"{name} {of[name]}" for name in names) for of in (here, then)]
    return f"{told[0]}; the last start had {told[1]}" if names else ""


def _plain(start: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in start.items() if name not in ("command", "versions")}
