"""Finished runs, read from their ``results.json`` alone: no answers, no model, no torch."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from see_lightning.config.former_names import current_value, with_current_fields, with_current_names
from see_lightning.config.identity import numbers, with_values
from see_lightning.config.schema import learned_tasks
from see_lightning.errors import Refusal
from see_lightning.files.run_files import read_bytes, read_content, well_shaped
from see_lightning.files.text import visible
from see_lightning.reporting.report.sections import FORMULAS

RESULTS = "results.json"
ROUTED, TO_BASE = "routing accuracy", "base share"  # shares, from 0 to 1
METRICS = (*FORMULAS, ROUTED)
MLFLOW_ARTIFACTS = "mlartifacts"  # a folder beside the runs, with copies of their reports for MLflow


@dataclass(frozen=True)
class Run:
    """The data of a run for comparisons and figures.

    Args:
        path: of its ``results.json``.
        content: sha256 of that file.
        order, method, ratio, model, seed, tasks, matrix, command: as in the file.
        metrics: those of `METRICS` that the file has, and those of variants and foreign queries; None if not measured.
        key: the run's own, eight hex digits.
        numbers: sha256 of the settings that can change a number, without the seed.
        settings: that can change a number, by dotted name.
        made: commit, dtype, versions and threads, which should not change a number, but may.
        storage: bytes kept after each task, by part; empty if the file has none.
    """

    path: Path
    content: str
    order: str
    method: str
    ratio: float | None
    model: str
    seed: int
    tasks: tuple[str, ...]
    matrix: tuple[tuple[float | None, ...], ...]
    metrics: Mapping[str, float | None]
    command: str
    key: str
    numbers: str
    settings: Mapping[str, Any]
    made: Mapping[str, str]
    storage: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def is_at_home(self) -> bool:
        """Whether the file lies in a run's directory, unlike a copy."""
        return _key(self.path, self.seed) is not None


def find_runs(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Search folders for runs; a run's own folder is not searched further.

    Args:
        paths: folders to search, or ``results.json`` files.

    Returns:
        Each ``results.json`` once, and the directories of unfinished runs.

    Raises:
        Refusal: a path does not exist or cannot be read.
    """
    finished: dict[str, Path] = {}
    unfinished: list[Path] = []
    searched: set[str] = set()
    for path in paths:
        if path.is_file():
            finished.setdefault(os.path.realpath(path), path)
            continue
        if not path.is_dir():
            raise Refusal(f"there is no {path}; give folders that hold runs, or their results.json.")
        for folder, below, files in os.walk(path, onerror=_unreadable, followlinks=True):
            real = os.path.realpath(folder)
            is_new = real not in searched
            searched.add(real)
            if is_new and "results.json" in files:
                file = Path(folder, "results.json")
                finished.setdefault(os.path.realpath(file), file)
            elif is_new and "ledger.json" in files:
                unfinished.append(Path(folder))
            elif is_new:
                below[:] = sorted(set(below) - {MLFLOW_ARTIFACTS})
                continue
            below.clear()
    return list(finished.values()), unfinished


def read_run(path: Path) -> Run:
    """Read a run from its ``results.json``.

    Raises:
        Refusal: it cannot be read, or is not of a run's form.
    """
    content = read_bytes(path, RESULTS)
    results = read_results(path, content)
    with well_shaped(path):
        return _run(path, results, hashlib.sha256(content).hexdigest())


def read_results(path: Path, content: bytes | None = None) -> dict[str, Any]:
    """The content of a ``results.json``, checked for consistency.

    Args:
        path: of the file.
        content: its bytes, if they were read before.

    Raises:
        Refusal: it cannot be read, or is not of a run's form.
    """
    read = read_content(read_bytes(path, RESULTS) if content is None else content, path, RESULTS)
    results = with_current_fields(read)
    with well_shaped(path):
        tasks = results["tasks"]
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError("its tasks are none, or not all of different names")
        if any(visible(task) != task for task in tasks):
            raise ValueError(f"a task of it has control characters in its name: {', '.join(tasks)}")
        if [len(row) for row in results["matrix"]] != [len(tasks)] * len(tasks):
            raise ValueError(f"its matrix does not belong to the tasks {', '.join(tasks)}")
    return results


def _unreadable(error: OSError) -> NoReturn:
    raise Refusal(f"{error.filename} cannot be read: {error.strerror}.") from error


def _run(path: Path, results: Mapping[str, Any], content: str) -> Run:
    kept = with_values(numbers(results["config"]), results.get("contents", {}).get("in_key", {}))
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    tasks = results["tasks"]
    matrix = tuple(tuple(map(_score, row)) for row in results["matrix"])
    if tasks != list(learned_tasks(kept["order"])):
        raise ValueError(f"its matrix does not belong to the tasks {', '.join(kept['order']['tasks'])}")
    metrics = {name: _score(results["metrics"][name]) for name in FORMULAS}
    if routing := results.get("routing"):
        metrics[ROUTED] = _score(routing["accuracy"])
    commits = results.get("commits") or [results["commit"]]
    metrics |= {name: _score(value) for name, value in _reworded(results)}
    made = {"commit": " then ".join(_short_commit(commit) for commit in commits), "dtype": results.get("dtype")}
    return Run(
        path=path,
        content=content,
        order=visible(results["order"]),
        method=visible(str(current_value("method", results["method"]))),
        ratio=_score(results["ratio"]),
        model=visible(results["model"]),
        seed=int(results["seed"]),
        tasks=tuple(tasks),
        matrix=matrix,
        metrics=metrics,
        command=visible(results["command"]),
        key=_key(path, results["seed"]) or digest[:8],
        numbers=digest,
        settings={
            name: visible(value) if isinstance(value, str) else value
            for name, value in dotted(with_current_names(kept))
        },
        made={name: visible(str(value)) for name, value in (made | _versions(results)).items() if value is not None},
        storage={str(part): list(map(int, sizes)) for part, sizes in results.get("storage", {}).items()},
    )


def _reworded(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a run's queries in other words and foreign queries measured, by the name of the metric."""
    variants, ood = results.get("variants") or {}, results.get("ood") or {}
    for name in variants.get("asked", ()):
        yield f"AR {visible(name)}", variants[name].get("AR")
        yield f"{ROUTED} {visible(name)}", variants[name].get("routing_accuracy")
    for name, section in (("ood", ood), ("ood input_only", ood.get("input_only") or {})):
        if "base_share" in section:  # the number of tasks tells sets of foreign tasks apart
            yield f"{TO_BASE} {name} of {len(section.get('per_task', ()))} tasks", section["base_share"]


def _versions(results: Mapping[str, Any]) -> dict[str, str]:
    """Versions of installed packages; of a run with several starts, those of all starts."""
    starts = [start["versions"] for start in results.get("starts") or ()] or [results["versions"]]
    return {name: " then ".join(dict.fromkeys(str(one[name]) for one in starts if name in one)) for name in starts[-1]}


def dotted(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its dotted name."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from dotted(part, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _key(path: Path, seed: int) -> str | None:
    """The key in the path of a run's directory, ``<key>/seed=<n>``; None if the file lies elsewhere."""
    *_, key, folder, _ = ("", "", *Path(os.path.abspath(path)).parts)
    return key if folder == f"seed={seed}" and re.fullmatch("[0-9a-f]{8}", key) else None


def _score(value: Any) -> float | None:
    if value is None or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    raise ValueError(f"a number or null is wanted, not {value!r}")


def _short_commit(commit: str | None) -> str:
    """The first eight digits of a commit, which are enough to find it."""
    return "none" if commit is None else re.sub(r"(?<=^[0-9a-f]{8})[0-9a-f]+", "", commit)
