"""The score of each method over what it keeps, with the numbers of a table of rivals."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from see_lightning.reporting import rivals as costs
from see_lightning.reporting.colours import styles
from see_lightning.reporting.comparison.groups import MeanStd, spread
from see_lightning.reporting.figures.figure_data import ORIGIN, FigureData, finish, origin
from see_lightning.reporting.plots import INK, frame, label_points, logarithmic
from see_lightning.reporting.runs import read_results
from see_lightning.reporting.spreadsheets import csv_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST = 3  # methods that make a picture
COSTS: dict[str, Callable[[costs.Results], float | None]] = {
    "kept_bytes": costs.kept_bytes,
    "stored_rows": costs.stored_rows,
    "trained_weights": costs.trained_weights,
    "training_tokens": costs.training_tokens,
    "hook_tokens": costs.hook_tokens,
    "hook_s": costs.hook_s,
    "training_s": costs.training_s,
}
RELATIVE = f"cost_by_{costs.BASELINE}"


def has_rivals(sheet: FigureData) -> bool:
    """Whether the results of several methods tell what each keeps, its past examples included."""
    known = {group.first.method for group, row in zip(sheet.groups, _rows(sheet), strict=True) if row["kept_bytes"]}
    return len(known) >= LEAST


def rivals_csv(sheet: FigureData) -> str:
    """A line for each group: AR and the means of its costs over the seeds."""
    lines: list[Sequence[Any]] = [[*ORIGIN, "seeds", "AR_mean", "AR_std", *COSTS, RELATIVE]]
    for group, label, row in zip(sheet.groups, sheet.labels, _rows(sheet), strict=True):
        score = row["AR"]
        scores = [score.mean, score.deviation] if score else [None, None]
        means = [None if (cost := row[name]) is None else round(cost.mean, 4) for name in (*COSTS, RELATIVE)]
        seeds = " ".join(str(run.seed) for run in group.runs)
        lines.append([*origin(sheet, group, label), seeds, *scores, *means])
    return csv_text(lines)


def rivals_svg(sheet: FigureData) -> str:
    """AR over the MiB kept after the last task: a named point for each group, a hollow one if it needs past examples.

    What keeps nothing is a line, since a logarithmic axis has no zero.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.4))
    axes = figure.add_axes((0.07, 0.1, 0.91, 0.84))  # a fixed place, so that names can be put beside points
    frame(axes)
    methods = [group.first.method for group in sheet.groups]
    names = [
        method if methods.count(method) == 1 else label for method, label in zip(methods, sheet.labels, strict=True)
    ]
    points: dict[str, tuple[float, float]] = {}
    levels: dict[str, float] = {}
    for name, style, row in zip(names, styles(methods), _rows(sheet), strict=True):
        score, kept, stored = row["AR"], row["kept_bytes"], row["stored_rows"]
        if score is None or kept is None:
            continue
        if not kept.mean:
            axes.axhline(score.mean, color=style.colour, linestyle="--", linewidth=1)
            levels[name] = score.mean
            continue
        points[name] = (kept.mean / 2**20, score.mean)
        look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "markersize": 7, "elinewidth": 1}
        axes.errorbar(*points[name], score.deviation, mfc="white" if stored and stored.mean else style.colour, **look)
    axes.set(xscale="log", ylabel="AR")
    _fit(axes, list(points.values()), list(levels.values()))
    logarithmic(axes, "x")
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (2, 3), "textcoords": "offset points"}
    for name, level in levels.items():
        axes.annotate(f"{name}: keeps nothing", (0, level), fontsize=8, color=INK, **beside)
    label_points(axes, points)
    return finish(figure, axes, sheet, "rivals", "MiB kept after the last task; hollow: needs examples of past tasks")


def _fit(axes: "Axes", points: Sequence[tuple[float, float]], levels: Sequence[float]) -> None:
    """Set limits that leave room around all points for their names."""
    kept, scores = [x for x, _ in points], [*(y for _, y in points), *levels]
    room = 0.06 * (max(scores) - min(scores)) + 0.5
    axes.set_ylim(max(0, min(scores) - room), min(100, max(scores) + room))
    axes.set_xlim(min(kept) / 2, max(kept) * 2)


def _rows(sheet: FigureData) -> list[dict[str, MeanStd | None]]:
    """For each group, AR and every cost over the seeds."""
    cells = {"AR": lambda results: results["metrics"]["AR"], **COSTS, RELATIVE: costs.relative_cost(sheet.groups)}
    runs = [[read_results(run.path) for run in group.runs] for group in sheet.groups]
    return [{name: spread(map(cell, some)) for name, cell in cells.items()} for some in runs]
