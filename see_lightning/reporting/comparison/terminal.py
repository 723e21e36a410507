"""A comparison in a terminal."""

import re
from collections.abc import Sequence

from omegaconf import OmegaConf
from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from see_lightning.config.schema import AdapterConfig, DataConfig, ModelConfig, OptimConfig
from see_lightning.reporting.comparison.columns import Column, alike, columns
from see_lightning.reporting.comparison.groups import NAMED, Comparison, setting_text
from see_lightning.reporting.runs import dotted
from see_lightning.reporting.terminal import print_table

WIDEST = 24  # characters of a terminal's column
DETAILS = r"(benchmark|indicators|method|order|trainer)\."  # settings that a terminal does not list as alike


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a row for each group, the settings that they share, and the notices.

    In a narrow terminal the columns are split into several tables with the same rows.
    """
    runs = sum(len(group.runs) for group in comparison.groups)
    orders = ", ".join(dict.fromkeys(group.first.order for group in comparison.groups))
    title = f"{orders} · finished runs: {runs:,}, groups of one setting: {len(comparison.groups):,}"
    console.print(Text(title, style="bold"), soft_wrap=not console.is_terminal)
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
            line = f" alike {f'in {where}' if where else 'wherever set'}: {', '.join(words)}"
            console.print(Text(line, style="dim"), soft_wrap=not console.is_terminal)
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
        console.print(Text(f"note: {len(comparison.notices) - NAMED:,} more notes are on the page"), soft_wrap=True)


def _terminal_head(column: Column) -> str:
    return ",\n".join(name.replace(".", ".\n") for name in column.names)


def _blocks(every: Sequence[Column], width: int | None) -> list[list[Column]]:
    """Split columns into tables that fit the width; each begins with the columns that identify a run."""
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
    """Characters in a line of a table, with two blanks and a border for each column."""
    texts = [[*_terminal_head(column).splitlines(), *column.cells] for column in some]
    return sum(min(WIDEST, max(map(len, one))) + 3 for one in texts) + 1
