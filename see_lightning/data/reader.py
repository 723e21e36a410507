"""What a reader is, and the steps that readers of files share."""

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import DataError, Example
from see_lightning.data.split import Split


class Reader(Protocol):
    """Turns the files of one family of tasks into examples."""

    def tasks(self) -> list[str]:
        """Names of the tasks it can read."""
        ...

    def read(self, task: str, checks: RowChecks) -> Split:
        """The examples of one task, in file order.

        Raises:
            DataError: no such task or file, or a row that ``checks`` refuses.
        """
        ...


def require_task(task: str, tasks: Sequence[str]) -> None:
    """Refuse a task name that is not among ``tasks``, naming the nearest one.

    >>> require_task("quiz", ["qa", "quizz"])
    Traceback (most recent call last):
    see_lightning.data.example.DataError: no task 'quiz'; did you mean 'quizz'? There are: qa, quizz
    """
    if task in tasks:
        return
    nearest = difflib.get_close_matches(task, tasks, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    raise DataError(f"no task {task!r}{hint} There are: {', '.join(tasks) or 'none'}")


def json_lines(
    path: Path, *, task: str, prompt_key: str, answer_key: str, id_prefix: str = ""
) -> Iterator[Example | BadRow]:
    """The rows of a file with one JSON object a line, texts as they stand there.

    Args:
        path: the file; UTF-8. Blank lines at its end are no rows.
        task: name given to the examples.
        prompt_key: key of the prompt.
        answer_key: key of the answer.
        id_prefix: a row without ``id`` gets ``<id_prefix><line>``; empty: each row must have one.

    Raises:
        DataError: no such file.
    """
    if not path.is_file():
        raise DataError(f"{task}: no file {path}")
    content = path.read_bytes().rstrip()
    # Split at "\n" alone: other line separators of Unicode may stand unescaped inside a JSON string.
    for number, line in enumerate(content.split(b"\n") if content else (), start=1):
        source = f"{path}:{number}"
        try:
            row = _parse(line)
            if id_prefix:
                row.setdefault("id", f"{id_prefix}{number}")
            example_id, prompt, answer = _texts(row, keys=("id", prompt_key, answer_key))
        except _RowError as reason:
            yield BadRow(source, str(reason))
        else:
            yield Example(id=example_id, prompt=prompt, target=answer, task=task, source=source)


class _RowError(ValueError):
    """Why a line holds no example."""


def _parse(line: bytes) -> dict[str, object]:
    if not line.strip():
        raise _RowError("blank line")
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _RowError(f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise _RowError(f"invalid JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise _RowError(f"a JSON {type(row).__name__} where an object is needed")
    return row


def _texts(row: dict[str, object], *, keys: Sequence[str]) -> list[str]:
    missing = [key for key in keys if key not in row]
    if missing:
        raise _RowError(f"missing key {', '.join(map(repr, missing))}; found: {', '.join(row) or 'none'}")
    texts = []
    for key in keys:
        value = row[key]
        if key == "id" and type(value) is int:
            value = str(value)
        if not isinstance(value, str):
            raise _RowError(f"{key!r} must be a string, found {type(value).__name__}")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise _RowError(f"{key!r} holds half a surrogate pair, which cannot be written as UTF-8")
        texts.append(value)
    return texts
