"""Finished runs side by side, made from their ``results.json`` alone: no answers, no model, no torch.

Runs that differ in nothing but their seed are a group, and a group is a row of the table. Whatever else differs keeps
runs apart, and is shown as a column.
"""

import json
import os
import re
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import OmegaConf
from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from see_lightning.config import NUISANCE, AdapterConfig, DataConfig, ModelConfig, OptimConfig, Refusal
from see_lightning.reporting.report import FORMULAS, ROUTING, number, page_template, print_table
from see_lightning.reporting.runs import METRICS, Run, dotted
from see_lightning.reporting.spreadsheets import csv_text
from see_lightning.reporting.svg import matrix_svg

MEANINGS = {**FORMULAS, "routing accuracy": f"{ROUTING['accuracy']}; higher is better"}
MATRICES = 24  # on a page, which would otherwise grow with every run
NOT_TYPED = {*NUISANCE, "trainer"} - {"ratio"}
NAMED = 10  # runs in a sentence or a cell, notices in a terminal, commands below a matrix
WIDEST = 24  # letters of a terminal's column
DETAILS = r"(benchmark|indicators|method|order|trainer)\."  # of which no terminal is told what is alike


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
        concerned = [run.settings for run in runs if _concerns(name, run)]
        if len({json.dumps(settings[name]) if name in settings else "" for settings in concerned}) > 1:
            yield name


def _concerns(name: str, run: Run) -> bool:
    """Whether a setting is not one of a task that the run does not learn."""
    return not name.startswith("benchmark.tasks.") or name.split(".")[2] in run.tasks


def setting(run: Run, name: str) -> str:
    """A setting for reading; an en dash where a run has none of that name."""
    return setting_text(run.settings[name]) if name in run.settings else "–"


def setting_text(value: Any) -> str:
    """A setting's value for reading."""
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


# ---------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        names: of what it holds; several settings if they differ between the same rows.
        cells: for reading, one for each group.
        values: to sort by, one for each group; None where nothing is known.
        is_number: whether cells are measured numbers, which stand on the right.
    """

    names: tuple[str, ...]
    cells: tuple[str, ...]
    values: tuple[float | str | None, ...]
    is_number: bool = False


def columns(comparison: Comparison) -> list[Column]:
    """The columns of the table: which run, its metrics, and one for each difference of settings.

    Settings that differ between the same rows are one difference. One that has the same value wherever there is any is
    none if it is there for the same rows as another; `alike` tells it.
    """
    groups = comparison.groups
    first = [group.first for group in groups]
    found = [Column((name,), texts, texts) for name, texts in _origins(first)]
    for name in METRICS:
        spreads = [group.metrics[name] for group in groups]
        show = _as_percent if name == "routing accuracy" else number
        cells = tuple(reading(one, len(group.runs), show) for one, group in zip(spreads, groups, strict=True))
        head = f"{name}, %" if name == "routing accuracy" else name
        found.append(Column((head,), cells, tuple(one.mean if one else None for one in spreads), is_number=True))
    counts = [len(group.runs) for group in groups]
    found.append(Column(("seeds",), tuple(map(str, counts)), tuple(counts), is_number=True))
    found.append(Column(("key",), keys := tuple(run.key for run in first), keys))
    if len({run.ratio for run in first} - {None}) > 1:
        found.append(Column(("ratio",), tuple(map(_ratio, first)), tuple(run.ratio for run in first)))
    return [*found, *(_settings_column(names, first) for names in differences(comparison))]


def _origins(runs: Sequence[Run]) -> Iterator[tuple[str, tuple[str, ...]]]:
    if len({run.order for run in runs}) > 1:
        yield "order", tuple(run.order for run in runs)
    yield "method", tuple(run.method for run in runs)


def _settings_column(names: tuple[str, ...], runs: Sequence[Run]) -> Column:
    texts = [[setting(run, name) for name in names if name in run.settings] for run in runs]
    cells = tuple(" · ".join(some) or "–" for some in texts)
    raw = [run.settings.get(names[0]) for run in runs]
    numeric = [isinstance(value, int | float) and not isinstance(value, bool) for value in raw]
    pairs = zip(raw, numeric, cells, strict=True)
    return Column(names, cells, tuple(value if is_number else cell for value, is_number, cell in pairs))


def differences(comparison: Comparison) -> list[tuple[str, ...]]:
    """The settings in which rows differ, those together that differ between the same rows."""
    runs = [group.first for group in comparison.groups]
    together: dict[tuple[int, ...], list[str]] = {}
    for name in (*comparison.settings, *comparison.further):
        texts = [setting(run, name) if name in run.settings else None for run in runs]
        together.setdefault(tuple(map(texts.index, texts)), []).append(name)

    def has(name: str) -> tuple[bool, ...]:
        return tuple(name in run.settings for run in runs)

    def varies(name: str) -> bool:
        return len({setting(run, name) for run in runs if name in run.settings}) > 1

    told = {has(names[0]) for names in together.values() if varies(names[0])}
    return [tuple(names) for names in together.values() if varies(names[0]) or has(names[0]) not in told]


def alike(comparison: Comparison) -> dict[str, dict[str, str]]:
    """The settings that are no column, by name, under the rows for which they hold: all (an empty name), or some.

    Settings of a task count where it is learned.
    """
    shown = {name for names in differences(comparison) for name in names} | {"order.name"}
    runs = [group.first for group in comparison.groups]
    if len({run.ratio for run in runs} - {None}) > 1:
        shown.add("method.ratio")
    parts: list[Callable[[Run], str]] = [
        lambda run: "",
        lambda run: run.order,
        lambda run: run.method,
        lambda run: f"{run.method} on {run.order}",
    ]
    found: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.settings if name not in shown):
        if name.endswith("_"):  # Hydra's own, such as _target_
            continue
        concerned = [run for run in runs if name in run.settings and _concerns(name, run)]
        for part in parts:
            values: dict[str, set[str]] = {}
            for run in concerned:
                values.setdefault(part(run), set()).add(setting(run, name))
            if all(len(some) == 1 for some in values.values()):
                for where, some in values.items():
                    found.setdefault(where, {})[name] = next(iter(some))
                break
    return dict(sorted(found.items()))


def _as_percent(share: float) -> str:
    return number(100 * share, 1)


# ---------------------------------------------------------------------------------------------- terminal


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a row for each group, what is alike in all of them, and the notices.

    A terminal that is too narrow gets several tables, one below the other, with the same rows.
    """
    runs = sum(len(group.runs) for group in comparison.groups)
    orders = ", ".join(dict.fromkeys(group.first.order for group in comparison.groups))
    told = f"{orders} · finished runs: {runs:,}, groups of one setting: {len(comparison.groups):,}"
    console.print(Text(told, style="bold"), soft_wrap=not console.is_terminal)
    groups = {"adapter": AdapterConfig, "data": DataConfig, "model": ModelConfig, "optim": OptimConfig}
    plain = dict(dotted({name: OmegaConf.to_container(OmegaConf.structured(kind)) for name, kind in groups.items()}))
    for where, settings in alike(comparison).items():
        words = [
            f"{name} {value}"
            for name, value in settings.items()
            if name in (*comparison.settings, *comparison.further)
            or (not re.match(DETAILS, name) and value != setting_text(plain.get(name)))
        ]
        if words:
            told = f" alike {f'in {where}' if where else 'wherever set'}: {', '.join(words)}"
            console.print(Text(told, style="dim"), soft_wrap=not console.is_terminal)
    for some in _blocks(columns(comparison), console.width if console.is_terminal else None):
        table = Table(box=box.SIMPLE_HEAD)
        for column in some:  # a long name is broken at its dots
            side: JustifyMethod = "right" if column.is_number else "left"
            table.add_column(_terminal_head(column), justify=side, overflow="fold", max_width=WIDEST)
        for cells in zip(*(column.cells for column in some), strict=True):
            table.add_row(*map(Text, cells))
        print_table(table, console)
    console.print(Text(" mean ± sample standard deviation over seeds   – not measured"), soft_wrap=True)
    for notice in comparison.notices[:NAMED]:
        console.print(Text(f"note: {notice}"), soft_wrap=True)
    if len(comparison.notices) > NAMED:
        console.print(Text(f"note: {len(comparison.notices) - NAMED:,} more notes stand on the page"), soft_wrap=True)


def _terminal_head(column: Column) -> str:
    return ",\n".join(name.replace(".", ".\n") for name in column.names)


def _blocks(every: Sequence[Column], width: int | None) -> list[list[Column]]:
    """Columns in tables that a terminal has room for, each begun by those that say which run it is."""
    lead = [column for column in every if column.names[0] in ("order", "method")]
    key = next(column for column in every if column.names == ("key",))
    blocks = [lead]
    for column in every[len(lead) :]:
        block = [*blocks[-1], column]
        if width is not None and _width(block) > width and len(blocks[-1]) > len(lead):
            again = [*lead, key] if column is not key else lead
            block = [*again, column]
            blocks.append(again)
        blocks[-1] = block
    return blocks


def _width(some: Sequence[Column]) -> int:
    """Letters in a line of a table: two blanks and a border for each column."""
    texts = [[*_terminal_head(column).splitlines(), *column.cells] for column in some]
    return sum(min(WIDEST, max(map(len, one))) + 3 for one in texts) + 1


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
    return csv_text(lines)


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
    return csv_text(lines)


def _origin(group: Group, comparison: Comparison) -> list[Any]:
    run = group.first
    settings = (setting(run, name) for name in (*comparison.settings, *comparison.further))
    return [run.order, run.method, run.ratio, *settings, run.model, run.key]


# ---------------------------------------------------------------------------------------------- page


def render_comparison(comparison: Comparison, command: str, folder: Path = Path()) -> str:
    """One self-contained page: no network, and nothing that is not there without its script, which sorts the table.

    Args:
        comparison: what to show; matrices for the first `MATRICES` groups.
        command: that made the page.
        folder: where the page will lie, from which it links to the runs' own.
    """
    shown = comparison.groups[:MATRICES]
    every = columns(comparison)
    return page_template("comparison.html.j2").render(
        title=f"Comparison of {', '.join(dict.fromkeys(group.first.order for group in comparison.groups))}",
        runs=sum(len(group.runs) for group in comparison.groups),
        models=list(dict.fromkeys(group.first.model for group in comparison.groups)),
        heads=[
            (_breakable(", ".join(one.names)), MEANINGS.get(one.names[0].removesuffix(", %"), ""), one.is_number)
            for one in every
        ],
        rows=[
            [(one.names[0], one.cells[place], one.values[place], one.is_number) for one in every]
            for place in range(len(comparison.groups))
        ],
        links=[[(run.seed, _link(run, folder)) for run in group.runs] for group in comparison.groups],
        alike=alike(comparison),
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


def _link(run: Run, folder: Path) -> str:
    """The address of a run's report from a page in a folder; of its results where there is no report."""
    report = run.path.with_name("report.html")
    target = report if run.is_at_home and report.exists() else run.path
    return quote(Path(os.path.relpath(target, folder)).as_posix())


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
