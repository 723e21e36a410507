"""Answers a file of prompts into a file of answers; after an interruption the same command continues."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from see_lightning.data.reader import RowError, parse_line
from see_lightning.engine.asking import Reply, Request
from see_lightning.engine.ensemble import Ensemble
from see_lightning.errors import ConfigError, DataError
from see_lightning.files.text import text_bytes
from see_lightning.files.writing import append, refuse_link

KEYS = ("prompt", "messages", "id", "task")
BEGINNING = b'{"id": '  # of a line of answers
WINDOW = 4  # this many batches are answered between two writes


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the file of prompts.

    Args:
        id: as given, or the number of the line, from 1.
        source: ``file:line``, for messages.
        request: its query, and how it is answered.
    """

    id: str
    source: str
    request: Request

    def digest(self) -> str:
        """A digest of the query, by which an answer is known to be its own."""
        asked = json.dumps([self.id, self.request.query, self.request.task], ensure_ascii=False, default=list)
        return hashlib.sha256(asked.encode()).hexdigest()[:16]


def read_prompts(path: Path, form: Request) -> list[Row]:
    """The rows of a file with one JSON object a line: ``prompt`` or ``messages``, optionally ``id`` and ``task``.

    Args:
        path: of the file, in UTF-8.
        form: how each is answered; its query is replaced.

    Raises:
        DataError: there is no such file, it has no line, two rows have one id, or a line has another form.
    """
    if not path.is_file():
        raise DataError(f'no file {path}; give a file with lines such as {{"prompt": "..."}}.')
    content = text_bytes(path).rstrip()
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(content.split(b"\n") if content else (), start=1):
        source = f"{path}:{number}"
        try:
            row = _row(parse_line(line), str(number), source, form)
        except (RowError, ConfigError) as error:
            raise DataError(f"{source}: {error}") from error
        if row.id in lines:
            raise DataError(f"{source}: the id {row.id!r} is that of line {lines[row.id]} too; ids are unique.")
        lines[row.id] = number
        rows.append(row)
    if not rows:
        raise DataError(f'{path} is empty; it needs lines such as {{"prompt": "..."}}.')
    return rows


def _row(given: dict[str, Any], number: str, source: str, form: Request) -> Row:
    if unknown := sorted(set(given) - set(KEYS)):
        raise RowError(f"unknown key {', '.join(unknown)}; a line has {', '.join(KEYS)}.")
    if ("prompt" in given) == ("messages" in given):
        raise RowError("a line has prompt, a text, or messages, a list; one of the two.")
    query = given.get("prompt", given.get("messages"))
    if not isinstance(query, str if "prompt" in given else list):
        raise RowError("prompt is a text, and messages a list.")
    id_, task = given.get("id", number), given.get("task", form.task)
    if not isinstance(id_, str | int) or not isinstance(task, str | None):
        raise RowError("id is a text or a whole number, and task a text.")
    return Row(str(id_), source, replace(form, query=query, task=task))


class AnswerFile:
    """A file of answers, one JSON object a line, in the order of the prompts.

    Args:
        path: of the file; it may hold the first answers already.
        rows: all prompts.
        asked: digest of the run and of how answers are generated.

    Raises:
        DataError: the file holds something else than the first answers to these prompts, generated in this way.
    """

    def __init__(self, path: Path, rows: Sequence[Row], asked: str) -> None:
        self.path, self.rows, self.asked = path, rows, asked
        refuse_link(path)
        #: Answers that are in the file, and their bytes.
        self.done, self.size = self._check() if path.exists() else (0, 0)

    def _check(self) -> tuple[int, int]:
        content = self.path.read_bytes()
        *lines, rest = content.split(b"\n")
        other = "Give another --out, or remove it."
        if not rest.startswith(BEGINNING[: len(rest)]):  # else it was being written when the process ended
            raise DataError(f"{self.path}:{len(lines) + 1} is no answer of this command. {other}")
        for place, line in enumerate(lines):
            try:
                found = parse_line(line)
            except RowError as error:
                raise DataError(f"{self.path}:{place + 1} is no answer of this command: {error}. {other}") from error
            if place >= len(self.rows) or found.get("query") != self.rows[place].digest():
                raise DataError(f"{self.path}:{place + 1} answers another prompt than this file has there. {other}")
            if found.get("asked") != self.asked:
                raise DataError(
                    f"{self.path}:{place + 1} was generated by another run, or with other settings. {other}"
                )
        return len(lines), len(content) - len(rest)

    def add(self, replies: Sequence[Reply]) -> None:
        """Append the replies to the next prompts, on disk when this returns."""
        rows = self.rows[self.done : self.done + len(replies)]
        lines = [
            json.dumps(self._record(row, reply), ensure_ascii=False) for row, reply in zip(rows, replies, strict=True)
        ]
        block = "".join(f"{line}\n" for line in lines).encode()
        append(self.path, self.size, block)
        self.size += len(block)
        self.done += len(replies)

    def _record(self, row: Row, reply: Reply) -> dict[str, Any]:
        return {
            "id": row.id,
            "answer": reply.text,
            "expert": reply.expert,
            "verdicts": reply.said(),
            "truncated": reply.truncated,
            "query": row.digest(),
            "asked": self.asked,
        }


def check_lengths(ensemble: Ensemble, rows: Sequence[Row]) -> None:
    """Refuse a row that cannot be answered, before any is.

    Raises:
        DataError: a query is too long or has no valid form; the error names the line.
    """
    for row in rows:
        try:
            ensemble.prompt_ids(row.request)
        except ConfigError as error:
            raise DataError(f"{row.source}: {error}") from error


def answer_file(ensemble: Ensemble, answers: AnswerFile) -> Iterator[int]:
    """Answer the prompts that have no answer yet.

    Args:
        ensemble: answers them.
        answers: the file to which answers are added.

    Yields:
        The number of answers in the file, after each write.
    """
    size = WINDOW * ensemble.batch_size
    while answers.done < len(answers.rows):
        window = answers.rows[answers.done : answers.done + size]
        answers.add(ensemble.reply([row.request for row in window]))
        yield answers.done


def chat(ensemble: Ensemble, form: Request, lines: Iterator[str], write: Callable[[str], None]) -> Iterator[Reply]:
    """Answer lines one by one, each without the ones before it; what is generated is written at once.

    Args:
        ensemble: answers them.
        form: how each is answered; its query is replaced.
        lines: queries.
        write: gets an answer's text, piece by piece.

    Yields:
        The reply to each line.
    """
    for line in lines:
        shown = ""

        def watch(text: str, request: Request) -> bool:
            nonlocal shown
            part = request.certain(text)
            write(part[len(shown) :])
            shown = part
            return False

        request = replace(form, query=line)
        (reply,) = ensemble.reply([request], [partial(watch, request=request)])
        write(reply.text[len(shown) :])
        yield reply
