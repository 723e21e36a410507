"""Groups of finished runs, from their ``results.json`` alone: no answers, no model, no torch.

Runs that differ only in their seed are a group, and a group is a row of the table. Any other setting in which runs differ
puts them into different groups, and is a column.
"""

import json
import re
import shlex
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from see_lightning.config.identity import NUISANCE
from see_lightning.errors import Refusal
from see_lightning.reporting.runs import METRICS, Run

NOT_TYPED = {*NUISANCE, "trainer"} - {"ratio"}
NAMED = 10  # runs in a sentence or a cell, notices in a terminal, commands below a matrix


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation (n − 1) of n values; the deviation of one value is None."""

    mean: float
    deviation: float | None
    n: int


def spread(values: Iterable[float | None]) -> MeanStd | None:
    """Mean and standard deviation of the values that are not None; None if there is no such value.

    >>> spread([80.0, None, 82.0])
    MeanStd(mean=81.0, deviation=1.4142135623730951, n=2)
    >>> spread([80.0]), spread([None])
    (MeanStd(mean=80.0, deviation=None, n=1), None)
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    return MeanStd(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed.

    Args:
        runs: by their seeds.
        apart: settings in which it differs from groups of the same order, method and ratio.
    """

    runs: tuple[Run, ...]
    apart: tuple[str, ...]

    @property
    def first(self) -> Run:
        """The first run, for the settings that all runs share."""
        return self.runs[0]

    @cached_property
    def metrics(self) -> dict[str, MeanStd | None]:
        """Each of `METRICS`, and the other metrics that a run has, over the seeds."""
        names = dict.fromkeys((*METRICS, *(name for run in self.runs for name in run.metrics)))
        return {name: spread(run.metrics.get(name) for run in self.runs) for name in names}

    def matrix(self) -> list[list[MeanStd | None]]:
        """The results matrix over the seeds."""
        matrices = [run.matrix for run in self.runs]
        return [[spread(cell) for cell in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """The content of a comparison.

    Args:
        groups: in the order of their rows.
        settings: names of settings in which groups of one order, method and ratio differ.
        further: names of other settings in which groups of one order differ.
        notices: on unfinished runs, copies and mixed groups.
    """

    groups: tuple[Group, ...]
    settings: tuple[str, ...]
    further: tuple[str, ...]
    notices: tuple[str, ...]

    @cached_property
    def measured(self) -> tuple[str, ...]:
        """`METRICS`, and the other metrics that some group has a value of, by name."""
        found = {name for group in self.groups for name, value in group.metrics.items() if value}
        return (*METRICS, *sorted(found.difference(METRICS)))


def compare(runs: Iterable[Run], unfinished: Sequence[Path] = ()) -> Comparison:
    """Group runs, in an order that does not depend on the order of the arguments.

    A file with the same content as another is a copy, and counts once.

    Args:
        runs: at least one.
        unfinished: directories of unfinished runs, for a notice.

    Raises:
        Refusal: there is no run, or two runs of the same key and seed differ.
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
    """The groups, and the settings in which groups of one order differ, without those of methods."""
    by_order: dict[str, list[Run]] = {}
    by_label: dict[tuple[str, str, float | None], list[tuple[Run, ...]]] = {}
    for runs in groups:
        by_order.setdefault(runs[0].order, []).append(runs[0])
        by_label.setdefault((runs[0].order, runs[0].method, runs[0].ratio), []).append(runs)
    result = []
    for same_label in by_label.values():
        differing = tuple(sorted(_differing([runs[0] for runs in same_label])))
        result += [Group(runs, differing) for runs in same_label]
    names = {name for firsts in by_order.values() for name in _differing(firsts) if not name.startswith("method.")}
    return result, names


def _differing(runs: Sequence[Run]) -> Iterator[str]:
    """The settings that differ between runs; those of a task are compared only in runs that learn it."""
    for name in {name for run in runs for name in run.settings}:
        concerned = [run.settings for run in runs if concerns(name, run)]
        if len({json.dumps(settings[name]) if name in settings else "" for settings in concerned}) > 1:
            yield name


def concerns(name: str, run: Run) -> bool:
    """Whether a setting concerns a run: those of a task concern only the runs that learn it."""
    return not name.startswith("benchmark.tasks.") or name.split(".")[2] in run.tasks


def setting(run: Run, name: str) -> str:
    """A run's setting as readable text; an en dash if it has none of that name."""
    return setting_text(run.settings[name]) if name in run.settings else "–"


def setting_text(value: Any) -> str:
    """A setting's value as readable text."""
    if isinstance(value, list) and value:
        return ", ".join(item if isinstance(item, str) else json.dumps(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _place(group: Group, settings: Sequence[str]) -> tuple[Any, ...]:
    """The sort key of a row: order, method, ratio, settings; numbers are sorted by size."""
    run = group.first
    values = [run.ratio, *(run.settings.get(name) for name in settings)]
    sizes = [(1, value, "") if isinstance(value, int | float) else (0, 0, json.dumps(value)) for value in values]
    return (run.order, run.method, sizes, run.key, run.numbers)


def _mixed(group: Group) -> Iterator[str]:
    """Notices on versions, commits and the like that differ between the runs of a group."""
    for name in dict.fromkeys(name for run in group.runs for name in run.made):
        values: dict[str, list[int]] = {}
        for run in group.runs:
            values.setdefault(run.made.get(name, "unknown"), []).append(run.seed)
        if len(values) > 1:
            text = ", ".join(f"{value} ({seeds_text(seeds)})" for value, seeds in values.items())
            yield f"{short_label(group)} · {group.first.key} mixes runs with different {name}: {text}"


def counted(things: Sequence[object]) -> str:
    """The number of things, and the names of the first ones."""
    rest = f" and {len(things) - NAMED:,} more" if len(things) > NAMED else ""
    return f"{len(things):,} ({', '.join(map(str, things[:NAMED]))}{rest})"


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds as readable text."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def label(group: Group) -> str:
    """One line that identifies a group."""
    settings = [f"{name} {setting(group.first, name)}" for name in group.apart]
    return " · ".join([short_label(group), *settings, group.first.key])


def short_label(group: Group) -> str:
    """Method, order and ratio of a group."""
    run = group.first
    return f"{run.method} on {run.order}" + ("" if run.ratio is None else f" · ratio {ratio_text(run)}")


def ratio_text(run: Run) -> str:
    """A run's ratio as readable text; an en dash for a method without one."""
    return "–" if run.ratio is None else f"{run.ratio:.15g}"


def typed(group: Group) -> list[str]:
    """The overrides in a group's command, without the seed and others that change no number."""
    words = shlex.split(group.first.command)[2:]
    return [word for word in words if re.split(r"[.=]", word)[0] not in NOT_TYPED]
