"""The protocol of readers, and functions that they share."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import Example
from see_lightning.data.split import Split
from see_lightning.errors import DataError, Refusal, listed
from see_lightning.files.text import NoJson, holds_surrogate, parse_json, read_text, text_bytes

T = TypeVar("T")

#: Names of a task's part that is its validation split.
VALIDATION = ("validation", "valid", "eval", "dev")
EMPTY_ANSWER = "the answer is empty"  # remark on rows that their publisher accepts


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a task as published: its training rows, its test rows, its validation rows (see ``VALIDATION``), or others.

    Args:
        rows: may be iterated over once; files are read during the iteration.
        files: the files that the rows are read from.
    """

    rows: Iterable[Example | BadRow]
    files: tuple[Path, ...] = ()


class Reader(Protocol):
    """Reads the tasks of one benchmark or file format as examples."""

    def tasks(self) -> list[str]:
        """Names of the tasks that can be read."""
        ...

    def parts(self, task: str) -> dict[str, Part]:
        """The published parts of one task by name, ``train``, ``test`` and others, without row checks.

        A row that cannot be read is a ``BadRow``.

        Raises:
            DataError: no such task or file.
        """
        ...

    def read(self, task: str, checks: RowChecks) -> Split:
        """The examples of one task, in file order.

        Raises:
            DataError: no such task or file, or a row that ``checks`` refuses.
        """
        ...


def require_task(task: str, tasks: Sequence[str], hint: str = "") -> None:
    """Refuse a task name that is not among ``tasks``, naming the nearest one.

    >>> require_task("quiz", ["qa", "quizz"])
    Traceback (most recent call last):
    see_lightning.errors.DataError: no task 'quiz'; did you mean 'quizz'? There are: qa, quizz
    """
    if task in tasks:
        return
    nearest = difflib.get_close_matches(task, tasks, n=1)
    guess = f"; did you mean {nearest[0]!r}?" if nearest else "."
    raise DataError(f"no task {task!r}{guess} There are: {listed(tasks)}{hint and f'. {hint}'}")


def where_to_put(folder: Path, published_at: str) -> str:
    """Advice for the case that the files of a published benchmark are missing."""
    return (
        f"Put the files of {published_at} into DIR/{folder.name} and set the environment variable SEE_DATA=DIR, "
        f"or paths.data=DIR"
    )


def validation_part(parts: Mapping[str, Part]) -> str | None:
    """The name of the part that is a task's validation split; None if there is none.

    >>> validation_part({"train": Part(()), "dev": Part(()), "test": Part(())})
    'dev'
    """
    return next((name for name in VALIDATION if name in parts), None)


def read_halves(task: str, parts: dict[str, Part], checks: RowChecks) -> Split:
    """The checked rows of ``train`` and ``test``."""
    return checks.split(task, train=parts["train"].rows, test=parts["test"].rows)


def read_published(task: str, parts: dict[str, Part], checks: RowChecks) -> Split:
    """The checked rows of ``train`` and ``test``, without test rows whose prompt is in ``train``; a notice counts these."""
    train, published = list(parts["train"].rows), list(parts["test"].rows)
    trained = {row.whole_prompt.strip() for row in train if isinstance(row, Example)}
    test = [row for row in published if isinstance(row, BadRow) or row.whole_prompt.strip() not in trained]
    split = checks.split(task, train=train, test=test)
    if len(test) == len(published):
        return split
    notice = (
        f"{task}: {len(published) - len(test)} of {len(published)} test rows were left out, since their prompts are also in "
        f"the training rows; published numbers count them"
    )
    return replace(split, notices=(notice, *split.notices))


def json_document(path: Path, task: str) -> object:
    """The content of a JSON file.

    Args:
        path: of the file.
        task: its task, for messages.

    Raises:
        DataError: no such file, or it is not JSON in UTF-8.
    """
    if not path.is_file():
        raise DataError(f"{task}: no file {path}")
    try:
        return parse_json(read_text(path))
    except NoJson as error:
        raise DataError(f"{path}:{error.line}: {error}") from error


class RowError(ValueError):
    """A row cannot be read as an example; the message is the reason."""


def made(source: str, example: Callable[[], T]) -> T | BadRow:
    """The example of a row, or its examples, or a ``BadRow`` after any error of reading it.

    Args:
        source: of the row, such as ``file:line``.
        example: returns the example or the examples, or raises ``RowError``.

    Raises:
        Refusal: the whole file or column cannot be used, not only this row.
    """
    try:
        return example()
    except RowError as reason:
        return BadRow(source, str(reason))
    except (Refusal, MemoryError):
        raise
    except Exception as error:  # of any type, since a row may contain anything
        message = next(iter(str(error).strip().splitlines()), "")
        return BadRow(source, f"it cannot be read ({type(error).__name__}: {message[:200]})")


def array_rows(
    rows: object, place: str | Path, example: Callable[[dict[str, object], int, str], Example]
) -> Iterator[Example | BadRow]:
    """The rows of a JSON array of objects as examples.

    Args:
        rows: the array.
        place: the file, or the array's place in it. The source of a row is ``<place>, row <number>``, from 1.
        example: returns the example of a row, its number and its source, or raises ``RowError``.

    Raises:
        DataError: ``rows`` is no array.
    """
    if not isinstance(rows, list):
        raise DataError(f"{place}: a JSON {type(rows).__name__} where an array of rows is needed")
    for number, row in enumerate(rows, start=1):
        source = f"{place}, row {number}"
        yield made(source, partial(_of_object, example, row, number, source))


def _of_object(
    example: Callable[[dict[str, object], int, str], Example], row: object, number: int, source: str
) -> Example:
    if not isinstance(row, dict):
        raise RowError(f"a JSON {type(row).__name__} where an object is needed")
    return example(row, number, source)


def json_lines(
    path: Path, *, task: str, prompt_key: str, answer_key: str, id_prefix: str = ""
) -> Iterator[Example | BadRow]:
    """The rows of a file with one JSON object per line as examples; texts are not changed.

    Args:
        path: the file, in UTF-8. Blank lines at its end are ignored.
        task: the examples' task.
        prompt_key: key of the prompt.
        answer_key: key of the answer, or of a list of answers that count as right.
        id_prefix: a row without ``id`` gets ``<id_prefix><line>``; if empty, each row must have an ``id``.

    Raises:
        DataError: no such file.
    """

    def example(line: bytes, number: int, source: str) -> Example:
        row = parse_line(line)
        if id_prefix:
            row.setdefault("id", f"{id_prefix}{number}")
        require_keys(row, ("id", prompt_key, answer_key))
        example_id, prompt = texts(row, keys=("id", prompt_key))
        target, *others = references(row, answer_key)
        return Example(example_id, prompt, target, task, source=source, alternatives=tuple(others))

    for number, line in lines_of(path, task):
        source = f"{path}:{number}"
        yield made(source, partial(example, line, number, source))


def lines_of(path: Path, task: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file in UTF-8 with their numbers, from 1; without the blank ones at its end.

    Args:
        path: of the file.
        task: its task, for messages.

    Raises:
        DataError: no such file.
    """
    if not path.is_file():
        raise DataError(f"{task}: no file {path}")
    content = text_bytes(path).rstrip()
    # Split at "\n" alone: a JSON string may contain Unicode's other line separators unescaped.
    yield from enumerate(content.split(b"\n") if content else (), start=1)


def parse_line(line: bytes) -> dict[str, object]:
    """The JSON object of one line of a file.

    Raises:
        RowError: the line is blank, not UTF-8, no JSON, or no object.
    """
    if not line.strip():
        raise RowError("blank line")
    try:
        row = parse_json(line.decode("utf-8").removeprefix("\ufeff"))  # concatenated files have several marks
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}") from error
    except NoJson as error:
        raise RowError(str(error)) from error
    if not isinstance(row, dict):
        raise RowError(f"a JSON {type(row).__name__} where an object is needed")
    return row


def require_keys(row: dict[str, object], keys: Sequence[str]) -> None:
    """Refuse a row that lacks one of ``keys``.

    Raises:
        RowError: keys are missing; the message names all of them.
    """
    missing = [key for key in keys if key not in row]
    if missing:
        raise RowError(f"missing key {', '.join(map(repr, missing))}; found: {listed(row)}")


def texts(row: dict[str, object], *, keys: Sequence[str]) -> list[str]:
    """The strings under ``keys``; an ``id`` may be a number.

    Raises:
        RowError: a key is missing, or its value is no string or no valid Unicode.
    """
    require_keys(row, keys)
    values = []
    for key in keys:
        value = row[key]
        if key == "id" and type(value) is int:
            value = str(value)
        if not isinstance(value, str):
            raise RowError(f"{key!r} must be a string, found {type(value).__name__}")
        if holds_surrogate(value):
            raise RowError(f"{key!r} holds half a surrogate pair, which cannot be written as UTF-8")
        values.append(value)
    return values


def references(row: dict[str, object], key: str) -> list[str]:
    """The string under ``key`` as a list, or the strings of a list under it, in order and without duplicates.

    Raises:
        RowError: the key is missing, the list is empty, or a value is no string or no valid Unicode.
    """
    require_keys(row, (key,))
    value = row[key]
    if not isinstance(value, list):
        return texts(row, keys=(key,))
    if not value:
        raise RowError(f"{key!r} is an empty list")
    return list(dict.fromkeys(texts({key: one}, keys=(key,))[0] for one in value))
