"""The figures of the report: SVG with the page's own colours for text and lines, so that they follow its light and dark mode.

Letters: T tasks, in the order in which they are learned.
"""

import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholder colours, which figures use for nothing else; each is replaced by a colour of the page.
PAGE_COLOURS = {
    "#010203": "currentColor",
    "#040506": "var(--muted)",
    "#070809": "var(--accent)",
    "#0a0b0c": "var(--line)",
}
INK, MUTED, ACCENT, LINE = PAGE_COLOURS


def matrix_svg(
    tasks: Sequence[str],
    matrix: Sequence[Sequence[float | None]],
    deviations: Sequence[Sequence[float | None]] | None = None,
    name: str = "matrix",
) -> str:
    """The results matrix as a heatmap; the diagonal is framed, a score that was not measured is a dot.

    Args:
        tasks: names in the order in which they are learned.
        matrix: scores in 0..100, or their means over seeds.
        deviations: standard deviations of these means, written below them.
        name: of the figure, unique on its page.
    """
    texts = [["·" if score is None else f"{score:.1f}" for score in row] for row in matrix]
    label = f"Score on each of {len(tasks)} tasks after learning each of them"
    if deviations:
        label += ", the mean over seeds with its standard deviation"
        texts = [
            [text if deviation is None else f"{text}\n±{deviation:.1f}" for text, deviation in zip(*row, strict=True)]
            for row in zip(texts, deviations, strict=True)
        ]
    shades = [[None if score is None else score / 100 for score in row] for row in matrix]
    rows = [f"after {task}" for task in short(tasks)]
    return _heatmap(
        name,
        f"{label}; the numbers are in the table below.",
        rows,
        tasks,
        texts,
        shades,
    )


def confusion_svg(
    tasks: Sequence[str], columns: Sequence[str], confusion: Sequence[Sequence[int]], given: Mapping[str, str]
) -> str:
    """The confusion matrix of routing: counts, shaded by their share of the row; a task's right expert is framed.

    Args:
        tasks: names of the rows.
        columns: names of the experts, and the base model.
        confusion: counts.
        given: the right expert of tasks that have none of their own.
    """
    right = {(row, columns.index(given.get(task, task))) for row, task in enumerate(tasks)}
    shades = [[count / sum(row) if count else None for count in row] for row in confusion]
    texts = [[f"{count}" for count in row] for row in confusion]
    label = "Queries of each task (rows) by the expert that answered (columns, last the base model)."
    return _heatmap("routing", label, short(tasks), columns, texts, shades, right)


def routers_svg(
    routers: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    shades: Sequence[Sequence[float | None]],
) -> str:
    """Routers (rows) by wording (columns): queries that reach their expert, or of foreign ones the base model."""
    label = (
        "Share of queries that reach their expert, of foreign ones the base model, by router and wording, in percent."
    )
    return _heatmap("routers", label, short(routers), columns, texts, shades, framed=())


def _heatmap(
    name: str,
    label: str,
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    shades: Sequence[Sequence[float | None]],
    framed: Collection[tuple[int, int]] | None = None,
) -> str:
    """A grid of coloured cells with their texts; shades in 0..1, None is an empty cell; by default the diagonal is framed."""
    lines = max((text.count("\n") for row in texts for text in row), default=0)
    figure, axes = _figure(0.47 * len(columns), (0.35 + 0.13 * lines) * len(rows))
    frames = {(i, i) for i in range(len(rows))} if framed is None else framed
    draw_cells(axes, rows, columns, texts, shades, frames, ink=INK, muted=MUTED, size=8.5)
    return _svg(figure, name, label)


def draw_cells(
    axes: "Axes",
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    shades: Sequence[Sequence[float | None]],
    framed: Collection[tuple[int, int]],
    *,
    ink: str,
    muted: str,
    size: float,
) -> None:
    """Fill axes with a grid of coloured cells.

    Args:
        axes: to fill.
        rows: names.
        columns: names, written above.
        texts: of the cells, row by row.
        shades: of the cells, 0..1; None for one without colour.
        framed: cells with a frame and bold text, as row and column numbers.
        ink: colour of frames.
        muted: colour of the texts of cells without colour.
        size: of the texts, in points.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    colours = colormaps["cividis"]  # designed for readers with and without colour-vision deficiency
    for i, (text_row, shade_row) in enumerate(zip(texts, shades, strict=True)):
        for j, (text, shade) in enumerate(zip(text_row, shade_row, strict=True)):
            colour = None if shade is None else colours(0.08 + 0.92 * shade)
            stands_out = (i, j) in framed
            if colour is not None:
                frame = {"edgecolor": ink, "linewidth": 1.6} if stands_out else {"linewidth": 0}
                axes.add_patch(Rectangle((j + 0.03, i + 0.04), 0.94, 0.92, facecolor=colour, **frame))
            own = muted if colour is None else readable_on(colour[:3])
            weight = "bold" if stands_out else "normal"
            axes.text(j + 0.5, i + 0.52, text, ha="center", va="center", color=own, fontsize=size, fontweight=weight)
    axes.set(xlim=(0, len(columns)), ylim=(max(1, len(rows)), 0))
    axes.set_xticks([j + 0.5 for j in range(len(columns))], short(columns))
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axes.xaxis.tick_top()
    if max(len(column) for column in columns) > 6:
        for label_text in axes.get_xticklabels():
            label_text.set(rotation=40, horizontalalignment="left", rotation_mode="anchor")


def curve_svg(tasks: Sequence[str], matrix: Sequence[Sequence[float | None]], j: int) -> str:
    """A task's score over the stages: a line from its learning on, hollow points before."""
    measured = [(t + 1, row[j]) for t, row in enumerate(matrix) if row[j] is not None]
    before = [point for point in measured if point[0] <= j]
    since = [point for point in measured if point[0] > j]
    figure, axes = _figure(1.9, 0.95)
    axes.hlines([0, 50, 100], 0.5, len(tasks) + 0.5, color=LINE, linewidth=0.8)
    if before:
        axes.plot(*zip(*before, strict=True), "o", markersize=4, fillstyle="none", color=MUTED, clip_on=False)
    if since:
        axes.plot(*zip(*since, strict=True), "o-", markersize=3.5, linewidth=1.8, color=ACCENT, clip_on=False)
    axes.set(xlim=(0.5, len(tasks) + 0.5), ylim=(0, 100))
    axes.set_xticks(sorted({1, j + 1, len(tasks)}))
    axes.set_yticks([0, 50, 100])
    values = ", ".join(f"{score:.1f} after {stage}" for stage, score in measured) or "not measured"
    return _svg(figure, f"curve-{j}", f"Score on {tasks[j]} by number of tasks learned: {values}.")


def study_svg(study: Mapping[str, Any]) -> str:
    """Log-odds of own and other tasks' queries for each expert, and below, on the same axis, routing over the threshold."""
    picture, verdicts = study["picture"], study["rows"][0]
    edges, experts, best = picture["edges"], picture["experts"], picture["best"]
    low, high = edges[0], edges[-1]
    top = 1.2 + 0.4 * len(experts)
    figure, axes = _figure(6.6, 1.15 * top)
    axes.hlines([0, 0.5, 1], low, high, color=LINE, linewidth=0.8)
    axes.vlines(best["threshold"], 0, top, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    heights = [top - 0.4 * number for number in range(1, len(experts) + 1)]
    for height, groups in zip(heights, experts.values(), strict=True):
        axes.hlines(height, low, high, color=LINE, linewidth=0.8)
        for group, colour in (("foreign", MUTED), ("own", ACCENT)):
            peak = max(groups[group]) or 1
            shape = [height + 0.34 * count / peak for count in groups[group]]
            axes.stairs(shape, edges, baseline=height, fill=True, color=colour, alpha=0.65, clip_on=False)
    curves = (("base_share", MUTED, "base model"), ("accuracy", ACCENT, "own expert"))
    for name, colour, words in curves:
        axes.plot(edges, picture[name], linewidth=1.8, color=colour, clip_on=False)
        axes.text(high + 0.012 * (high - low), picture[name][-1], words, va="center", color=colour, fontsize=8.5)
    axes.plot(best["threshold"], best["accuracy"], "o", markersize=4.5, color=ACCENT, clip_on=False)
    best_text = f"best {best['threshold']:g}: {100 * best['accuracy']:.1f} %".replace("-", "−")
    axes.text(best["threshold"], top + 0.05, best_text, ha="center", va="bottom", color=INK, fontsize=8.5)
    middle = (low + high) / 2
    axes.text(middle, -0.3, "threshold, log-odds of accepting", ha="center", va="top", color=INK, fontsize=8.5)
    axes.set(xlim=(low, high), ylim=(0, top))
    axes.set_yticks([0, 0.5, 1, *heights], ["0 %", "50 %", "100 %", *short(list(experts))])
    return _svg(
        figure,
        "study",
        f"Above, the distribution of {len(experts)} experts' log-odds of accepting a query, from {low:.1f} to {high:.1f}. "
        f"Below, the share of queries answered by their own expert over the threshold: "
        f"{100 * picture['accuracy'][0]:.1f} % at the lowest, at best {100 * best['accuracy']:.1f} % at "
        f"{best['threshold']:g}, and {100 * verdicts['routing_accuracy']:.1f} % by the experts' verdicts.",
    )


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """An empty figure with one plot without a frame, of this size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK, pad=4)
    return figure, axes


def _svg(figure: "Figure", name: str, label: str) -> str:
    """The figure as an SVG element for a page, with its label for screen readers."""
    from html import escape

    for axes in figure.axes:
        for text in (*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set_parse_math(False)
    svg = _render(figure, name, bbox_inches="tight", pad_inches=0.06, transparent=True)
    for colour, page_colour in PAGE_COLOURS.items():
        svg = svg.replace(colour, page_colour)
    # Figures share a page: numbered ids would repeat. Only ids made from content are referred to.
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg[svg.index("<svg") :])
    head, body = svg.split(">", 1)
    size = dict(re.findall(r'(\w+)="([^"]*)"', head))
    return (
        f'<svg role="img" aria-labelledby="{name}-title" width="{size["width"]}" height="{size["height"]}" '
        f'viewBox="{size["viewBox"]}" style="--width: {size["width"]}">'
        f'<title id="{name}-title">{escape(label)}</title>{body}'
    )


def standalone_svg(figure: "Figure", name: str, title: str) -> str:
    """The figure as a standalone file on a white background.

    Args:
        figure: to draw.
        name: seed of the ids in the file, so that they are the same every time.
        title: for screen readers and windows.
    """
    from html import escape

    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    svg = _render(figure, name, facecolor="white")
    head, body = svg[svg.index("<svg") :].split(">", 1)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head} role="img">\n <title>{escape(title)}</title>{body}'


def _render(figure: "Figure", name: str, **settings: Any) -> str:
    """The figure as matplotlib's SVG: text stays text, and the bytes are the same every time."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, **settings)
    return buffer.getvalue()


def short(names: Sequence[str]) -> list[str]:
    """Names shortened for a figure: at the end; if that makes them equal, in the middle; if needed, with a number.

    >>> short(["a task with a very long name", "task_84_of_natural_instructions", "task_84_of_natural_inference"])
    ['a task with a very lo…', 'task_84_of…nstructions', 'task_84_of…l_inference']
    """
    cuts: list[Callable[[int, str], str]] = [
        lambda _, name: f"{name[:21]}…",
        lambda _, name: f"{name[:10]}…{name[-11:]}",
        lambda place, name: f"{name[:16]}… {place + 1}",
    ]
    fitting = [name if len(name) <= 22 else cuts[0](place, name) for place, name in enumerate(names)]
    for cut in cuts[1:]:
        twice = {name for name in fitting if fitting.count(name) > 1}
        fitting = [cut(place, names[place]) if name in twice else name for place, name in enumerate(fitting)]
    return fitting


def readable_on(colour: Sequence[float]) -> str:
    """Black or white, whichever contrasts more with `colour` (red, green, blue in 0..1) by WCAG's luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"
