"""Latency of routing: the time to an answer's first token by the number of experts in the walk."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from see_lightning.errors import Refusal
from see_lightning.reporting.colours import PALETTE
from see_lightning.reporting.plots import frame, legend, logarithmic
from see_lightning.reporting.spreadsheets import csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LATENCY = ("sweep", "contender", "experts", "tokens", "median_ms", "min_ms", "max_ms")


def latency_rows(text: str, name: str) -> list[dict[str, str]]:
    """Parse the output of ``benchmarks/route.py --csv``.

    Args:
        text: of the file.
        name: of the file, for the message.

    Raises:
        Refusal: a line is not of that form.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    for line, row in enumerate(rows, start=2):
        try:
            fine = {row["sweep"]} <= {"experts", "tokens"} and all(float(row[column]) > 0 for column in LATENCY[2:])
        except (KeyError, TypeError, ValueError):
            fine = False
        if not fine:
            raise Refusal(
                f"{name}, line {line} is not one that benchmarks/route.py --csv wrote; its columns are {', '.join(LATENCY)}."
            )
    if not rows:
        raise Refusal(f"{name} holds no measured times; give a file that benchmarks/route.py --csv wrote.")
    return rows


def latency_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """The numbers of the figure as CSV, a line for each point."""
    return csv_text([LATENCY, *([row[column] for column in LATENCY] for row in rows)])


def latency_figure(rows: Sequence[Mapping[str, object]]) -> "Figure":
    """The time to the first token over the number of experts in the walk, and over the length of the prompt if measured.

    Args:
        rows: with the columns of `LATENCY`; points are medians, lines go from the fastest to the slowest.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    other = {"experts": "tokens", "tokens": "experts"}
    words = {"experts": "experts asked, prompts of {} tokens", "tokens": "tokens of the prompt, {} experts"}
    sweeps = [sweep for sweep in words if any(row["sweep"] == sweep for row in rows)]
    names = list(dict.fromkeys(str(row["contender"]) for row in rows))
    figure = Figure(figsize=(1.2 + 4.2 * len(sweeps), 4.4), layout="constrained")
    panels = figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0]
    order = [*(PALETTE[place] for place in (5, 1, 3, 4, 6, 2, 0, 7, 8)), *PALETTE[9:]]
    for axes, sweep in zip(panels, sweeps, strict=True):
        own = [row for row in rows if row["sweep"] == sweep]
        for number, name in enumerate(names):
            points = [row for row in own if row["contender"] == name]
            times = {column: [float(str(row[column])) for row in points] for column in LATENCY[4:]}
            middle = times["median_ms"]
            reach = [
                [m - low for m, low in zip(middle, times["min_ms"], strict=True)],
                [high - m for m, high in zip(middle, times["max_ms"], strict=True)],
            ]
            axes.errorbar(
                [float(str(row[sweep])) for row in points],
                middle,
                reach,
                color=order[number % len(order)],
                marker="osD^v<>Ph"[number % 9],
                linestyle="-" if name.startswith("ours") else "--",
                linewidth=1.6,
                elinewidth=0.8,
                label=name,
            )
        fixed = " and ".join(dict.fromkeys(str(row[other[sweep]]) for row in own))
        axes.set(xscale="log", yscale="log", xlabel=words[sweep].format(fixed))
        ticks = sorted({float(str(row[sweep])) for row in own})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        logarithmic(axes)
        frame(axes)
    panels[0].set_ylabel("ms to the first token of the answer")
    legend(figure, *panels[0].get_legend_handles_labels())
    return figure
