"""Axes and legends of the figures."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from see_lightning.reporting.svg import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, LINE = "#222222", "#d0d0d0"


def frame(axes: "Axes") -> None:
    """Style axes: two spines, and horizontal grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, color=INK, labelcolor=INK)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)


def logarithmic(axes: "Axes") -> None:
    """Label a logarithmic y axis in plain numbers: powers of ten, with 2 and 5 between them over a short range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def name_places(figure: "Figure", axes: "Axes", places: Sequence[float], names: Sequence[str]) -> None:
    """Write names below an axis, slanted if they would overlap."""
    fitting = short(names)
    axes.set_xticks(places, fitting)
    axes.tick_params(axis="x", length=0)
    room = figure.get_figwidth() / len(names)
    if max(map(len, fitting)) * 0.085 > room:
        for text in axes.get_xticklabels():
            text.set(rotation=30, horizontalalignment="right", rotation_mode="anchor")


def legend(figure: "Figure", handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Add a legend above the plots, in as many columns as fit; long labels are wrapped, since they may differ at the end."""
    lines = [textwrap.wrap(label, 90, break_on_hyphens=False) for label in labels]
    labels = ["\n".join(some) for some in lines]
    columns = max(1, int(figure.get_figwidth() / (0.09 * max(len(line) for some in lines for line in some) + 0.55)))
    rows = -(-len(labels) // columns)
    columns = -(-len(labels) // rows)  # rows of one length
    height = max(sum(map(len, lines[column::columns])) for column in range(columns))
    figure.set_figheight(figure.get_figheight() + 0.22 * height)
    # matplotlib counts down the columns; readers go along the rows.
    order = [place for column in range(columns) for place in range(column, len(labels), columns)]
    figure.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        loc="outside upper left",
        ncols=columns,
        fontsize=9,
        frameon=False,
        handlelength=1.6,
    )
