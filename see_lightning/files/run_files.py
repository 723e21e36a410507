"""Reading of a run's files: size, form and digest are checked.

A run's folder may come from somebody else, or from a disk with errors. A file is either read whole, or refused in one line
that names it and what to do.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from see_lightning.errors import Refusal
from see_lightning.files.reading import file_bytes
from see_lightning.files.run_shapes import ANSWER, FILES, REMEMBERED, WHOLE
from see_lightning.files.text import holds_surrogate

LARGEST = 1 << 28  # bytes of a file; the record of a million rows takes 20 MB
DEPTH = 32  # of nested lists and objects; a run's own files have 8
SEAL = "sha256"  # last field of a sealed file: the digest of all others


class LedgerError(Refusal):
    """A run directory that cannot be used as it is; the message names the file and what to do."""


NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a file with its own digest as the last field, so that a reader can detect changes."""
    return {**content, SEAL: _digest(content)}


def read_file(path: Path, name: str | None = None) -> dict[str, Any]:
    """The content of a JSON file of a run, without its seal.

    Args:
        path: of the file.
        name: in ``FILES``; by default that of the path.

    Raises:
        LedgerError: it cannot be read, was changed, or is not of a run's form.
    """
    return read_content(read_bytes(path, name), path, name)


def read_bytes(path: Path, name: str | None = None) -> bytes:
    """The bytes of a file of a run.

    Args:
        path: of the file.
        name: in ``FILES``; by default that of the path.

    Raises:
        LedgerError: it cannot be read, or is larger than any run writes.
    """
    with _named_in_errors(path, FILES[name or path.name][1]):
        if (size := path.stat().st_size) > LARGEST:
            raise ValueError(f"it has {size:,} bytes, more than any run writes")
        return file_bytes(path)


def read_content(content: bytes, path: Path, name: str | None = None) -> dict[str, Any]:
    """Parse and check the bytes of a file of a run.

    Args:
        content: the bytes.
        path: of the file.
        name: in ``FILES``; by default that of the path.

    Raises:
        LedgerError: it was changed, or is not of a run's form.
    """
    shape, cure = FILES[name or path.name]
    with _named_in_errors(path, cure):
        fields = parse(content)
        if not isinstance(fields, dict):
            raise ValueError(f"an object is wanted, not {_brief(fields)}")
        sealed = fields.pop(SEAL, None)
        if sealed is not None and sealed != _digest(fields):
            raise ValueError("its sha256 is not the one it was written with; it was edited, or its disk has an error")
        check(fields, shape)
    return fields


def read_records(content: bytes, kind: str, path: Path) -> list[dict[str, Any]]:
    """Parse the lines of a file of answers or cached responses.

    Args:
        content: the lines.
        kind: in the ledger; those of cached responses end in ``remembered``.
        path: of the file.

    Raises:
        LedgerError: a line is not of a run's form.
    """
    shape = REMEMBERED if kind.endswith("remembered") else ANSWER
    with _named_in_errors(path, WHOLE):
        records = [parse(line, finite=False) for line in content.splitlines()]
        for record in records:
            check(record, shape)
    return records


@contextmanager
def well_shaped(path: Path) -> Iterator[None]:
    """A context for using a file's content: an error in it is a refusal that names the file.

    Args:
        path: of the file.

    Raises:
        LedgerError: the parts of the file do not belong together.
    """
    with _named_in_errors(path, FILES.get(path.name, (None, WHOLE))[1]):
        yield


@contextmanager
def _named_in_errors(path: Path, cure: str) -> Iterator[None]:
    try:
        yield
        return
    except OSError as error:
        if error.filename != str(path):
            raise
        _refuse(path, f"cannot be read: {error.strerror}", cure, error)
    except UnicodeDecodeError as error:
        _refuse(path, f"is damaged: byte {error.start} is not UTF-8", cure, error)
    except KeyError as error:
        _refuse(path, f"is damaged: what belongs to {error} is missing", cure, error)
    except Refusal:
        raise
    except (RecursionError, MemoryError) as error:
        _refuse(path, "is damaged: it is too large or too deep", cure, error)
    except (ValueError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        _refuse(path, f"is damaged: {error}", cure, error)


def _refuse(path: Path, fault: str, cure: str, error: BaseException) -> NoReturn:
    raise LedgerError(f"{path} {fault}. {cure}") from error


def parse(content: bytes, *, finite: bool = True) -> Any:
    """JSON within limits.

    Args:
        content: in UTF-8.
        finite: whether ``NaN`` and ``Infinity`` are refused.

    Raises:
        ValueError: it is not JSON, or has a number or a depth beyond the limits.
        RecursionError: it is nested too deep for Python.
    """
    text = content.decode("utf-8")
    value = json.loads(
        text,
        parse_int=_int,
        parse_float=_float if finite else float,
        parse_constant=_refuse_constant if finite else None,
    )
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH:
            raise ValueError(f"its values are nested more than {DEPTH} deep")
        level = list(
            chain.from_iterable(
                part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)
            )
        )
    if "\\ud" in text.lower() and holds_surrogate(json.dumps(value, ensure_ascii=False)):
        raise ValueError("it holds half a character (a lone surrogate)")
    return value


def check(value: Any, shape: Any, place: str = "") -> None:
    """Check the form of a value.

    Args:
        value: as parsed.
        shape: in the notation of ``run_shapes``.
        place: of the value in its file, for the message.

    Raises:
        ValueError: the value has another form.
    """
    if isinstance(shape, tuple):
        for one in shape:
            if one is None and value is None:
                return None
            if isinstance(one, type) and _is(value, one):
                return None
        for one in shape:
            if isinstance(one, dict | list) and isinstance(value, type(one)):
                return check(value, one, place)
    elif shape is None:
        if value is None:
            return None
    elif isinstance(shape, type):
        if _is(value, shape):
            return None
    elif isinstance(shape, list) and isinstance(value, list):
        for at, part in enumerate(value):
            check(part, shape[0], f"{place}[{at}]")
        return None
    elif isinstance(shape, dict) and isinstance(value, dict):
        for name, inner in shape.items():
            if isinstance(name, str):
                key = name.removesuffix("?")
                if key in value:
                    check(value[key], inner, f"{place}.{key}" if place else key)
                elif key == name:
                    raise ValueError(f"{place or 'it'} has no {key!r}")
        if str in shape:
            for key in value.keys() - {name.removesuffix("?") for name in shape if isinstance(name, str)}:
                check(value[key], shape[str], f"{place}.{key}" if place else key)
        return None
    raise ValueError(f"{place or 'it'} is {_brief(value)}, where {_name(shape)} belongs")


def _is(value: Any, kind: type) -> bool:
    if kind is float and type(value) is int:
        return True
    return isinstance(value, kind) and not (isinstance(value, bool) and kind in (int, float))


def _name(shape: Any) -> str:
    if isinstance(shape, tuple):
        return " or ".join(dict.fromkeys(map(_name, shape)))
    if isinstance(shape, list | dict):
        shape = type(shape)
    return NAMES.get(shape, "null")


def _brief(value: Any) -> str:
    shown = "null" if value is None else _name(type(value)) if isinstance(value, dict | list) else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _int(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of a run")
