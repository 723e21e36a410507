"""The perplexity of reference answers: figure 5 of SEE's paper."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from see_lightning.reporting.colours import parts_of, styles
from see_lightning.reporting.figures.figure_data import ORIGIN, FigureData, finish, one_plot, origin
from see_lightning.reporting.plots import INK, logarithmic, name_places
from see_lightning.reporting.spreadsheets import csv_text
from see_lightning.reporting.svg import readable_on

#: Percentiles at the parts of a box: whisker, edge, median, edge, whisker.
SHARES = (5, 25, 50, 75, 95)

Answers = Sequence[tuple[float, int]]  # negative log-likelihood in nats, and tokens


def quantile(ordered: Sequence[float], percent: float) -> float:
    """A percentile, with linear interpolation between neighbours.

    Args:
        ordered: at least one, the smallest first.
        percent: 0..100.

    >>> quantile([1.0, 2.0, 4.0], 50), quantile([1.0, 2.0, 4.0], 75)
    (2.0, 3.0)
    """
    place = percent / 100 * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def perplexity_csv(sheet: FigureData, answers: Mapping[str, Mapping[str, Answers]]) -> str:
    """A line for each group and task: the perplexity over all tokens, and percentiles of the perplexity of single answers.

    Args:
        sheet: the groups of runs to show.
        answers: label of a group -> task -> the reference answers of all its seeds.
    """
    names = ["min", *(f"p{share}" for share in SHARES), "max"]
    lines: list[Sequence[Any]] = [[*ORIGIN, "task", "answers", "tokens", "perplexity", *names]]
    for group, label in zip(sheet.groups, sheet.labels, strict=True):
        for task in sheet.tasks if label in answers else ():
            some = answers[label][task]
            tokens = sum(count for _, count in some)
            whole = math.exp(math.fsum(nll for nll, _ in some) / tokens)
            single = single_perplexities(some)
            parts = [quantile(single, share) for share in (0, *SHARES, 100)]
            lines.append(
                [*origin(sheet, group, label), task, len(some), tokens, *(round(v, 6) for v in (whole, *parts))]
            )
    return csv_text(lines)


def single_perplexities(answers: Answers) -> list[float]:
    """The perplexity of each answer, the smallest first."""
    return sorted(math.exp(nll / tokens) for nll, tokens in answers)


def perplexity_svg(sheet: FigureData, answers: Mapping[str, Mapping[str, Answers]]) -> str:
    """A box plot of the perplexities of single answers, by task and group.

    Args:
        sheet: the groups of runs to show.
        answers: label of a group -> task -> the reference answers of all its seeds.
    """
    shown = [(group, label) for group, label in zip(sheet.groups, sheet.labels, strict=True) if label in answers]
    figure, axes = one_plot(sheet, len(sheet.tasks))
    width = 0.84 / len(shown)
    # Styles of all groups, so that each has the same shade as in the figure of scores.
    drawn = dict(zip(sheet.labels, styles([group.first.method for group in sheet.groups]), strict=True))
    for number, (_, label) in enumerate(shown):
        style = drawn[label]
        hatched: dict[str, Any] = {"hatch": style.hatch} if style.hatch else {}
        single = [single_perplexities(answers[label][task]) for task in sheet.tasks]
        parts = [[quantile(values, share) for share in SHARES] for values in single]
        names = ("whislo", "q1", "med", "q3", "whishi")
        axes.bxp(
            [dict(zip(names, values, strict=True)) for values in parts],
            positions=[place + (number - len(shown) / 2 + 0.5) * width for place in range(len(sheet.tasks))],
            widths=0.8 * width,
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": style.colour, "edgecolor": INK, "linewidth": 0.8, "label": label, **hatched},
            medianprops={"color": readable_on([part / 255 for part in parts_of(style.colour)]), "linewidth": 1.6},
            whiskerprops={"color": INK, "linewidth": 0.8},
            capprops={"color": INK, "linewidth": 0.8},
        )
    name_places(figure, axes, range(len(sheet.tasks)), sheet.tasks)
    axes.set(xlim=(-0.55, len(sheet.tasks) - 0.45), yscale="log", ylabel="perplexity of an answer")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.9), max(high, 2))
    logarithmic(axes)
    return finish(
        figure, axes, sheet, "perplexity", "boxes: half of the answers, whiskers: 5 to 95 %, line: median; logarithmic"
    )
