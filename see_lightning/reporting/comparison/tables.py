"""A comparison as CSV: a line for each group, and a line for each run."""

from typing import Any

from see_lightning.reporting.comparison.groups import Comparison, Group, setting
from see_lightning.reporting.spreadsheets import csv_text


def groups_csv(comparison: Comparison) -> str:
    """A line for each group, with ``_mean``, ``_std`` and ``_n`` of each metric; empty if not measured."""
    names = [f"{name.replace(' ', '_')}_{part}" for name in comparison.measured for part in ("mean", "std", "n")]
    lines: list[list[Any]] = [
        ["order", "method", "ratio", *comparison.settings, *comparison.further, "model", "key", "runs", "seeds", *names]
    ]
    for group in comparison.groups:
        values: list[Any] = []
        for value in map(group.metrics.get, comparison.measured):
            values += [value.mean, value.deviation, value.n] if value else [None, None, 0]
        seeds = " ".join(str(run.seed) for run in group.runs)
        lines.append([*_origin(group, comparison), len(group.runs), seeds, *values])
    return csv_text(lines)


def runs_csv(comparison: Comparison) -> str:
    """A line for each run: its metrics, and in ``score_<task>`` its scores after the last task; empty if not measured."""
    tasks = list(dict.fromkeys(task for group in comparison.groups for task in group.first.tasks))
    names = [name.replace(" ", "_") for name in comparison.measured]
    head = ["order", "method", "ratio", *comparison.settings, *comparison.further, "model", "key", "seed", *names]
    lines: list[list[Any]] = [[*head, *(f"score_{task}" for task in tasks), "commit", "path", "command"]]
    for group in comparison.groups:
        for run in group.runs:
            last = dict(zip(run.tasks, run.matrix[-1], strict=True))
            values = [*map(run.metrics.get, comparison.measured), *map(last.get, tasks)]
            origin = [*_origin(group, comparison), run.seed]
            lines.append([*origin, *values, run.made["commit"], run.path, run.command])
    return csv_text(lines)


def _origin(group: Group, comparison: Comparison) -> list[Any]:
    run = group.first
    settings = (setting(run, name) for name in (*comparison.settings, *comparison.further))
    return [run.order, run.method, run.ratio, *settings, run.model, run.key]
