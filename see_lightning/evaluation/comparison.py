"""Finished runs side by side, made from their ``results.json`` alone: no answers, no model, no torch.

Runs that differ in nothing but their seed are a group, and a group is a row of the table. Whatever else differs keeps
runs apart, and is shown as a column.
"""

import csv
import io
import json
import re
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from see_lightning.config import NUISANCE, Refusal
from see_lightning.evaluation.drawings import matrix_svg
from see_lightning.evaluation.finished import METRICS, Run
from see_lightning.evaluation.report import FORMULAS, ROUTING, number, page_template, print_table

MEANINGS = {**FORMULAS, "routing accuracy": f"{ROUTING['accuracy']}; higher is better"}
MATRICES = 24  # on a page, which would otherwise grow with every run
NOT_TYPED = {*NUISANCE, "trainer"} - {"ratio"}
NAMED = 10  # runs in a sentence, notices in a terminal, commands below a matrix


# ---------------------------------------------------------------------------------------------- grouping


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n − 1) of n values; the latter None if there is but one."""

    mean: float
    deviation: float | None
    n: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """What is known of some seeds; None among the values is left out, and is returned if nothing else is there.

    >>> spread([80.0, None, 82.0])
    Spread(mean=81.0, deviation=1.4142135623730951, n=2)
    >>> spread([80.0]), spread([None])
    (Spread(mean=80.0, deviation=None, n=1), None)
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Args:
        runs: by their seeds.
        apart: names of settings in which it differs from groups of the same order, method and ratio.
    """

    runs: tuple[Run, ...]
    apart: tuple[str, ...]

    @property
    def first(self) -> Run:
        """One for what all of them share."""
        return self.runs[0]

    @cached_property
    def metrics(self) -> dict[str, Spread | None]:
        """Each of `METRICS` over the seeds."""
        return {name: spread(run.metrics.get(name) for run in self.runs) for name in METRICS}

    def matrix(self) -> list[list[Spread | None]]:
        """The results matrix over the seeds."""
        matrices = [run.matrix for run in self.runs]
        return [[spread(cell) for cell in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """What is shown.

    Args:
        groups: in the order of their rows.
        settings: names of those that tell groups of one order, method and ratio apart.
        further: names of those in which, besides, groups of one order differ.
        notices: what a reader must know.
    """

    groups: tuple[Group, ...]
    settings: tuple[str, ...]
    further: tuple[str, ...]
    notices: tuple[str, ...]


def compare(runs: Iterable[Run], unfinished: Sequence[Path] = ()) -> Comparison:
    """Group runs, in an order that does not depend on theirs.

    A file with the very content of another is a copy of it, and counts once.

    Args:
        runs: at least one.
        unfinished: directories of runs that are not compared.

    Raises:
        Refusal: there is no run, or two that ought to be the same differ.
    """
    contents: dict[str, Run] = {}
    seeds: dict[tuple[str, ...], dict[int, Run]] = {}
    copies = []
    for run in sorted(runs, key=lambda run: (not run.is_at_home, str(run.path))):
        original = contents.setdefault(run.content, run)
        if original is not run:
            copies.append(f"{run.path} of {original.path}")
            continue
        group = seeds.setdefault((run.order, run.method, run.key, run.numbers), {})
        other = group.setdefault(run.seed, run)
        if other is not run:
            raise Refusal(
                f"{other.path} and {run.path} are both seed {run.seed} of {run.method} on {run.order} with key {run.key}, and"
                f" are not the same; give one of them."
            )
    if not seeds:
        raise Refusal(
            f"no finished run was found{f'; not finished yet: {counted(unfinished)}' if unfinished else ''}. Give folders in"
            f" which a results.json lies, at any depth, such as runs/superni_5."
        )
    groups, further = _tell_apart([tuple(group[seed] for seed in sorted(group)) for group in seeds.values()])
    settings = tuple(sorted({name for group in groups for name in group.apart}))
    groups.sort(key=lambda group: _place(group, settings))
    notices = []
    if unfinished:
        notices.append(f"not finished, so not counted: {counted(unfinished)}")
    if copies:
        notices.append(f"copies, counted once: {counted(copies)}")
    notices += [notice for group in groups for notice in _mixed(group)]
    return Comparison(tuple(groups), settings, tuple(sorted(further.difference(settings))), tuple(notices))


def _tell_apart(groups: Iterable[tuple[Run, ...]]) -> tuple[list[Group], set[str]]:
    """The groups, and the settings in which those of one order differ, without those of a method itself."""
    ordered: dict[str, list[Run]] = {}
    alike: dict[tuple[str, str, float | None], list[tuple[Run, ...]]] = {}
    for runs in groups:
        ordered.setdefault(runs[0].order, []).append(runs[0])
        alike.setdefault((runs[0].order, runs[0].method, runs[0].ratio), []).append(runs)
    told = []
    for some in alike.values():
        apart = tuple(sorted(_differing([runs[0] for runs in some])))
        told += [Group(runs, apart) for runs in some]
    found = {name for firsts in ordered.values() for name in _differing(firsts) if not name.startswith("method.")}
    return told, found


def _differing(runs: Sequence[Run]) -> Iterator[str]:
    """The settings that are not the same in all runs; a setting of a task matters where the task is learned."""
    for name in {name for run in runs for name in run.settings}:
        task = name.split(".")[2] if name.startswith("benchmark.tasks.") else None
        concerned = [run.settings for run in runs if task is None or task in run.tasks]
        if len({json.dumps(settings[name]) if name in settings else "" for settings in concerned}) > 1:
            yield name


def setting(run: Run, name: str) -> str:
    """A setting for reading; an en dash where a run has none of that name."""
    if name not in run.settings:
        return "–"
    value = run.settings[name]
    if isinstance(value, list) and value:
        return ", ".join(item if isinstance(item, str) else json.dumps(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _place(group: Group, settings: Sequence[str]) -> tuple[Any, ...]:
    """By what rows are sorted: order, method, ratio, settings, and numbers by their size."""
    run = group.first
    values = [run.ratio, *(run.settings.get(name) for name in settings)]
    sizes = [(1, value, "") if isinstance(value, int | float) else (0, 0, json.dumps(value)) for value in values]
    return (run.order, run.method, sizes, run.key, run.numbers)


def _mixed(group: Group) -> Iterator[str]:
    """What differs between the runs of a group though nothing should."""
    for name in dict.fromkeys(name for run in group.runs for name in run.made):
        values: dict[str, list[int]] = {}
        for run in group.runs:
            values.setdefault(run.made.get(name, "unknown"), []).append(run.seed)
        if len(values) > 1:
            told = ", ".join(f"{value} ({_seeds(seeds)})" for value, seeds in values.items())
            yield f"{_short_label(group)} · {group.first.key} mixes runs with different {name}: {told}"


def counted(things: Sequence[object]) -> str:
    """How many there are, and the first of them by name."""
    rest = f" and {len(things) - NAMED:,} more" if len(things) > NAMED else ""
    return f"{len(things):,} ({', '.join(map(str, things[:NAMED]))}{rest})"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


# ---------------------------------------------------------------------------------------------- words and numbers


def label(group: Group) -> str:
    """One line that tells a group from others."""
    told = [f"{name} {setting(group.first, name)}" for name in group.apart]
    return " · ".join([_short_label(group), *told, group.first.key])


def _short_label(group: Group) -> str:
    run = group.first
    return f"{run.method} on {run.order}" + ("" if run.ratio is None else f" · ratio {_ratio(run)}")


def _ratio(run: Run) -> str:
    return "–" if run.ratio is None else f"{run.ratio:.15g}"


def typed(group: Group) -> list[str]:
    """The words of a group's command, without those that change no number or are counted, such as the seed."""
    words = shlex.split(group.first.command)[2:]
    return [word for word in words if re.split(r"[.=]", word)[0] not in NOT_TYPED]


def reading(value: Spread | None, seeds: int, show: Callable[[float], str] = number) -> str:
    """Mean ± standard deviation, and of how many if that is not all seeds.

    >>> reading(Spread(81.0, 1.4142, 2), seeds=2), reading(Spread(81.0, 1.4142, 2), seeds=3)
    ('81.00 ± 1.41', '81.00 ± 1.41 (n = 2)')
    >>> reading(Spread(-3.5, None, 1), seeds=1), reading(None, seeds=3)
    ('−3.50', '–')
    """
    if value is None:
        return "–"
    deviation = "" if value.deviation is None else f" ± {show(value.deviation)}"
    return show(value.mean) + deviation + ("" if value.n == seeds else f" (n = {value.n})")


def heads(comparison: Comparison) -> tuple[list[str], list[str], list[str]]:
    """The names of the columns: what a row is, its numbers, and further settings."""
    words = ["order", "method", "ratio", *comparison.settings, "key"]
    return words, ["seeds", *METRICS[:-1], "routing accuracy, %"], list(comparison.further)


def cells(group: Group, comparison: Comparison) -> tuple[list[str], list[str], list[str]]:
    """The texts of a row, by the columns of `heads`."""
    run, seeds = group.first, len(group.runs)
    words = [run.order, run.method, _ratio(run), *(setting(run, name) for name in comparison.settings), run.key]
    metrics = [
        reading(value, seeds, (lambda share: number(100 * share, 1)) if name == "routing accuracy" else number)
        for name, value in group.metrics.items()
    ]
    return words, [str(seeds), *metrics], [setting(run, name) for name in comparison.further]


# ---------------------------------------------------------------------------------------------- terminal


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a row for each group, and the notices."""
    runs = sum(len(group.runs) for group in comparison.groups)
    console.print(Text(f"finished runs: {runs:,}, groups of one setting: {len(comparison.groups):,}", style="bold"))
    table = Table(box=box.SIMPLE_HEAD)
    words, values, further = heads(comparison)
    for name in (*words, *values, *further):  # a long one is broken at its dots
        side: JustifyMethod = "right" if name in values else "left"
        table.add_column(name.replace(".", ".\n"), justify=side, overflow="fold", max_width=24)
    for group in comparison.groups:
        table.add_row(*(Text(cell) for some in cells(group, comparison) for cell in some))
    print_table(table, console)
    console.print(Text(" mean ± sample standard deviation over seeds   – not measured"), soft_wrap=True)
    for notice in comparison.notices[:NAMED]:
        console.print(Text(f"note: {notice}"), soft_wrap=True)
    if len(comparison.notices) > NAMED:
        console.print(Text(f"note: {len(comparison.notices) - NAMED:,} more notes stand on the page"), soft_wrap=True)


# ---------------------------------------------------------------------------------------------- spreadsheets


def groups_csv(comparison: Comparison) -> str:
    """A line for each group, in which each metric has its ``_mean``, ``_std`` and ``_n``; empty where there is none."""
    names = [f"{name.replace(' ', '_')}_{part}" for name in METRICS for part in ("mean", "std", "n")]
    lines: list[list[Any]] = [
        ["order", "method", "ratio", *comparison.settings, *comparison.further, "model", "key", "runs", "seeds", *names]
    ]
    for group in comparison.groups:
        values: list[Any] = []
        for value in group.metrics.values():
            values += [value.mean, value.deviation, value.n] if value else [None, None, 0]
        seeds = " ".join(str(run.seed) for run in group.runs)
        lines.append([*_origin(group, comparison), len(group.runs), seeds, *values])
    return _csv(lines)


def runs_csv(comparison: Comparison) -> str:
    """A line for each run: its metrics, and in ``score_<task>`` its scores after the last task; empty where none is."""
    tasks = list(dict.fromkeys(task for group in comparison.groups for task in group.first.tasks))
    names = [name.replace(" ", "_") for name in METRICS]
    head = ["order", "method", "ratio", *comparison.settings, *comparison.further, "model", "key", "seed", *names]
    lines: list[list[Any]] = [[*head, *(f"score_{task}" for task in tasks), "commit", "path", "command"]]
    for group in comparison.groups:
        for run in group.runs:
            last = dict(zip(run.tasks, run.matrix[-1], strict=True))
            values = [*map(run.metrics.get, METRICS), *map(last.get, tasks)]
            origin = [*_origin(group, comparison), run.seed]
            lines.append([*origin, *values, run.made["commit"], run.path, run.command])
    return _csv(lines)


def _origin(group: Group, comparison: Comparison) -> list[Any]:
    run = group.first
    settings = (setting(run, name) for name in (*comparison.settings, *comparison.further))
    return [run.order, run.method, run.ratio, *settings, run.model, run.key]


def _csv(lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


# ---------------------------------------------------------------------------------------------- page


def render_comparison(comparison: Comparison, command: str) -> str:
    """One self-contained page: no network, no script, the same bytes for the same arguments.

    Args:
        comparison: what to show; matrices for the first `MATRICES` groups.
        command: that made the page.
    """
    shown = comparison.groups[:MATRICES]
    words, values, further = heads(comparison)
    return page_template("comparison.html.j2").render(
        title=f"Comparison of {', '.join(dict.fromkeys(group.first.order for group in comparison.groups))}",
        runs=sum(len(group.runs) for group in comparison.groups),
        models=list(dict.fromkeys(group.first.model for group in comparison.groups)),
        words=[_breakable(name) for name in words],
        values=[(name, MEANINGS.get(name.removesuffix(", %"), "")) for name in values],
        further=[_breakable(name) for name in further],
        rows=[cells(group, comparison) for group in comparison.groups],
        # The word joiner keeps a[t][j] on one line.
        meanings={name: meaning.replace("][", "]\u2060[") for name, meaning in MEANINGS.items()},
        matrices=[_figure(place, group) for place, group in enumerate(shown)],
        column=max(2 * len(group.first.tasks) + 10 for group in shown),
        notices=comparison.notices,
        command=command,
        named=NAMED,
    )


def _breakable(name: str) -> str:
    """The name of a setting, with an invisible place after each dot where a line may end."""
    return name.replace(".", ".\u200b")


def _figure(place: int, group: Group) -> dict[str, Any]:
    """What the page shows of a group besides its row."""
    from markupsafe import Markup

    matrix = group.matrix()
    means = [[cell.mean if cell else None for cell in row] for row in matrix]
    deviations = [[cell.deviation if cell else None for cell in row] for row in matrix] if len(group.runs) > 1 else None
    return {
        "head": _short_label(group),
        "label": f"{label(group)} · {_seeds([run.seed for run in group.runs])}",
        "tasks": group.first.tasks,
        "svg": Markup(matrix_svg(group.first.tasks, means, deviations, name=f"matrix-{place}")),
        "rows": [[reading(cell, len(group.runs)) for cell in row] for row in matrix],
        "commands": [run.command for run in group.runs],
    }
