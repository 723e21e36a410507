"""The transfer matrices as a figure: the score of each expert on each task."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from see_lightning.evaluation.transfer import Transfer, mean
from see_lightning.reporting.figures.figure_data import ORIGIN, FigureData, origin
from see_lightning.reporting.plots import INK
from see_lightning.reporting.spreadsheets import csv_text
from see_lightning.reporting.svg import draw_cells, short, standalone_svg
from see_lightning.reporting.words import number as readable

#: Label of a group -> transfer matrices by seed.
Transfers = Mapping[str, Mapping[int, Transfer]]


def transfer_csv(sheet: FigureData, transfers: Transfers) -> str:
    """A line for each run, adapter and task, and whether the adapter is the task's own expert.

    Args:
        sheet: the groups of runs to show.
        transfers: of the measured runs among them.
    """
    lines: list[Sequence[Any]] = [[*ORIGIN, "task", "seed", "size", "adapter", "own", "score"]]
    for group, label in zip(sheet.groups, sheet.labels, strict=True):
        for seed, transfer in transfers.get(label, {}).items():
            lines += [
                [
                    *origin(sheet, group, label),
                    task,
                    seed,
                    transfer.size,
                    adapter,
                    int(transfer.own[task] == adapter),
                    score,
                ]
                for adapter, row in transfer.scores.items()
                for task, score in row.items()
            ]
    return csv_text(lines)


def transfer_svg(sheet: FigureData, transfers: Transfers) -> str:
    """A heat map for each run, one below the other, to be readable on a narrow screen.

    Tasks have different scores, so a cell's shade is its share of the best score in its column.

    Args:
        sheet: the groups of runs to show.
        transfers: of the measured runs among them.
    """
    from matplotlib.figure import Figure

    shown = [
        (" · ".join(filter(None, [label, f"seed {seed}", sheet.order, group.first.model, transfer.queries])), transfer)
        for group, label in zip(sheet.groups, sheet.labels, strict=True)
        for seed, transfer in transfers.get(label, {}).items()
    ]
    width = max(4.8, 1.3 + 0.52 * len(sheet.tasks))
    letters = int(10.5 * width)  # that fit into a line
    heads = [textwrap.wrap(head, letters, break_on_hyphens=False) for head, _ in shown]
    names = 0.65 if max(map(len, sheet.tasks)) > 6 else 0.3  # room for the task names above a map
    heights = [
        0.34 * len(transfer.scores) + 0.19 * len(head) + names + 0.5
        for (_, transfer), head in zip(shown, heads, strict=True)
    ]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, head, (_, transfer) in zip(panels, heads, shown, strict=True):
        best = {task: max(row[task] for row in transfer.scores.values()) or 1 for task in sheet.tasks}
        rows = [[row[task] for task in sheet.tasks] for row in transfer.scores.values()]
        shades = [[score / best[task] for task, score in zip(sheet.tasks, row, strict=True)] for row in rows]
        adapters = list(transfer.scores)
        own = {(adapters.index(transfer.own[task]), column) for column, task in enumerate(sheet.tasks)}
        texts = [[f"{score:.1f}" for score in row] for row in rows]
        draw_cells(axes, short(adapters), sheet.tasks, texts, shades, own, ink=INK, muted=INK, size=10)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=10, labelcolor=INK)
        axes.set_title("\n".join(head), fontsize=10, color=INK, loc="left")
        axes.set_xlabel(
            f"mean of own experts {readable(mean(transfer.diagonal.values()))} (framed), "
            f"of others {readable(mean(transfer.others.values()))}",
            fontsize=9,
            color="#555555",
            loc="left",
        )
    title = f"Who answers (rows) each task's queries (columns) of {sheet.order}"
    return standalone_svg(figure, f"{sheet.name}-transfer", title)
