"""Printing of tables."""

import io

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(table: Table, console: Console) -> None:
    """Print a table: fitted to the width of a terminal, or at full width into a pipe or a file."""
    if console.is_terminal:
        console.print(table)
    else:
        console.print(Text(plain(table)), soft_wrap=True)


def plain(table: Table) -> str:
    """The table as plain text, at full width."""
    console = Console(file=io.StringIO(), width=100_000, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
