"""The files of a run as they are read: within limits, of the shape that a run writes, and as they were written.

A run's folder may come from someone else, or from a disk that lost a bit. Whatever a file holds, it is read whole, or one
line names the file and what to do.
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

LARGEST = 1 << 28  # bytes of a file; a million rows are noted in 20 MB
DEPTH = 32  # of lists and objects in each other; a run's own files have 8
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
    """Content of a file with the digest of it all as its last field, by which its reader finds it as it was written."""
    return {**content, SEAL: _digest(content)}


def read_file(path: Path, name: str | None = None) -> dict[str, Any]:
    """What a JSON file of a run holds, without its seal.

    Args:
        path: of the file.
        name: by which ``FILES`` knows it; that of the path by default.

    Raises:
        LedgerError: it cannot be read, is not what was written, or not what a run writes.
    """
    return read_content(read_bytes(path, name), path, name)


def read_bytes(path: Path, name: str | None = None) -> bytes:
    """The bytes of a file of a run, if it is no larger than any run writes; arguments and errors as of ``read_file``."""
    with _told(path, FILES[name or path.name][1]):
        if (size := path.stat().st_size) > LARGEST:
            raise ValueError(f"it has {size:,} bytes, more than any run writes")
        return file_bytes(path)


def read_content(content: bytes, path: Path, name: str | None = None) -> dict[str, Any]:
    """What the bytes of a file say; other arguments and errors as of ``read_file``."""
    shape, cure = FILES[name or path.name]
    with _told(path, cure):
        fields = parse(content)
        if not isinstance(fields, dict):
            raise ValueError(f"an object is wanted, not {_brief(fields)}")
        sealed = fields.pop(SEAL, None)
        if sealed is not None and sealed != _digest(fields):
            raise ValueError("its sha256 is not that of what was written; it was edited, or its disk lost something")
        check(fields, shape)
    return fields


def read_records(content: bytes, kind: str, path: Path) -> list[dict[str, Any]]:
    """Lines of a file of answers.

    Args:
        content: the lines.
        kind: as the ledger names it; ``answers``, or what experts are remembered to have said.
        path: of the file.

    Raises:
        LedgerError: a line is not what a run writes.
    """
    shape = REMEMBERED if kind.endswith("remembered") else ANSWER
    with _told(path, WHOLE):
        records = [parse(line, finite=False) for line in content.splitlines()]
        for record in records:
            check(record, shape)
    return records


@contextmanager
def well_shaped(path: Path) -> Iterator[None]:
    """Within this, a file whose parts do not belong together is told by its name.

    Args:
        path: of the file whose content is used.

    Raises:
        LedgerError: so it is.
    """
    with _told(path, FILES.get(path.name, (None, WHOLE))[1]):
        yield


@contextmanager
def _told(path: Path, cure: str) -> Iterator[None]:
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


def _refuse(path: Path, what: str, cure: str, error: BaseException) -> NoReturn:
    raise LedgerError(f"{path} {what}. {cure}") from error


def parse(content: bytes, *, finite: bool = True) -> Any:
    """JSON within limits.

    Args:
        content: in UTF-8.
        finite: whether ``NaN`` and ``Infinity`` are refused too.

    Raises:
        ValueError: it is none, or has a number of a size, or a depth, that no run writes.
        RecursionError: likewise.
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
    """Compare a value with a shape, as ``run_shapes`` writes it.

    Args:
        value: as parsed.
        shape: that it shall have.
        place: of the value in its file, for the message.

    Raises:
        ValueError: it has another.
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
