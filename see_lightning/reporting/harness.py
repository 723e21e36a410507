"""``harness.json`` as a table in the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from see_lightning.reporting.terminal import print_table
from see_lightning.reporting.words import number, percent


def columns(names: Iterable[str], found: Mapping[str, Any]) -> list[str]:
    """The columns of the table: each name, or the tasks in it if it has no score of its own.

    Args:
        names: of tasks and groups.
        found: results of the harness.
    """
    tasks: list[str] = []
    for name in names:
        has_score = any("," in key for key in found["results"].get(name, {}))
        tasks += [name] if has_score else columns(found["group_subtasks"].get(name, []), found)
    return tasks


def first_metric(of: Mapping[str, Any]) -> str:
    """The first metric of a task, as ``harness.json`` names it.

    >>> first_metric({"acc_stderr,none": 0.1, "acc,none": 0.5})
    'acc,none'
    """
    return next(name for name in of if "_stderr," not in name)


def metric_name(name: str) -> str:
    """A metric without the harness's filter, if that is none.

    >>> metric_name("acc,none"), metric_name("exact_match,strict")
    ('acc', 'exact_match strict')
    """
    return name.removesuffix(",none").replace(",", " ")


def print_scores(content: Mapping[str, Any], tasks: Sequence[str], experts: int, console: Console) -> None:
    """Print a row for each adapter and a column for each task's first metric.

    Args:
        content: of ``harness.json``.
        tasks: to show.
        experts: their number.
        console: to print to.
    """
    metrics = content["metrics"]
    rows = {
        "base": metrics.get("base"),
        f"mean of {experts} experts (SEE-AE)": metrics.get("experts", {}).get("mean"),
        "ensemble" if experts else "adapted model": metrics.get("ensemble"),
    }
    present = {name: row for name, row in rows.items() if row}
    any_row = next(iter(present.values()))
    chosen = [(task, first_metric(any_row[task])) for task in tasks if any_row.get(task)]
    heads = [f"{task} {metric_name(key)}" for task, key in chosen]
    table = Table("adapter", *(Column(head, justify="right") for head in (*heads, "at the base")), box=box.SIMPLE_HEAD)
    for name, row in present.items():
        share = {"base": 1.0}.get(name, content.get("base_share") if row is metrics.get("ensemble") else None)
        table.add_row(name, *(number(row[task][key], 4) for task, key in chosen), percent(share))
    print_table(table, console)
    if content["limit"] is not None:
        console.print(f" The first {content['limit']} queries of each task alone: no result of the benchmark.")
