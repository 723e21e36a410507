"""The figures of SEE's paper, drawn from what runs left on disk: no model, no torch.

Scores by task after the last one (its figure 3), the perplexity of reference answers (figure 5), and the latency of asking
experts; besides, what experts score on each other's tasks, and what is kept. Standalone files on a white ground; beside each
picture goes a table with every number in it.
"""

import csv
import io
import math
import re
import shlex
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from see_lightning.config import Refusal
from see_lightning.evaluation.comparison import Comparison, Group, Run, Spread, setting, spread, typed
from see_lightning.evaluation.drawings import draw_cells, readable_on, short, standalone_svg
from see_lightning.evaluation.plots import (
    COLOURS,
    INK,
    OTHERS,
    colours,
    csv_text,
    frame,
    legend,
    logarithmic,
    name_places,
    parts_of,
)
from see_lightning.evaluation.report import number as readable
from see_lightning.evaluation.transfer import Transfer, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Shares of answers, in percent, that lie below the parts of a box: whisker, edge, line, edge, whisker.
SHARES = (5, 25, 50, 75, 95)
LATENCY = ("sweep", "contender", "experts", "tokens", "median_ms", "min_ms", "max_ms")

Answers = Sequence[tuple[float, int]]  # negative log-likelihood in nats, and tokens


@dataclass(frozen=True)
class Sheet:
    """Groups that one figure shows: of one order and the same tasks.

    Args:
        name: for its files.
        order, tasks: of all groups.
        groups: in the order of their bars.
        labels: of the groups.
    """

    name: str
    order: str
    tasks: tuple[str, ...]
    groups: tuple[Group, ...]
    labels: tuple[str, ...]


def sheets(comparison: Comparison) -> list[Sheet]:
    """A sheet for each order; several, numbered, where runs of one order have different tasks."""

    def same(group: Group) -> tuple[str, tuple[str, ...]]:
        return group.first.order, group.first.tasks

    found: dict[str, Sheet] = {}
    for (order, tasks), some in groupby(sorted(comparison.groups, key=same), key=same):
        stem = re.sub(r"[^\w.-]", "_", order)
        name, number = stem, 1
        while name in found:
            number += 1
            name = f"{stem}_{number}"
        groups = sorted(some, key=lambda group: _rank(group.first))  # stable: within a method as they were compared
        found[name] = Sheet(name, order, tasks, tuple(groups), tuple(_labels(groups)))
    return list(found.values())


def _rank(run: Run) -> tuple[int, str]:
    """Methods from the floor to SEE, then all others by name."""
    known = list(COLOURS)
    return (known.index(run.method), "") if run.method in known else (len(known), run.method)


def _labels(groups: Sequence[Group]) -> list[str]:
    """Method and ratio; where some share these, what not all of them typed; and of one command, the settings that differ."""
    labels = []
    for group in groups:
        alike = [other for other in groups if _short(other.first) == _short(group.first)]
        shared = set.intersection(*(set(_typed(other)) for other in alike))
        same = [other.first for other in alike if _typed(other) == _typed(group)]
        # The tasks are the same within a sheet.
        apart = [
            f"{name} {setting(group.first, name)}" for name in group.apart
            if name != "order.tasks" and len({str(setting(run, name)) for run in same}) > 1
        ]  # fmt: skip
        own = shlex.join(word for word in _typed(group) if word not in shared)
        told = own if len(same) == 1 else ", ".join(apart)
        labels.append(", ".join(filter(None, [_short(group.first), told if len(alike) > 1 else ""])))
    return [
        f"{label}, {group.first.key}" if labels.count(label) > 1 else label
        for label, group in zip(labels, groups, strict=True)
    ]


def _short(run: Run) -> str:
    return run.method if run.ratio is None else f"{run.method} {100 * run.ratio:g} %"


def _typed(group: Group) -> list[str]:
    return [word for word in typed(group) if not word.startswith(("method=", "ratio="))]


# ---------------------------------------------------------------------------------------------- scores by task


def final_scores(group: Group) -> list[Spread | None]:
    """The score after the last task, over the seeds: of every task, and their mean."""
    rows = [[*run.matrix[-1], mean(run.matrix[-1])] for run in group.runs]
    return [spread(column) for column in zip(*rows, strict=True)]


def tasks_csv(sheet: Sheet) -> str:
    """A line for each group and task, and one for the mean over tasks, whose ``task`` is empty."""
    lines: list[Sequence[Any]] = [[*ORIGIN, "seeds", "score_mean", "score_std", "score_n"]]
    for group, label in zip(sheet.groups, sheet.labels, strict=True):
        seeds = " ".join(str(run.seed) for run in group.runs)
        for task, score in zip((*sheet.tasks, ""), final_scores(group), strict=True):
            values = [score.mean, score.deviation, score.n] if score else [None, None, 0]
            lines.append([*_origin(sheet, group, label), task, seeds, *values])
    return csv_text(lines)


def tasks_svg(sheet: Sheet) -> str:
    """Bars by task, one for each group, and the mean over tasks; lines show the standard deviation over seeds."""
    count, places = len(sheet.groups), [*range(len(sheet.tasks)), len(sheet.tasks) + 0.35]
    figure, axes = _axes(sheet, len(places))
    width = 0.84 / count
    shades = colours([group.first.method for group in sheet.groups])
    several = False
    for number, (group, label) in enumerate(zip(sheet.groups, sheet.labels, strict=True)):
        left = [place + (number - count / 2 + 0.5) * width for place in places]
        scores = list(zip(left, final_scores(group), strict=True))
        known = [(x, score) for x, score in scores if score]
        axes.bar(
            [x for x, _ in known], [s.mean for _, s in known], 0.92 * width, color=shades[number], label=label, zorder=2
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
    return _finish(figure, axes, sheet, "tasks", "lines: standard deviation over seeds" if several else "")


# ---------------------------------------------------------------------------------------------- perplexity


def quantile(ordered: Sequence[float], percent: float) -> float:
    """The value below which so many percent of values lie, with a straight line between neighbours.

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


def perplexity_csv(sheet: Sheet, answers: Mapping[str, Mapping[str, Answers]]) -> str:
    """A line for each group and task: the perplexity of all its tokens, and the distribution of that of single answers.

    Args:
        sheet: whose groups are shown.
        answers: label of a group -> task -> the reference answers of all its seeds.
    """
    names = ["min", *(f"p{share}" for share in SHARES), "max"]
    lines: list[Sequence[Any]] = [[*ORIGIN, "answers", "tokens", "perplexity", *names]]
    for group, label in zip(sheet.groups, sheet.labels, strict=True):
        for task in sheet.tasks if label in answers else ():
            some = answers[label][task]
            tokens = sum(count for _, count in some)
            whole = math.exp(math.fsum(nll for nll, _ in some) / tokens)
            single = single_perplexities(some)
            parts = [quantile(single, share) for share in (0, *SHARES, 100)]
            lines.append(
                [*_origin(sheet, group, label), task, len(some), tokens, *(round(v, 6) for v in (whole, *parts))]
            )
    return csv_text(lines)


def single_perplexities(answers: Answers) -> list[float]:
    """Of each answer by itself, the smallest first."""
    return sorted(math.exp(nll / tokens) for nll, tokens in answers)


def perplexity_svg(sheet: Sheet, answers: Mapping[str, Mapping[str, Answers]]) -> str:
    """Boxes of single answers' perplexities by task, one for each group; arguments as in `perplexity_csv`."""
    shown = [(group, label) for group, label in zip(sheet.groups, sheet.labels, strict=True) if label in answers]
    figure, axes = _axes(sheet, len(sheet.tasks))
    width = 0.84 / len(shown)
    # Of all groups, so that a method has the colour that it has among the scores.
    shades = dict(zip(sheet.labels, colours([group.first.method for group in sheet.groups]), strict=True))
    for number, (_, label) in enumerate(shown):
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
            boxprops={"facecolor": shades[label], "edgecolor": INK, "linewidth": 0.8, "label": label},
            medianprops={"color": readable_on([part / 255 for part in parts_of(shades[label])]), "linewidth": 1.6},
            whiskerprops={"color": INK, "linewidth": 0.8},
            capprops={"color": INK, "linewidth": 0.8},
        )
    name_places(figure, axes, range(len(sheet.tasks)), sheet.tasks)
    axes.set(xlim=(-0.55, len(sheet.tasks) - 0.45), yscale="log", ylabel="perplexity of an answer")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.9), max(high, 2))
    logarithmic(axes)
    return _finish(
        figure, axes, sheet, "perplexity", "boxes: half of the answers, whiskers: 5 to 95 %, line: median; logarithmic"
    )


# ---------------------------------------------------------------------------------------------- transfer

#: Label of a group -> transfer matrices by seed.
Transfers = Mapping[str, Mapping[int, Transfer]]


def transfer_csv(sheet: Sheet, transfers: Transfers) -> str:
    """A line for each run, voice and task, and whether the voice is the task's own expert.

    Args:
        sheet: whose groups are shown.
        transfers: of their runs that were measured.
    """
    lines: list[Sequence[Any]] = [[*ORIGIN, "seed", "size", "voice", "own", "score"]]
    for group, label in zip(sheet.groups, sheet.labels, strict=True):
        for seed, transfer in transfers.get(label, {}).items():
            lines += [
                [
                    *_origin(sheet, group, label),
                    task,
                    seed,
                    transfer.size,
                    voice,
                    int(transfer.own[task] == voice),
                    score,
                ]
                for voice, row in transfer.scores.items()
                for task, score in row.items()
            ]
    return csv_text(lines)


def transfer_svg(sheet: Sheet, transfers: Transfers) -> str:
    """A heat map for each run, one below the other, so that they can be read on a narrow screen; as in `transfer_csv`.

    Tasks are measured by scores of their own, so a cell is shaded by its share of the best in its column.
    """
    from matplotlib.figure import Figure

    shown = [
        (" · ".join(filter(None, [label, f"seed {seed}", sheet.order, group.first.model, transfer.queries])), transfer)
        for group, label in zip(sheet.groups, sheet.labels, strict=True)
        for seed, transfer in transfers.get(label, {}).items()
    ]
    width = max(4.2, 1.3 + 0.52 * len(sheet.tasks))
    letters = int(10.5 * width)  # that fit a line
    heads = [textwrap.wrap(head, letters) for head, _ in shown]
    names = 0.65 if max(map(len, sheet.tasks)) > 6 else 0.3  # room for what stands above a map
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
        voices = list(transfer.scores)
        own = {(voices.index(transfer.own[task]), column) for column, task in enumerate(sheet.tasks)}
        texts = [[f"{score:.1f}" for score in row] for row in rows]
        draw_cells(
            axes, [short(voice) for voice in voices], sheet.tasks, texts, shades, own, ink=INK, muted=INK, size=10
        )
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
    told = f"Who answers (rows) each task's queries (columns) of {sheet.order}"
    return standalone_svg(figure, f"{sheet.name}-transfer", told)


# ---------------------------------------------------------------------------------------------- capacity


def has_capacity(sheet: Sheet) -> bool:
    """Whether any run says what it keeps."""
    return any(run.storage for group in sheet.groups for run in group.runs)


def stored_parts(run: Run) -> list[str]:
    """What a run keeps, by name; the pool is what it is measured by."""
    return [part for part in run.storage if part != "pool"]


def grown(group: Group) -> list[tuple[int, Spread, Spread, dict[str, float]]]:
    """After each stage: how many tasks are learned, their mean score, what is kept of them in MiB, and its parts.

    Over the seeds that say what they keep; empty if none does.
    """
    runs, found = [run for run in group.runs if run.storage], []
    stages = min((len(run.storage["weights"]) for run in runs), default=0)
    tasks = len(group.first.tasks)
    for stage in range(stages):
        # A joint method learns all tasks in one stage, of which the last row tells.
        learned = stage + 1 if stages == tasks else tasks
        parts = {
            part: statistics.fmean(run.storage[part][stage] / 2**20 for run in runs) for part in stored_parts(runs[0])
        }
        kept = spread([sum(run.storage[part][stage] for part in stored_parts(run)) / 2**20 for run in runs])
        score = spread([mean(run.matrix[learned - 1][:learned]) for run in runs])
        if score and kept:
            found.append((learned, score, kept, parts))
    return found


def capacity_csv(sheet: Sheet) -> str:
    """A line for each group and number of tasks learned."""
    every = dict.fromkeys(part for group in sheet.groups for run in group.runs for part in stored_parts(run))
    lines: list[Sequence[Any]] = [[*ORIGIN[:-1], "learned", "score", "mib", *(f"{part}_mib" for part in every)]]
    for group, label in zip(sheet.groups, sheet.labels, strict=True):
        for learned, score, kept, parts in grown(group):
            sizes = [None if part not in parts else round(parts[part], 6) for part in every]
            lines.append([*_origin(sheet, group, label), learned, round(score.mean, 4), round(kept.mean, 6), *sizes])
    return csv_text(lines)


def capacity_svg(sheet: Sheet) -> str:
    """The mean score of the tasks learned so far over what is kept of them, a point for each task, the last one larger."""
    figure, axes = _axes(sheet, 8)
    shades = colours([group.first.method for group in sheet.groups])
    for shade, group, label in zip(shades, sheet.groups, sheet.labels, strict=True):
        points = [(kept.mean, score.mean) for _, score, kept, _ in grown(group)]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=shade, marker="o", markersize=4, linewidth=1.4, label=label)
            axes.plot(x[-1:], y[-1:], color=shade, marker="o", markersize=9)
    axes.set(ylabel="mean score of the tasks learned so far", ylim=(0, 100))
    return _finish(figure, axes, sheet, "capacity", "MiB kept after each task; the last one large")


# ---------------------------------------------------------------------------------------------- latency


def latency_rows(text: str, name: str) -> list[dict[str, str]]:
    """The lines that ``benchmarks/route.py --csv`` wrote.

    Args:
        text: of the file.
        name: of the file, for the refusal.
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
    """What the picture shows, a line for each point."""
    return csv_text([LATENCY, *([row[column] for column in LATENCY] for row in rows)])


def latency_figure(rows: Sequence[Mapping[str, object]]) -> "Figure":
    """Time to an answer's first token over the number of experts asked, and over the prompt's length if that was measured.

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
    palette = [*COLOURS.values(), *OTHERS]
    order = [palette[place] for place in (5, 1, 3, 4, 6, 2, 0, 7, 8)]
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


# ---------------------------------------------------------------------------------------------- drawing

ORIGIN = ("order", "method", "ratio", "label", "key", "task")


def _origin(sheet: Sheet, group: Group, label: str) -> list[Any]:
    return [sheet.order, group.first.method, group.first.ratio, label, group.first.key]


def _axes(sheet: Sheet, places: int) -> "tuple[Figure, Axes]":
    """One plot, as wide as its groups side by side need to be."""
    from matplotlib.figure import Figure

    count = len(sheet.groups)
    figure = Figure(figsize=(min(24, max(6.4, 1 + places * max(0.7, 0.3 + 0.14 * count))), 4.4), layout="constrained")
    axes = figure.subplots()
    frame(axes)
    return figure, axes


def _finish(figure: "Figure", axes: "Axes", sheet: Sheet, kind: str, note: str) -> str:
    """Head, legend and note of a sheet's figure, as a file."""
    seeds = sorted({len(group.runs) for group in sheet.groups})
    models = ", ".join(dict.fromkeys(group.first.model for group in sheet.groups))
    told = (
        f"{sheet.order} · {models} · {' to '.join(map(str, {seeds[0]: 0, seeds[-1]: 0}))} seed{'s' * (seeds[-1] > 1)}"
    )
    axes.set_title(told, fontsize=9, color=INK, loc="left")
    axes.set_xlabel(note, fontsize=8, color="#555555", loc="left")
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))  # a box of each task has the label
    shown = list(dict.fromkeys(labels))
    legend(figure, [first[label] for label in shown], shown)
    return standalone_svg(figure, f"{sheet.name}-{kind}", f"{kind} of {told}")
