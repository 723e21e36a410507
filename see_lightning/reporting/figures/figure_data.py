"""The data of a figure: its groups and their labels; and the axes, title and legend that figures share."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from see_lightning.reporting.colours import FIRST
from see_lightning.reporting.comparison.groups import Comparison, Group, setting, typed
from see_lightning.reporting.plots import INK, frame, legend
from see_lightning.reporting.runs import Run
from see_lightning.reporting.svg import standalone_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The first columns of every CSV file: the group of a line.
ORIGIN = ("order", "method", "ratio", "label", "key")
#: More groups than this are not told apart as bars or lines of one plot.
MANY = 12


@dataclass(frozen=True)
class FigureData:
    """The groups of one figure: of one order and the same tasks.

    Args:
        name: for its files.
        order, tasks: of all groups.
        groups: in the order of their bars.
        labels: of the groups.
    """

    name: str
    order: str
    tasks: tuple[str, ...]
    groups: tuple[Group, ...]
    labels: tuple[str, ...]


def sheets(comparison: Comparison) -> list[FigureData]:
    """The data of each figure: one for each order, or several, numbered, if runs of one order have different tasks."""

    def same(group: Group) -> tuple[str, tuple[str, ...]]:
        return group.first.order, group.first.tasks

    found: dict[str, FigureData] = {}
    for (order, tasks), some in groupby(sorted(comparison.groups, key=same), key=same):
        stem = re.sub(r"[^\w.-]", "_", order)
        name, number = stem, 1
        while name in found:
            number += 1
            name = f"{stem}_{number}"
        groups = sorted(
            some, key=lambda group: _rank(group.first)
        )  # stable: groups of a method stay in the comparison's order
        found[name] = FigureData(name, order, tasks, tuple(groups), tuple(_labels(groups)))
    return list(found.values())


def _rank(run: Run) -> tuple[int, str]:
    """The place of a method: those of `FIRST` in their order, then all others by name."""
    known = list(FIRST)
    return (known.index(run.method), "") if run.method in known else (len(known), run.method)


def _labels(groups: Sequence[Group]) -> list[str]:
    """Labels: method and ratio; for equal ones also the overrides in which they differ, or for one command the settings."""
    labels = []
    for group in groups:
        namesakes = [other for other in groups if _short(other.first) == _short(group.first)]
        shared = set.intersection(*(set(_typed(other)) for other in namesakes))
        same = [other.first for other in namesakes if _typed(other) == _typed(group)]
        # The tasks of a figure's groups are the same.
        settings = [
            f"{name} {setting(group.first, name)}" for name in group.apart
            if name != "order.tasks" and len({str(setting(run, name)) for run in same}) > 1
        ]  # fmt: skip
        own = shlex.join(word for word in _typed(group) if word not in shared)
        difference = own if len(same) == 1 else ", ".join(settings)
        labels.append(", ".join(filter(None, [_short(group.first), difference if len(namesakes) > 1 else ""])))
    return [
        f"{label}, {group.first.key}" if labels.count(label) > 1 else label
        for label, group in zip(labels, groups, strict=True)
    ]


def _short(run: Run) -> str:
    return run.method if run.ratio is None else f"{run.method} {100 * run.ratio:g} %"


def _typed(group: Group) -> list[str]:
    return [word for word in typed(group) if not word.startswith(("method=", "ratio="))]


def origin(sheet: FigureData, group: Group, label: str) -> list[Any]:
    """The values of the columns `ORIGIN`."""
    return [sheet.order, group.first.method, group.first.ratio, label, group.first.key]


def one_plot(sheet: FigureData, places: int) -> "tuple[Figure, Axes]":
    """A figure with one plot, whose width fits the groups side by side."""
    from matplotlib.figure import Figure

    count = len(sheet.groups)
    figure = Figure(figsize=(min(24, max(6.4, 1 + places * max(0.7, 0.3 + 0.14 * count))), 4.4), layout="constrained")
    axes = figure.subplots()
    frame(axes)
    return figure, axes


def heading(sheet: FigureData) -> str:
    """The order, the models and the number of seeds of a figure."""
    seeds = sorted({len(group.runs) for group in sheet.groups})
    models = ", ".join(dict.fromkeys(group.first.model for group in sheet.groups))
    return (
        f"{sheet.order} · {models} · {' to '.join(map(str, {seeds[0]: 0, seeds[-1]: 0}))} seed{'s' * (seeds[-1] > 1)}"
    )


def finish(figure: "Figure", axes: "Axes", sheet: FigureData, kind: str, note: str) -> str:
    """Add title and note to a figure, a legend if its data have labels, and return it as a standalone file."""
    title = heading(sheet)
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel(note, fontsize=8, color="#555555", loc="left")
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))  # the boxes of all tasks have the same label
    shown = list(dict.fromkeys(labels))
    if shown:
        legend(figure, [first[label] for label in shown], shown)
    return standalone_svg(figure, f"{sheet.name}-{kind}", f"{kind} of {title}")
