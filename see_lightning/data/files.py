"""The files of a user's own tasks: JSON lines, JSON, CSV, Parquet, and data sets saved to disk; each gives rows by column."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from see_lightning.data.reader import RowError, json_document, lines_of, parse_line
from see_lightning.data.tables import csv_lines
from see_lightning.errors import DataError, Refusal, with_cause
from see_lightning.files.reading import open_file

HALVES = ("train", "test")
VALIDATION = ("validation", "valid", "dev")  # spellings of the third part, which a task may lack
SAVED = "state.json"  # in each folder of a split that ``save_to_disk`` of the datasets library writes


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row of a file before it is read as examples.

    Args:
        number: of the row in its file, from 1; of JSON lines that of its line.
        source: ``file:line``, or ``file, row <number>`` where a file has no lines.
        columns: returns the row's values by column, or raises ``RowError``.
    """

    number: int
    source: str
    columns: Callable[[], dict[str, Any]]


def tasks_in(folder: Path) -> list[str]:
    """Names of the tasks that have training rows in a folder."""
    ends = tuple(f".train{suffix}" for suffix in FORMATS)
    files = (path.name for path in folder.glob("*.train.*"))
    named = {name.removesuffix(end) for name in files for end in ends if name.endswith(end)}
    return sorted(named | {path.parent.parent.name for path in folder.glob(f"*/train/{SAVED}")})


def places_of(folder: Path, task: str) -> dict[str, Path]:
    """The file, or the folder of ``save_to_disk``, of each half of a task.

    Raises:
        DataError: a half has none, or two.
    """
    found: dict[str, Path] = {}
    for half in HALVES:
        place = _only(task, half, _places(folder, task, half))
        if place is None:
            usual = found["train"].suffix if half == "test" and found["train"].is_file() else ".jsonl"
            raise DataError(f"{task}: no file {folder / f'{task}.{half}{usual}'}")
        found[half] = place
    return found


def validation_places(folder: Path, task: str) -> list[Path]:
    """The files and folders with a task's validation rows, under every spelling."""
    return [place for name in VALIDATION for place in _places(folder, task, name)]


def validation_rows(places: Sequence[Path], task: str) -> Iterator[RawRow]:
    """The validation rows of a task.

    Args:
        places: from ``validation_places``.
        task: for messages.

    Raises:
        DataError: there are two places; only a run with validation rows reads them.
    """
    place = _only(task, VALIDATION[0], places)
    assert place is not None
    yield from raw_rows(place, task)


def _only(task: str, part: str, places: Sequence[Path]) -> Path | None:
    if len(places) > 1:
        raise DataError(f"{task}: {' and '.join(map(str, places))} both have its {part} rows; keep one of them")
    return places[0] if places else None


def _places(folder: Path, task: str, part: str) -> list[Path]:
    """The files and folders that exist of a part of a task under one spelling."""
    files, saved = [folder / f"{task}.{part}{suffix}" for suffix in FORMATS], folder / task / part
    return [path for path in files if path.exists()] + ([saved] if (saved / SAVED).exists() else [])


def files_at(place: Path) -> tuple[Path, ...]:
    """The files that the rows of a half are read from."""
    return tuple(sorted(place.glob("*.arrow"))) if place.is_dir() else (place,)


def raw_rows(place: Path, task: str) -> Iterator[RawRow]:
    """The rows of one half of a task.

    Args:
        place: a file of a format of ``FORMATS``, or a folder of ``save_to_disk``.
        task: for messages.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    return _saved_rows(place, task) if place.is_dir() else FORMATS[place.suffix](place, task)


def _jsonl_rows(path: Path, task: str) -> Iterator[RawRow]:
    for number, line in lines_of(path, task):
        yield RawRow(number, f"{path}:{number}", partial(parse_line, line))


def _json_rows(path: Path, task: str) -> Iterator[RawRow]:
    rows = json_document(path, task)
    if not isinstance(rows, list):
        raise DataError(f"{path}: a JSON {type(rows).__name__} where an array of rows is needed")
    for number, row in enumerate(rows, start=1):
        yield RawRow(number, f"{path}, row {number}", partial(_row_of, row, f"a JSON {type(row).__name__}"))


def _csv_rows(path: Path, task: str, separator: str = ",") -> Iterator[RawRow]:
    for number, (line, row) in enumerate(csv_lines(path, separator), start=1):
        yield RawRow(number, f"{path}:{line}", partial(_row_of, row))


def _row_of(row: object, fault: str = "") -> dict[str, Any]:
    """The row itself, if it has columns; else an error, which a table's row is itself."""
    if not isinstance(row, dict):
        raise RowError(f"{fault} where an object is needed" if fault else str(row))
    return dict(row)


def _parquet_rows(path: Path, task: str) -> Iterator[RawRow]:
    try:
        from pyarrow.parquet import ParquetFile  # here, since only such files need it
    except ImportError as error:
        raise DataError(f"{task}: {path} is read by pyarrow; pip install 'see-lightning[hub]'") from error

    def rows() -> Iterator[dict[str, Any]]:
        with open_file(path) as file:
            for batch in ParquetFile(file).iter_batches():
                yield from batch.to_pylist()

    return _typed_rows(path, rows)


def _saved_rows(place: Path, task: str) -> Iterator[RawRow]:
    try:
        from datasets import load_from_disk  # here: it takes seconds, and only such folders need it
    except ImportError as error:
        raise DataError(
            f"{task}: {place} is a data set saved to disk, read by datasets; pip install 'see-lightning[hub]'"
        ) from error

    def rows() -> Iterator[dict[str, Any]]:
        data = load_from_disk(str(place))
        names = {column: one.names for column, one in data.features.items() if hasattr(one, "names")}
        for row in data:
            labels = {column: row[column] for column in names if row[column] is not None and row[column] >= 0}
            yield row | {column: names[column][label] for column, label in labels.items()}

    return _typed_rows(place, rows)


def _typed_rows(place: Path, rows: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[RawRow]:
    """Rows with typed columns, of a library that may raise anything."""
    number = 0
    try:
        for number, row in enumerate(rows(), start=1):
            yield RawRow(number, f"{place}, row {number}", partial(_row_of, row))
    except (Refusal, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{place}, row {number + 1}: it cannot be read: {with_cause(error)[:300]}") from error


FORMATS: dict[str, Callable[[Path, str], Iterator[RawRow]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": partial(_csv_rows, separator="\t"),
    ".parquet": _parquet_rows,
}


def formats() -> str:
    """The formats in words, for messages.

    >>> formats()
    '.jsonl, .json, .csv, .tsv or .parquet'
    """
    *some, last = FORMATS
    return f"{', '.join(some)} or {last}"
