"""Axes and legends of the figures."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

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


def logarithmic(axes: "Axes", which: Literal["x", "y"] = "y") -> None:
    """Label a logarithmic axis in plain numbers: powers of ten, with 2 and 5 between them over a short range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axes.get_ylim() if which == "y" else axes.get_xlim()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


Box = tuple[float, float, float, float]  # left, bottom, right, top


def label_points(axes: "Axes", points: Mapping[str, tuple[float, float]], size: float = 8) -> None:
    """Write a name beside each point; where names would overlap, farther away, with a line to its point.

    Args:
        axes: with a fixed place in their figure and with final limits.
        points: x and y by name.
        size: of the letters, in points.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    scale = 72 / figure.dpi  # from pixels to typographic points
    places: dict[str, tuple[float, float]] = {}
    for name, point in points.items():
        x, y = axes.transData.transform(point)
        places[name] = scale * x, scale * y
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in places.values()]
    left, bottom, right, top = axes.bbox.extents
    inside = (scale * left, scale * bottom, scale * right, scale * top)
    for name, (x, y) in sorted(places.items(), key=lambda item: (-item[1][1], item[0])):
        width, height = 0.62 * size * len(name) + 3, 1.3 * size
        offsets = list(_beside(x, y, width, height))
        dx, dy, box = next((one for one in offsets if _is_free(one[2], taken, inside)), offsets[0])
        taken.append(box)
        axes.annotate(
            name,
            points[name],
            xytext=(dx, dy),
            textcoords="offset points",
            horizontalalignment="left" if dx > 0 else "right",
            verticalalignment="center",
            fontsize=size,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            if dy
            else None,
        )


def _beside(x: float, y: float, width: float, height: float) -> Iterator[tuple[float, float, Box]]:
    """Offsets of a name from its point and its box there, the nearest ones first."""
    for step in range(60):
        for up in (step * height / 2, -step * height / 2) if step else (0.0,):
            for side in (1, -1):
                dx = side * (7 + 2.5 * step)
                left, right = sorted((x + dx, x + dx + side * width))
                yield dx, up, (left, y + up - height / 2, right, y + up + height / 2)


def _is_free(box: Box, taken: Sequence[Box], inside: Box) -> bool:
    """Whether a box lies inside another one and overlaps none of some boxes.

    >>> _is_free((0, 0, 2, 2), [(2, 0, 3, 2)], (0, 0, 9, 9)), _is_free((0, 0, 2, 2), [(1, 1, 3, 3)], (0, 0, 9, 9))
    (True, False)
    """
    left, bottom, right, top = box
    if left < inside[0] or bottom < inside[1] or right > inside[2] or top > inside[3]:
        return False
    return all(right <= other[0] or left >= other[2] or top <= other[1] or bottom >= other[3] for other in taken)


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
