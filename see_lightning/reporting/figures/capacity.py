"""The mean score over the storage, after each task."""

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from see_lightning.evaluation.transfer import mean
from see_lightning.reporting.colours import Style, styles
from see_lightning.reporting.comparison.groups import Group, MeanStd, spread
from see_lightning.reporting.figures.figure_data import MANY, ORIGIN, FigureData, finish, heading, one_plot, origin
from see_lightning.reporting.plots import INK, LINE, frame, logarithmic
from see_lightning.reporting.runs import Run
from see_lightning.reporting.spreadsheets import csv_text
from see_lightning.reporting.svg import standalone_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    stages = min((len(run.storage["pool"]) for run in runs), default=0)
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
    """The mean score of the tasks learned so far over the storage: a point for each task, the last one larger.

    Lines of one plot, or of more than ``MANY`` groups a small plot for each, the best last score first.
    """
    looks = styles([group.first.method for group in sheet.groups])
    lines = [
        Line(label, style, *zip(*points, strict=True))
        for style, group, label in zip(looks, sheet.groups, sheet.labels, strict=True)
        if (points := [(kept.mean, score.mean) for _, score, kept, _ in grown(group)])
    ]
    return _one_plot(sheet, lines) if len(lines) <= MANY else _plots(sheet, lines)


@dataclass(frozen=True)
class Line:
    """The points of a group: storage in MiB, and the mean score in 0..100."""

    label: str
    style: Style
    sizes: tuple[float, ...]
    scores: tuple[float, ...]

    def draw(self, axes: "Axes") -> None:
        """A point for each task, the last one larger."""
        look: dict[str, Any] = {
            "color": self.style.colour, "marker": self.style.marker, "linestyle": self.style.line
        }  # fmt: skip
        axes.plot(self.sizes, self.scores, markersize=4, linewidth=1.4, label=self.label, **look)
        axes.plot(self.sizes[-1:], self.scores[-1:], markersize=9, **look)


def _one_plot(sheet: FigureData, lines: Sequence[Line]) -> str:
    figure, axes = one_plot(sheet, 8)
    for line in lines:
        line.draw(axes)
    axes.set(ylabel="mean score of the tasks learned so far", ylim=(0, 100))
    _fit_sizes(axes, lines)
    return finish(figure, axes, sheet, "capacity", "MiB kept after each task; the last one large")


def _plots(sheet: FigureData, lines: Sequence[Line]) -> str:
    """A plot for each group with the lines of all others in grey behind it."""
    from matplotlib.figure import Figure

    columns = 5
    rows = -(-len(lines) // columns)
    figure = Figure(figsize=(2.1 * columns, 0.9 + 1.5 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True).flat)
    for axes, line in zip(panels, sorted(lines, key=lambda line: -line.scores[-1]), strict=False):
        frame(axes)
        for other in lines:
            axes.plot(other.sizes, other.scores, color=LINE, linewidth=0.8, zorder=1)
        line.draw(axes)
        axes.set_title("\n".join(textwrap.wrap(line.label, 30)), fontsize=8, color=INK, loc="left")
        axes.tick_params(labelsize=8)
    _fit_sizes(panels[0], lines)
    for axes in panels[len(lines) :]:
        axes.set_visible(False)
    for axes in panels[len(lines) - columns : len(lines)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    title = heading(sheet)
    grey: dict[str, Any] = {"fontsize": 8, "color": "#555555", "horizontalalignment": "left"}
    figure.suptitle(title, x=0.01, **grey | {"fontsize": 9, "color": INK})
    note = (
        "mean score of the tasks learned so far over the MiB kept after each task; the last one large; grey: the others"
    )
    figure.supxlabel(note, x=0.01, **grey)
    return standalone_svg(figure, f"{sheet.name}-capacity", f"capacity of {title}")


def _fit_sizes(axes: "Axes", lines: Sequence[Line]) -> None:
    """Make the axis of sizes logarithmic where the small ones would lie on each other."""
    sizes = [size for line in lines for size in line.sizes]
    if sizes and max(sizes) > WIDE * min(sizes) > 0:
        axes.set_xscale("log")
        logarithmic(axes, "x")
