"""Tables as the text of CSV files, in which no cell is a formula."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from see_lightning.files.text import visible

#: What begins a formula in a spreadsheet, full-width signs among it.
FORMULA = tuple("=+-@\t\n＝＋－＠")


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """A table as the text of a CSV file; what a spreadsheet would compute has an apostrophe before it.

    Args:
        lines: of cells; numbers stay numbers, also those that are texts, and None is empty.

    >>> print(csv_text([["task", "AR"], ["=1+1", -3.5], ["-0.5", None]]), end="")
    task,AR
    '=1+1,-3.5
    -0.5,
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in line] for line in lines)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    text = visible(str(value))  # a return would begin a line
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
