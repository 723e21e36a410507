"""Everything a user sees at the end of a run, made from the content of ``results.json`` alone.

`print_report` for the terminal, `matrix_csv` for spreadsheets, `render_html` for a page that needs nothing but itself.
Drawings are SVG whose text and lines take their colours from the page, so that they follow its light and dark mode.

Letters: T tasks, in the order in which they are learned.
"""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from see_lightning.evaluation.matrix import ResultsMatrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Any]

FORMULAS = {
    "AR": "mean over tasks j of a[T][j]; higher is better",
    "FWT": "mean over t ≥ 2 of a[t−1][t], the score before learning; higher is better",
    "BWT": "mean over j < T of a[T][j] − a[j][j]; below 0, old tasks got worse",
    "forgetting": "mean over j < T of max(a[t][j], j ≤ t < T) − a[T][j]; lower is better",
}
ROUTING = {
    "accuracy": "queries answered by their own task's expert",
    "base_share": "queries answered by the base model",
    "no_indicator_share": "queries for which an expert gave neither indicator",
}
OOD = {
    "base_share": "out-of-distribution queries answered by the base model",
    "base_identical": "of those, answers identical to the plain base model's",
}
# Colours that no drawing uses for anything else; each becomes a colour of the page.
PAGE_COLOURS = {
    "#010203": "currentColor",
    "#040506": "var(--muted)",
    "#070809": "var(--accent)",
    "#0a0b0c": "var(--line)",
}
INK, MUTED, ACCENT, LINE = PAGE_COLOURS


def matrix_csv(results: Results) -> str:
    """The results matrix as CSV, as `ResultsMatrix.to_csv` writes it."""
    return ResultsMatrix.from_list(results["tasks"], results["matrix"]).to_csv()


# ---------------------------------------------------------------------------------------------- words and numbers


def title(results: Results) -> str:
    """One line that tells this run from others."""
    ratio = "" if results.get("ratio") is None else f" · ratio {results['ratio']:g}"
    return f"{results['method']} on {results['order']} · {results['model']}{ratio} · seed {results['seed']}"


def number(value: object, digits: int = 2) -> str:
    """A value for reading: thousands apart, `digits` decimals, an en dash for None.

    >>> number(12345), number(81.234), number(-3.5), number(None), number([1200, 3])
    ('12,345', '81.23', '−3.50', '–', '1,200, 3')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:,.{digits}f}".replace("-", "−")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, list | tuple):
        return ", ".join(number(item, digits) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number(item, digits)}" for key, item in value.items())
    return str(value)


def percent(share: float | bool | None) -> str:
    """A share in 0..1 for reading.

    >>> percent(0.9876), percent(None), percent(True)
    ('98.8 %', '–', '100.0 %')
    """
    return "–" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """A time span for reading.

    >>> duration(41.23), duration(192), duration(3725), duration(None)
    ('41.2 s', '3 min 12 s', '1 h 02 min', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _costs(results: Results) -> dict[str, tuple[Any, bool]]:
    """Every count and time with a readable label; True marks a time span in seconds."""
    costs: dict[str, tuple[Any, bool]] = {}
    for group in ("counts", "timing"):
        for key, value in results.get(group, {}).items():
            is_span = key.endswith("_s") and "_per_" not in key
            label = re.sub("_s$", "", key) + " time" if is_span else key.replace("_per_s", " per second")
            costs[label.replace("_", " ")] = (value, is_span)
    if "capacity" in results:
        costs["capacity"] = (results["capacity"], False)
    return costs


def _readable(value: Any, is_span: bool) -> str:
    if isinstance(value, list):
        return ", ".join(_readable(item, is_span) for item in value)
    return duration(value) if is_span else number(value)


def _per_task(results: Results) -> dict[str, list[str]]:
    """Label -> a readable value for each task, for every cost that was counted task by task."""
    return {
        label: [_readable(item, is_span) for item in value]
        for label, (value, is_span) in _costs(results).items()
        if isinstance(value, list) and len(value) == len(results["tasks"])
    }


def _in_all(results: Results) -> dict[str, str]:
    """Label -> a readable value, for every cost of the run as a whole."""
    per_task = _per_task(results)
    costs = _costs(results).items()
    return {label: _readable(value, is_span) for label, (value, is_span) in costs if label not in per_task}


def _shares(results: Results) -> dict[str, str]:
    """What a share tells -> the share, for routing, out-of-distribution queries and task identities."""
    shares: dict[str, str] = {}
    for group, meanings in (("routing", ROUTING), ("ood", OOD)):
        found = results.get(group) or {}
        shares |= {meaning: percent(found[key]) for key, meaning in meanings.items() if key in found}
    ood = results.get("ood") or {}
    shares |= {f"{task}: answered by the base model": percent(share) for task, share in ood.get("per_task", {}).items()}
    if "auroc" in ood:
        shares["AUROC of the first step's score, own against out-of-distribution queries"] = number(ood["auroc"], 3)
    if "task_id_accuracy" in results:
        shares["queries whose task was identified"] = percent(results["task_id_accuracy"])
    return shares


# ---------------------------------------------------------------------------------------------- terminal


def print_report(results: Results, console: Console) -> None:
    """Print the matrix, the metrics and, where there are any, the routing shares and notices about the data.

    In a terminal the tables fit its width, if need be with the tasks' numbers at the head of the matrix; elsewhere
    they are as wide as they need to be, so that no file holds a shortened name.
    """
    console.print(Text(title(results), style="bold"), soft_wrap=True)
    matrix = _matrix_table(results, results["tasks"])
    if console.is_terminal and max(map(len, _plain(matrix).splitlines())) > console.width:
        matrix = _matrix_table(results, [str(t + 1) for t in range(len(results["tasks"]))])
    _print_table(matrix, console)
    console.print(Text(" * right after learning the task   · not measured"))
    metrics = [(name, number(value), FORMULAS.get(name, "")) for name, value in results["metrics"].items()]
    _print_table(_table(["metric", "value", "formula"], metrics), console)
    if shares := _shares(results):
        _print_table(_table(["routing", "value"], shares.items()), console)
    for notice in results.get("notices", []):
        console.print(Text(f"note: {notice}"), soft_wrap=True)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose second column holds the values."""
    first, value, *others = names
    table = Table(first, Column(value, justify="right", style="bold", no_wrap=True), *others, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _matrix_table(results: Results, heads: Sequence[str]) -> Table:
    """A row per stage, a column per task; what was measured right after learning a task has a star."""
    # Padded here: rich drops the blank that stands below a star when it justifies to the right.
    longest = max((len(f"{score:.1f}") for row in results["matrix"] for score in row if score is not None), default=1)
    widths = [max(len(head), longest) for head in heads]
    columns = [
        Column(Text(f"{head:>{width}} "), no_wrap=True, min_width=width + 1)
        for head, width in zip(heads, widths, strict=True)
    ]
    table = Table(Column("score", overflow="fold"), *columns, box=box.SIMPLE_HEAD, padding=0)
    for t, (task, scores) in enumerate(zip(results["tasks"], results["matrix"], strict=True)):
        cells = [
            _cell(score, width, is_diagonal=t == j) for j, (score, width) in enumerate(zip(scores, widths, strict=True))
        ]
        table.add_row(Text(f"{t + 1:{len(str(len(heads)))}} after {task}"), *cells)
    return table


def _cell(score: float | None, width: int, is_diagonal: bool) -> Text:
    if score is None:
        return Text(f"{'·':>{width}} ", style="dim")
    return Text(f"{score:{width}.1f}*", style="bold") if is_diagonal else Text(f"{score:{width}.1f} ")


def _print_table(table: Table, console: Console) -> None:
    if console.is_terminal:
        console.print(table)
    else:
        console.print(Text(_plain(table)), soft_wrap=True)


def _plain(table: Table) -> str:
    """The table as plain text, as wide as it needs to be."""
    console = Console(file=io.StringIO(), width=100_000, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


# ---------------------------------------------------------------------------------------------- page


def render_html(results: Results) -> str:
    """One self-contained page: no network, no script, the same bytes for the same results."""
    import yaml  # type: ignore[import-untyped]
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    tasks, matrix, routing, config = results["tasks"], results["matrix"], results.get("routing"), results.get("config")
    has_curves = any(sum(score is not None for score in column) > 1 for column in zip(*matrix, strict=True))
    curves = [(task, _change(matrix, j), Markup(curve_svg(tasks, matrix, j))) for j, task in enumerate(tasks)]
    routing_figure = ""
    if routing:
        rows, columns = routing.get("tasks", tasks), routing.get("columns", [*tasks, "base"])
        routing_figure = Markup(confusion_svg(rows, columns, routing["confusion"]))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    page: str = environment.from_string(Path(__file__).with_name("report.html.j2").read_text("utf-8")).render(
        results=results,
        title=title(results),
        # The word joiner keeps a[t][j] on one line.
        metrics=[
            (name, number(value), FORMULAS.get(name, "").replace("][", "]\u2060["))
            for name, value in results["metrics"].items()
        ],
        matrix_figure=Markup(matrix_svg(tasks, matrix)),
        routing_figure=routing_figure,
        curves=curves if has_curves else [],
        shares=_shares(results),
        per_task=_per_task(results),
        in_all=_in_all(results),
        benchmark=results.get("benchmark"),
        notices=results.get("notices", []),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
    )
    return page


def _change(matrix: Sequence[Sequence[float | None]], j: int) -> str:
    """A task's score right after learning it, and at the end."""
    ends = [matrix[j][j], matrix[-1][j]]
    return number(ends[1], 1) if j == len(matrix) - 1 else " → ".join(number(end, 1) for end in ends)


def matrix_svg(tasks: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> str:
    """The results matrix as a heatmap; the diagonal is framed, what was not measured is a dot."""
    texts = [["·" if score is None else f"{score:.1f}" for score in row] for row in matrix]
    shades = [[None if score is None else score / 100 for score in row] for row in matrix]
    rows = [f"after {task}" for task in map(_short, tasks)]
    return _heatmap(
        "matrix",
        f"Score on each of {len(tasks)} tasks after learning each of them; the numbers are in the table below.",
        rows,
        tasks,
        texts,
        shades,
    )


def confusion_svg(tasks: Sequence[str], columns: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """Who answered each task's queries: counts, shaded by their share of the row; a task's own expert is framed."""
    shades = [[count / sum(row) if count else None for count in row] for row in confusion]
    texts = [[f"{count}" for count in row] for row in confusion]
    label = "Queries of each task (rows) by the expert that answered (columns, last the base model)."
    return _heatmap("routing", label, [_short(task) for task in tasks], columns, texts, shades)


def _heatmap(
    name: str,
    label: str,
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    shades: Sequence[Sequence[float | None]],
) -> str:
    """A grid of coloured cells with their texts; shades in 0..1, None for an empty cell."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    colours = colormaps["cividis"]  # made to look the same to readers with and without colour-vision deficiency
    figure, axes = _figure(0.47 * len(columns), 0.35 * len(rows))
    for i, (text_row, shade_row) in enumerate(zip(texts, shades, strict=True)):
        for j, (text, shade) in enumerate(zip(text_row, shade_row, strict=True)):
            colour = None if shade is None else colours(0.08 + 0.92 * shade)
            if colour is not None:
                frame = {"edgecolor": INK, "linewidth": 1.6} if i == j else {"linewidth": 0}
                axes.add_patch(Rectangle((j + 0.03, i + 0.04), 0.94, 0.92, facecolor=colour, **frame))
            ink = MUTED if colour is None else _readable_on(colour[:3])
            weight = "bold" if i == j else "normal"
            axes.text(j + 0.5, i + 0.52, text, ha="center", va="center", color=ink, fontsize=8.5, fontweight=weight)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axes.set_xticks([j + 0.5 for j in range(len(columns))], [_short(column) for column in columns])
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axes.xaxis.tick_top()
    if max(len(column) for column in columns) > 6:
        for label_text in axes.get_xticklabels():
            label_text.set(rotation=40, horizontalalignment="left", rotation_mode="anchor")
    return _svg(figure, name, label)


def curve_svg(tasks: Sequence[str], matrix: Sequence[Sequence[float | None]], j: int) -> str:
    """A task's score over the stages: a line since it was learned, hollow points before."""
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


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """A bare figure with one frameless plot of this size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK, pad=4)
    return figure, axes


def _svg(figure: "Figure", name: str, label: str) -> str:
    """The figure as an SVG element for a page, with its label for screen readers."""
    from html import escape

    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}):
        for axes in figure.axes:
            for text in (*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()):
                text.set_parse_math(False)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.06, transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    for colour, page_colour in PAGE_COLOURS.items():
        svg = svg.replace(colour, page_colour)
    # Several drawings share a page: numbered names would repeat, and only those by content are referred to.
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg[svg.index("<svg") :])
    head, body = svg.split(">", 1)
    size = dict(re.findall(r'(\w+)="([^"]*)"', head))
    return (
        f'<svg role="img" aria-labelledby="{name}-title" width="{size["width"]}" height="{size["height"]}" '
        f'viewBox="{size["viewBox"]}" style="--width: {size["width"]}">'
        f'<title id="{name}-title">{escape(label)}</title>{body}'
    )


def _short(name: str) -> str:
    """A name that fits a drawing."""
    return name if len(name) <= 22 else f"{name[:21]}…"


def _readable_on(colour: Sequence[float]) -> str:
    """Black or white, whichever contrasts more with `colour` (red, green, blue in 0..1) by WCAG's luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"
