"""A run's report in a terminal.

Letters: T tasks, in the order in which they are learned.
"""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from see_lightning.reporting.report.refusals import steadiness
from see_lightning.reporting.report.sections import Results, last_row, lengths, metrics_of, shares_of, title, variants
from see_lightning.reporting.terminal import plain, print_table


def print_report(results: Results, console: Console, protocol: str = "ssr") -> None:
    """Print the matrix, the metrics and, if there are any, the shares of routing and notices about the data.

    In a terminal the tables fit its width, if needed with numbers instead of task names at the head of the matrix; a pipe or
    a file gets them at full width, so that no name is shortened.

    Args:
        results: content of ``results.json``.
        console: where to print.
        protocol: of `PROTOCOLS`, whose metrics are printed.
    """
    console.print(Text(title(results), style="bold"), soft_wrap=True)
    matrix = _matrix_table(results, results["tasks"])
    if console.is_terminal and max(map(len, plain(matrix).splitlines())) > console.width:
        matrix = _matrix_table(results, [str(t + 1) for t in range(len(results["tasks"]))])
    print_table(matrix, console)
    console.print(Text(" * right after learning the task   · not measured"))
    head = "metric" if protocol == "ssr" else f"metric of {protocol}"
    print_table(_table([head, "value", "formula"], metrics_of(results, protocol)), console)
    if rows := last_row(results):
        table = Table("at the end", *(Column(name, justify="right") for name in rows[0][1:]), box=box.SIMPLE_HEAD)
        for row in rows[1:]:
            table.add_row(*map(Text, row))
        print_table(table, console)
        if sentence := lengths(results):
            console.print(Text(f" {sentence}"), soft_wrap=True)
    if shares := shares_of(results):
        print_table(_table(["routing", "value"], shares.items()), console)
    if rows := variants(results):
        table = Table(rows[0][0], *(Column(name, justify="right") for name in rows[0][1:]), box=box.SIMPLE_HEAD)
        for row in rows[1:]:
            table.add_row(*map(Text, row))
        print_table(table, console)
    if sentence := steadiness(results):
        console.print(Text(f" {sentence}"), soft_wrap=True)
    for notice in results.get("notices", []):
        console.print(Text(f"note: {notice}"), soft_wrap=True)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table with the values in its second column."""
    first, value, *others = names
    table = Table(first, Column(value, justify="right", style="bold", no_wrap=True), *others, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _matrix_table(results: Results, heads: Sequence[str]) -> Table:
    """A row per stage, a column per task; the score right after learning a task has a star."""
    # Padded here, since rich drops the blank below a star when it aligns to the right.
    longest = max((len(f"{score:.1f}") for row in results["matrix"] for score in row if score is not None), default=1)
    widths = [max(len(head), longest) for head in heads]
    columns = [
        Column(Text(f"{head:>{width}} "), no_wrap=True, min_width=width + 1)
        for head, width in zip(heads, widths, strict=True)
    ]
    table = Table(Column("score", overflow="fold"), *columns, box=box.SIMPLE_HEAD, padding=0)
    for t, (task, scores) in enumerate(zip(results["tasks"], results["matrix"], strict=True)):
        cells = [
            _cell(score, width, is_diagonal=t == j) for j, (score, width) in enumerate(zip(scores, widths, strict=True))
        ]
        table.add_row(Text(f"{t + 1:{len(str(len(heads)))}} after {task}"), *cells)
    return table


def _cell(score: float | None, width: int, is_diagonal: bool) -> Text:
    if score is None:
        return Text(f"{'·':>{width}} ", style="dim")
    return Text(f"{score:{width}.1f}*", style="bold") if is_diagonal else Text(f"{score:{width}.1f} ")
