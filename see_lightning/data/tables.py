"""Rows of CSV and JSON files as texts, exactly as spelled in the file: no value is parsed as a number, a date or missing."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from see_lightning.errors import DataError
from see_lightning.files.text import NoJson, parse_json, read_text

Row = dict[str, Any] | str  # values by column; or a string, the reason why the row cannot be read


def csv_rows(path: Path, separator: str = ",") -> Iterator[Row]:
    """The rows of a CSV file, see ``csv_lines``."""
    return (row for _, row in csv_lines(path, separator))


def csv_lines(path: Path, separator: str = ",") -> Iterator[tuple[int, Row]]:
    """The rows of a CSV file whose first line has the column names, with the line on which each begins; without blank lines.

    Raises:
        DataError: the file is not valid CSV in a supported encoding, or two columns have the same name.
    """
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator, strict=True)
    try:
        columns = next(reader, [])
        if len(columns) == 1 and (other := next((mark for mark in (";", "\t") if mark in columns[0]), None)):
            raise DataError(_other_separator(path, other))
        duplicate = next((name for name, number in Counter(columns).items() if number > 1), None)
        if duplicate is not None:
            raise DataError(f"{path}: two columns are named {duplicate!r:.100}")
        line = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(columns):
                yield line, dict(zip(columns, cells, strict=True))
            elif cells:
                yield line, f"{len(cells)} cells under {len(columns)} columns"
            line = reader.line_num + 1
    except csv.Error as error:
        if reader.line_num == 1 and separator == "," and ";" in read_text(path).partition("\n")[0]:
            raise DataError(_other_separator(path, ";")) from error
        raise DataError(f"{path}:{reader.line_num}: invalid CSV: {error}") from error


def _other_separator(path: Path, mark: str) -> str:
    return f"{path}: its columns seem to be separated by {mark!r}; save it with commas, or as .tsv with tabs"


def json_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSON file: an array of objects, or one object per line. Numbers are texts as spelled.

    Raises:
        DataError: the file is neither.
    """
    content = read_text(path)
    if content.lstrip()[:1] == "[":
        try:
            rows = _parsed(content)
        except NoJson as error:
            raise DataError(f"{path}:{error.line}: {error}") from error
        yield from (row if isinstance(row, dict) else "no JSON object" for row in rows)
        return
    # Split at "\n" alone: a JSON string may contain Unicode's other line separators unescaped.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _parsed(line)
        except NoJson as error:
            yield f"{error} ({path.name}:{number})"
        else:
            yield row if isinstance(row, dict) else "no JSON object"


def _parsed(content: str) -> Any:
    return parse_json(content, parse_int=str, parse_float=str, parse_constant=str)
