"""A comparison of routers as a picture and as CSV: who reaches which expert, by router and wording."""

import textwrap
from collections.abc import Sequence
from typing import Any

from see_lightning.reporting.plots import INK
from see_lightning.reporting.report.routers import (
    BOUND,
    FOREIGN,
    Comparison,
    foreign_sets,
    routed,
    router_grid,
    wordings,
)
from see_lightning.reporting.spreadsheets import csv_text
from see_lightning.reporting.svg import draw_cells, standalone_svg


def routers_csv(found: Comparison) -> str:
    """A line for each router; shares lie in 0..1, sizes are bytes. A router that cannot route has the reason alone."""
    sets = wordings(found) | foreign_sets(found)
    heads = [f"{name}_to_base" if name in FOREIGN else f"{name}_right" for name in sets]
    more = [f"{name}_to_base" for name in wordings(found)]
    costs = ("AR", "bytes", "prefills", "asked", "seconds")
    lines: list[Sequence[Any]] = [["method", "order", "seed", "router", "own", *heads, *more, *costs, "cannot"]]
    for row in found["routers"]:
        own = [row["sets"].get(name, {}).get("base_share") for name in wordings(found)] if row["cannot"] is None else []
        lines.append(
            [
                *(found[name] for name in ("method", "order", "seed")),
                row["router"],
                int(row["is_own"]),
                *(routed(row, name) for name in sets),
                *(own or [None] * len(more)),
                *(row.get(name) for name in costs),
                row["cannot"],
            ]
        )
    if found["bound"] is not None:
        bound = [found["bound"] if name == "input_only" else None for name in sets]
        origin = [found[name] for name in ("method", "order", "seed")]
        lines.append([*origin, BOUND, 0, *bound, *[None] * (len(more) + len(costs) + 1)])
    return csv_text(lines)


def routers_picture(found: Comparison) -> str:
    """The share of queries that reach their expert, or of foreign ones the base model: routers by wording, as a file."""
    from matplotlib.figure import Figure

    rows, columns, texts, shades = router_grid(found)
    width = 1.2 + 0.075 * max(map(len, rows), default=0) + 0.62 * len(columns)
    title = f"Routers over the experts of {found['method']} on {found['order']}, seed {found['seed']}"
    head = textwrap.wrap(title, int(10.5 * width))
    note = textwrap.wrap("% of queries that reach their own expert; of foreign ones, the base model", int(12 * width))
    height = 1.5 + 0.32 * len(rows) + 0.19 * (len(head) + len(note))
    figure = Figure(figsize=(max(4.8, width), height), layout="constrained")
    axes = figure.subplots()
    draw_cells(axes, rows, columns, texts, shades, (), ink=INK, muted=INK, size=9.5)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9.5, labelcolor=INK)
    axes.set_title("\n".join(head), fontsize=10, color=INK, loc="left")
    axes.set_xlabel("\n".join(note), fontsize=9, color="#555555", loc="left")
    return standalone_svg(
        figure, "routers", f"{title}: share of queries that reach their expert, by router and wording"
    )
