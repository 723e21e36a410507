"""The mean score over the storage, after each task."""

import statistics
from collections.abc import Sequence
from typing import Any

from see_lightning.evaluation.transfer import mean
from see_lightning.reporting.colours import styles
from see_lightning.reporting.comparison.groups import Group, MeanStd, spread
from see_lightning.reporting.figures.figure_data import ORIGIN, FigureData, finish, one_plot, origin
from see_lightning.reporting.plots import logarithmic
from see_lightning.reporting.runs import Run
from see_lightning.reporting.spreadsheets import csv_text

WIDE = 20  # ratio of the largest size to the smallest from which the axis of sizes is logarithmic


def has_capacity(sheet: FigureData) -> bool:
    """Whether the results of any run have its storage."""
    return any(run.storage for group in sheet.groups for run in group.runs)


def stored_parts(run: Run) -> list[str]:
    """The names of the parts of a run's storage; the pool is the reference size, not a part."""
    return [part for part in run.storage if part != "pool"]


def grown(group: Group) -> list[tuple[int, MeanStd, MeanStd, dict[str, float]]]:
    """After each stage: number of tasks learned, their mean score, the storage in MiB, and that of each part.

    Over the seeds whose results have the storage; empty without any.
    """
    runs, found = [run for run in group.runs if run.storage], []
    stages = min((len(run.storage["weights"]) for run in runs), default=0)
    tasks = len(group.first.tasks)
    for stage in range(stages):
        # A joint method learns all tasks in one stage; its scores are in the last row.
        learned = stage + 1 if stages == tasks else tasks
        parts = {
            part: statistics.fmean(run.storage[part][stage] / 2**20 for run in runs) for part in stored_parts(runs[0])
        }
        kept = spread([sum(run.storage[part][stage] for part in stored_parts(run)) / 2**20 for run in runs])
        score = spread([mean(run.matrix[learned - 1][:learned]) for run in runs])
        if score and kept:
            found.append((learned, score, kept, parts))
    return found


def capacity_csv(sheet: FigureData) -> str:
    """A line for each group and number of tasks learned."""
    every = dict.fromkeys(part for group in sheet.groups for run in group.runs for part in stored_parts(run))
    lines: list[Sequence[Any]] = [[*ORIGIN, "learned", "score", "mib", *(f"{part}_mib" for part in every)]]
    for group, label in zip(sheet.groups, sheet.labels, strict=True):
        for learned, score, kept, parts in grown(group):
            sizes = [None if part not in parts else round(parts[part], 6) for part in every]
            lines.append([*origin(sheet, group, label), learned, round(score.mean, 4), round(kept.mean, 6), *sizes])
    return csv_text(lines)


def capacity_svg(sheet: FigureData) -> str:
    """The mean score of the tasks learned so far over the storage: a point for each task, the last one larger."""
    figure, axes = one_plot(sheet, 8)
    drawn = styles([group.first.method for group in sheet.groups])
    sizes: list[float] = []
    for style, group, label in zip(drawn, sheet.groups, sheet.labels, strict=True):
        points = [(kept.mean, score.mean) for _, score, kept, _ in grown(group)]
        if points:
            x, y = zip(*points, strict=True)
            sizes += x
            look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "linestyle": style.line}
            axes.plot(x, y, markersize=4, linewidth=1.4, label=label, **look)
            axes.plot(x[-1:], y[-1:], markersize=9, **look)
    axes.set(ylabel="mean score of the tasks learned so far", ylim=(0, 100))
    if sizes and max(sizes) > WIDE * min(sizes) > 0:  # the small ones would lie on each other
        axes.set_xscale("log")
        logarithmic(axes, "x")
    return finish(figure, axes, sheet, "capacity", "MiB kept after each task; the last one large")
