"""Tables as CSV, in which no cell is a formula."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from see_lightning.files.text import visible

#: First characters of formulas in spreadsheets, full-width signs included.
FORMULA = tuple("=+-@\t\n＝＋－＠")


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """A table as the text of a CSV file; a text that a spreadsheet would compute gets an apostrophe before it.

    Args:
        lines: of cells; numbers, and texts that are numbers, stay as they are, and None is empty.

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
    text = visible(str(value))  # a carriage return would begin a line
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
