"""Scores by task after the last one: figure 3 of SEE's paper."""

from collections.abc import Sequence
from typing import Any

from see_lightning.evaluation.transfer import mean
from see_lightning.reporting.colours import styles
from see_lightning.reporting.comparison.groups import Group, MeanStd, spread
from see_lightning.reporting.figures.figure_data import MANY, ORIGIN, FigureData, finish, heading, one_plot, origin
from see_lightning.reporting.plots import INK, name_places
from see_lightning.reporting.spreadsheets import csv_text
from see_lightning.reporting.svg import draw_cells, standalone_svg


def final_scores(group: Group) -> list[MeanStd | None]:
    """The score after the last task, over the seeds: of every task, and their mean."""
    rows = [[*run.matrix[-1], mean(run.matrix[-1])] for run in group.runs]
    return [spread(column) for column in zip(*rows, strict=True)]


def tasks_csv(sheet: FigureData) -> str:
    """A line for each group and task, and one for the mean over tasks, whose ``task`` is empty."""
    lines: list[Sequence[Any]] = [[*ORIGIN, "task", "seeds", "score_mean", "score_std", "score_n"]]
    for group, label in zip(sheet.groups, sheet.labels, strict=True):
        seeds = " ".join(str(run.seed) for run in group.runs)
        for task, score in zip((*sheet.tasks, ""), final_scores(group), strict=True):
            values = [score.mean, score.deviation, score.n] if score else [None, None, 0]
            lines.append([*origin(sheet, group, label), task, seeds, *values])
    return csv_text(lines)


def tasks_svg(sheet: FigureData) -> str:
    """The score of each group on each task and the mean over tasks: bars, or a heat map of more than ``MANY`` groups."""
    return _bars(sheet) if len(sheet.groups) <= MANY else _map(sheet)


def _map(sheet: FigureData) -> str:
    """A row for each group, the best mean above; a cell's shade is its share of the best score in its column."""
    from matplotlib.figure import Figure

    scored = sorted(
        ((label, [score.mean if score else None for score in final_scores(group)]) for label, group in _named(sheet)),
        key=lambda row: (row[1][-1] is None, -(row[1][-1] or 0)),
    )
    rows = [scores for _, scores in scored]
    best = [max((score for score in column if score), default=1) for column in zip(*rows, strict=True)]
    shades = [[None if score is None else score / top for score, top in zip(row, best, strict=True)] for row in rows]
    texts = [["·" if score is None else f"{score:.1f}" for score in row] for row in rows]
    labels, columns = [label for label, _ in scored], [*sheet.tasks, "mean"]
    width = max(6.4, 0.6 + 0.075 * max(map(len, labels)) + 0.62 * len(columns))
    figure = Figure(figsize=(width, 1.5 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    draw_cells(axes, labels, columns, texts, shades, (), ink=INK, muted=INK, size=9)
    axes.axvline(len(sheet.tasks), color=INK, linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    title = heading(sheet)
    figure.suptitle(title, fontsize=9, color=INK, x=0.01, horizontalalignment="left")
    note = "score after the last task, mean over seeds; shade: share of the best score in the column"
    figure.supxlabel(note, fontsize=8, color="#555555", x=0.01, horizontalalignment="left")
    return standalone_svg(figure, f"{sheet.name}-tasks", f"tasks of {title}")


def _named(sheet: FigureData) -> list[tuple[str, Group]]:
    return list(zip(sheet.labels, sheet.groups, strict=True))


def _bars(sheet: FigureData) -> str:
    """Bars by task, one for each group; lines show the standard deviation over seeds."""
    count, places = len(sheet.groups), [*range(len(sheet.tasks)), len(sheet.tasks) + 0.35]
    figure, axes = one_plot(sheet, len(places))
    width = 0.84 / count
    drawn = styles([group.first.method for group in sheet.groups])
    several = False
    for number, (group, label) in enumerate(zip(sheet.groups, sheet.labels, strict=True)):
        left = [place + (number - count / 2 + 0.5) * width for place in places]
        scores = list(zip(left, final_scores(group), strict=True))
        known = [(x, score) for x, score in scores if score]
        style = drawn[number]
        hatched: dict[str, Any] = {"hatch": style.hatch, "edgecolor": "white", "linewidth": 0} if style.hatch else {}
        axes.bar(
            [x for x, _ in known],
            [score.mean for _, score in known],
            0.92 * width,
            color=style.colour,
            label=label,
            zorder=2,
            **hatched,
        )
        spreads = [(x, score.mean, score.deviation) for x, score in known if score.deviation is not None]
        if spreads:
            several = True
            x, mean, deviation = zip(*spreads, strict=True)
            axes.errorbar(
                x, mean, deviation, fmt="none", ecolor=INK, elinewidth=1, capsize=min(3, 60 * width / 4), zorder=3
            )
    axes.axvline(len(sheet.tasks) - 0.325, color=INK, linewidth=0.8)
    name_places(figure, axes, places, [*sheet.tasks, "mean"])
    axes.set(xlim=(-0.55, places[-1] + 0.55), ylim=(0, 100), ylabel="score after the last task")
    return finish(figure, axes, sheet, "tasks", "lines: standard deviation over seeds" if several else "")
