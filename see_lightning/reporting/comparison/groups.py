"""Finished runs in groups, made from their ``results.json`` alone: no answers, no model, no torch.

Runs that differ in nothing but their seed are a group, and a group is a row of the table. Whatever else differs keeps
runs apart, and is shown as a column.
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
    """Mean and sample standard deviation (n − 1) of n values; the latter None if there is but one."""

    mean: float
    deviation: float | None
    n: int


def spread(values: Iterable[float | None]) -> MeanStd | None:
    """What is known of some seeds; None among the values is left out, and is returned if nothing else is there.

    >>> spread([80.0, None, 82.0])
    Spread(mean=81.0, deviation=1.4142135623730951, n=2)
    >>> spread([80.0]), spread([None])
    (Spread(mean=80.0, deviation=None, n=1), None)
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    return MeanStd(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


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
    def metrics(self) -> dict[str, MeanStd | None]:
        """Each of `METRICS` over the seeds."""
        return {name: spread(run.metrics.get(name) for run in self.runs) for name in METRICS}

    def matrix(self) -> list[list[MeanStd | None]]:
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
        concerned = [run.settings for run in runs if concerns(name, run)]
        if len({json.dumps(settings[name]) if name in settings else "" for settings in concerned}) > 1:
            yield name


def concerns(name: str, run: Run) -> bool:
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
            told = ", ".join(f"{value} ({seeds_text(seeds)})" for value, seeds in values.items())
            yield f"{short_label(group)} · {group.first.key} mixes runs with different {name}: {told}"


def counted(things: Sequence[object]) -> str:
    """How many there are, and the first of them by name."""
    rest = f" and {len(things) - NAMED:,} more" if len(things) > NAMED else ""
    return f"{len(things):,} ({', '.join(map(str, things[:NAMED]))}{rest})"


def seeds_text(seeds: Sequence[int]) -> str:
    """Which seeds, for reading."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def label(group: Group) -> str:
    """One line that tells a group from others."""
    told = [f"{name} {setting(group.first, name)}" for name in group.apart]
    return " · ".join([short_label(group), *told, group.first.key])


def short_label(group: Group) -> str:
    """Method, order and ratio of a group."""
    run = group.first
    return f"{run.method} on {run.order}" + ("" if run.ratio is None else f" · ratio {ratio_text(run)}")


def ratio_text(run: Run) -> str:
    """A run's ratio for reading; an en dash for a method without one."""
    return "–" if run.ratio is None else f"{run.ratio:.15g}"


def typed(group: Group) -> list[str]:
    """The words of a group's command, without those that change no number or are counted, such as the seed."""
    words = shlex.split(group.first.command)[2:]
    return [word for word in words if re.split(r"[.=]", word)[0] not in NOT_TYPED]
