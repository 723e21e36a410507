"""What a reader is, and the steps that readers of files share."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import Example
from see_lightning.data.split import Split
from see_lightning.errors import DataError, Refusal, listed
from see_lightning.files.text import NoJson, holds_surrogate, parse_json, read_text, text_bytes

EMPTY_ANSWER = "the answer is empty"  # a remark on rows that their publisher reads all the same


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a task as published: its training rows, its test rows, or rows that no run reads, such as ``dev``.

    Args:
        rows: read as they are iterated over, once.
        files: that they are read from.
    """

    rows: Iterable[Example | BadRow]
    files: tuple[Path, ...] = ()


class Reader(Protocol):
    """Turns the files of one family of tasks into examples."""

    def tasks(self) -> list[str]:
        """Names of the tasks it can read."""
        ...

    def parts(self, task: str) -> dict[str, Part]:
        """What is published of one task, unchecked: ``train``, ``test`` and what else there is.

        Raises:
            DataError: no such task or file; a row that is no example is a ``BadRow``.
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
    """What to do where the files of a published benchmark are missing."""
    return (
        f"Put the files of {published_at} into DIR/{folder.name} and set the environment variable SEE_DATA=DIR, "
        f"or paths.data=DIR"
    )


def read_halves(task: str, parts: dict[str, Part], checks: RowChecks) -> Split:
    """The checked rows of ``train`` and ``test``."""
    return checks.split(task, train=parts["train"].rows, test=parts["test"].rows)


def read_published(task: str, parts: dict[str, Part], checks: RowChecks) -> Split:
    """The same, less the test rows whose prompt stands in the training rows, with a notice of them."""
    train, published = list(parts["train"].rows), list(parts["test"].rows)
    trained = {row.prompt.strip() for row in train if isinstance(row, Example)}
    test = [row for row in published if isinstance(row, BadRow) or row.prompt.strip() not in trained]
    split = checks.split(task, train=train, test=test)
    if len(test) == len(published):
        return split
    notice = (
        f"{task}: {len(published) - len(test)} of {len(published)} test rows were left out, for their prompts stand in "
        f"the training rows too; published numbers count them"
    )
    return replace(split, notices=(notice, *split.notices))


def json_document(path: Path, task: str) -> object:
    """What a JSON file holds.

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
    """Why a row holds no example."""


def made(source: str, example: Callable[[], Example]) -> Example | BadRow:
    """The example that a row holds, or why it holds none, whatever goes wrong in reading it.

    Args:
        source: of the row, such as ``file:line``.
        example: makes it, or raises ``RowError``.

    Raises:
        Refusal: the whole file or column cannot be used, not this row alone.
    """
    try:
        return example()
    except RowError as reason:
        return BadRow(source, str(reason))
    except (Refusal, MemoryError):
        raise
    except Exception as error:  # of whatever class: a row may hold anything
        told = next(iter(str(error).strip().splitlines()), "")
        return BadRow(source, f"it cannot be read ({type(error).__name__}: {told[:200]})")


def array_rows(
    rows: object, place: str | Path, example: Callable[[dict[str, object], int, str], Example]
) -> Iterator[Example | BadRow]:
    """The rows of a JSON array of objects.

    Args:
        rows: the array.
        place: where it stands; the source of a row is ``<place>, row <number>``, from 1.
        example: makes one of a row, its number and its source, or raises ``RowError``.

    Raises:
        DataError: it is no array.
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
    """The rows of a file with one JSON object a line, texts as they stand there.

    Args:
        path: the file; UTF-8. Blank lines at its end are no rows.
        task: name given to the examples.
        prompt_key: key of the prompt.
        answer_key: key of the answer, or of several that count as right.
        id_prefix: a row without ``id`` gets ``<id_prefix><line>``; empty: each row must have one.

    Raises:
        DataError: no such file.
    """
    if not path.is_file():
        raise DataError(f"{task}: no file {path}")
    content = text_bytes(path).rstrip()

    def example(line: bytes, number: int, source: str) -> Example:
        row = _parse(line)
        if id_prefix:
            row.setdefault("id", f"{id_prefix}{number}")
        require_keys(row, ("id", prompt_key, answer_key))
        example_id, prompt = texts(row, keys=("id", prompt_key))
        target, *others = references(row, answer_key)
        return Example(example_id, prompt, target, task, source=source, alternatives=tuple(others))

    # Split at "\n" alone: other line separators of Unicode may stand unescaped inside a JSON string.
    for number, line in enumerate(content.split(b"\n") if content else (), start=1):
        source = f"{path}:{number}"
        yield made(source, partial(example, line, number, source))


def _parse(line: bytes) -> dict[str, object]:
    if not line.strip():
        raise RowError("blank line")
    try:
        row = parse_json(line.decode("utf-8").removeprefix("\ufeff"))  # files put together have several marks
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
        RowError: the message names all that are missing.
    """
    missing = [key for key in keys if key not in row]
    if missing:
        raise RowError(f"missing key {', '.join(map(repr, missing))}; found: {listed(row)}")


def texts(row: dict[str, object], *, keys: Sequence[str]) -> list[str]:
    """The strings under ``keys``; an ``id`` may be a number.

    Raises:
        RowError: one is missing, is no string, or cannot be written.
    """
    require_keys(row, keys)
    found = []
    for key in keys:
        value = row[key]
        if key == "id" and type(value) is int:
            value = str(value)
        if not isinstance(value, str):
            raise RowError(f"{key!r} must be a string, found {type(value).__name__}")
        if holds_surrogate(value):
            raise RowError(f"{key!r} holds half a surrogate pair, which cannot be written as UTF-8")
        found.append(value)
    return found


def references(row: dict[str, object], key: str) -> list[str]:
    """The string under ``key``, or the strings of a list there, each once and in their order.

    Raises:
        RowError: it is missing, an empty list, or neither; or a text cannot be written.
    """
    require_keys(row, (key,))
    value = row[key]
    if not isinstance(value, list):
        return texts(row, keys=(key,))
    if not value:
        raise RowError(f"{key!r} is an empty list")
    return list(dict.fromkeys(texts({key: one}, keys=(key,))[0] for one in value))
