"""Tables in Markdown with a row for each group of runs."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from see_lightning.reporting.comparison.columns import reading
from see_lightning.reporting.comparison.groups import Group, spread, typed
from see_lightning.reporting.markdown_cells import as_code, markdown_table
from see_lightning.reporting.places import words_without_places
from see_lightning.reporting.rivals import BASELINE
from see_lightning.reporting.runs import Run, read_results
from see_lightning.reporting.words import number

Results = Mapping[str, Any]
Cell = Callable[[Results], float | None]  # the value of one run, or of one router on one run

METRICS = ("AR", "FWT", "BWT", "forgetting")
RELATIVE = f"cost / {BASELINE}"
# Digits of a column; MiB have two, others one.
DIGITS = {**dict.fromkeys((*METRICS, RELATIVE), 2), "AUROC": 3, "stored examples": 0}


def group_table(rows: Sequence[tuple[Group, Sequence[Run]]], columns: Mapping[str, Cell]) -> str:
    """A table with a row for some runs of each group, without columns that have no number at all."""
    found = [results_of(run) for _, runs in rows for run in runs]
    measured = {head: cell for head, cell in columns.items() if any(cell(results) is not None for results in found)}
    lines = [
        [
            command_of(group),
            *cells_of(list(map(results_of, runs)), measured),
            ", ".join(str(run.seed) for run in runs),
            _commits(runs),
        ]
        for group, runs in rows
    ]
    return markdown_table(["run.py", *measured, "seeds", "commit"], lines)


def cells_of(found: Sequence[Results], columns: Mapping[str, Cell]) -> list[str]:
    """A cell for each column, with the mean over results and its standard deviation."""
    return [
        reading(
            spread(map(cell, found)),
            len(found),
            partial(number, digits=DIGITS.get(head, 2 if head.endswith("MiB") else 1)),
        )
        for head, cell in columns.items()
    ]


def results_of(run: Run) -> Results:
    """The content of a run's ``results.json``."""
    return read_results(run.path)


def command_of(group: Group) -> str:
    """The settings in a group's command, as code."""
    words = words_without_places(typed(group))  # kept results may be older than the removal of paths
    return as_code(shlex.join(words)) if words else "(defaults)"


def _commits(runs: Sequence[Run]) -> str:
    return ", ".join(dict.fromkeys(as_code(run.made["commit"]) for run in runs))


def metric(name: str) -> Cell:
    """A cell of one of ``METRICS``."""
    return lambda results: results["metrics"][name]


def routed_right(results: Results) -> float | None:
    """Queries that reached their expert, in percent; None for methods without experts."""
    return percent_of((results.get("routing") or {}).get("accuracy"))


def percent_of(share: float | None) -> float | None:
    """A share in 0..1 in percent, as a number.

    >>> percent_of(0.5), percent_of(None)
    (50.0, None)
    """
    return None if share is None else 100 * share
