"""CSV and JSON files as rows of texts, each as it stands in its file: nothing is guessed to be a number, a date or empty."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from see_lightning.errors import DataError
from see_lightning.files.text import NoJson, parse_json, read_text

Row = dict[str, Any] | str  # a string says why a row is none


def csv_rows(path: Path, separator: str = ",") -> Iterator[Row]:
    """The rows of a CSV file with a line of column names; blank lines are none.

    Raises:
        DataError: it is not CSV in an encoding that is read, or two columns have one name.
    """
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator, strict=True)
    try:
        columns = next(reader, [])
        if len(columns) == 1 and (other := next((mark for mark in (";", "\t") if mark in columns[0]), None)):
            raise DataError(_other_separator(path, other))
        twice = next((name for name, number in Counter(columns).items() if number > 1), None)
        if twice is not None:
            raise DataError(f"{path}: two columns are named {twice!r:.100}")
        for cells in reader:
            if len(cells) == len(columns):
                yield dict(zip(columns, cells, strict=True))
            elif cells:
                yield f"{len(cells)} cells under {len(columns)} columns"
    except csv.Error as error:
        if reader.line_num == 1 and separator == "," and ";" in read_text(path).partition("\n")[0]:
            raise DataError(_other_separator(path, ";")) from error
        raise DataError(f"{path}:{reader.line_num}: invalid CSV: {error}") from error


def _other_separator(path: Path, mark: str) -> str:
    return f"{path}: its columns seem to be separated by {mark!r}; save it with commas, or as .tsv with tabs"


def json_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSON file: an array of objects, or one object a line; numbers are texts as they are spelled.

    Raises:
        DataError: it is neither.
    """
    content = read_text(path)
    if content.lstrip()[:1] == "[":
        try:
            rows = _parsed(content)
        except NoJson as error:
            raise DataError(f"{path}:{error.line}: {error}") from error
        yield from (row if isinstance(row, dict) else "no JSON object" for row in rows)
        return
    # Split at the line break alone: other separators of Unicode may stand unescaped inside a JSON string.
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
