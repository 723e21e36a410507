"""Texts of users: decoding of files in the common encodings, and escapes for control characters."""

import codecs
import json
import re
import sys
from pathlib import Path
from typing import Any

from see_lightning.errors import DataError
from see_lightning.files.reading import file_bytes

# Longer marks first, since one begins with another.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

#: Control characters of terminals: C0 without tab and newline, DEL, C1, and those that change the direction of writing.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str, control: re.Pattern[str] = CONTROL) -> str:
    r"""A text with its control characters as escapes, which is safe in a terminal.

    Args:
        text: from a file, a model or a setting.
        control: the characters to escape.

    >>> print(visible("a\x1b[2Jb\u202ec"))
    a\x1b[2Jb\u202ec
    """
    return control.sub(lambda found: "".join(map(_escape, found[0])), text)


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def text_bytes(path: Path) -> bytes:
    """The content of a text file as UTF-8 without a byte order mark; UTF-16 and UTF-32 are recognised by theirs.

    Raises:
        DataError: the file is in another encoding.
    """
    content = file_bytes(path)
    for mark, encoding in MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding).removeprefix("\ufeff").encode()
            except UnicodeDecodeError as error:
                if encoding == "utf-8":  # the caller finds the row
                    return content.removeprefix(mark)
                raise DataError(f"{path}: not {encoding.upper()}, as its first bytes say: {error.reason}") from error
    if b"\0" in content[:4]:
        raise DataError(f"{path}: neither UTF-8 nor marked as UTF-16; save it as UTF-8")
    return content


def read_text(path: Path) -> str:
    """The content of a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        DataError: it is in another encoding.
    """
    try:
        return text_bytes(path).decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{path}:{line}: not UTF-8: byte 0x{error.object[error.start]:02x} at column {column}"
        ) from error


class NoJson(ValueError):
    """A text is not JSON, or JSON beyond Python's limits.

    Args:
        line: of the error, from 1.
        reason: of the error.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def parse_json(content: str, **parsers: Any) -> Any:
    r"""Parse a JSON text.

    Args:
        content: the text.
        parsers: arguments of ``json.loads``, such as ``parse_int``.

    Raises:
        NoJson: it is not JSON, or has a value beyond Python's limits.

    >>> try: parse_json('{"a": 1,\n "b": ' + 5000 * "9" + "}")
    ... except NoJson as error: print(error.line, error)
    2 invalid JSON: a number of 5000 digits; at most 4300 can be read
    """
    try:
        return json.loads(content, **parsers)
    except json.JSONDecodeError as error:
        raise NoJson(error.lineno, f"invalid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        start, depth = _deepest(content)
        raise NoJson(_line(content, start), f"invalid JSON: values nested {depth} deep, which is too deep") from error
    except ValueError as error:  # Python's limit on the digits of a number
        most = sys.get_int_max_str_digits()
        found = next((one for one in re.finditer(rf"{_STRING}|(\d{{{most + 1},}})", content) if one[1]), None)
        reason = f"a number of {len(found[1])} digits; at most {most} can be read" if found else str(error)
        raise NoJson(_line(content, found.start() if found else 0), f"invalid JSON: {reason}") from error


_STRING = r'"(?:[^"\\]|\\.)*"'


def _deepest(content: str) -> tuple[int, int]:
    """The position and depth of the deepest nesting in a JSON text."""
    start = depth = most = 0
    for one in re.finditer(rf"{_STRING}|[\[\]{{}}]", content):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(one[0], 0)
        if depth > most:
            start, most = one.start(), depth
    return start, most


def _line(content: str, start: int) -> int:
    return content.count("\n", 0, start) + 1


def holds_surrogate(text: str) -> bool:
    r"""Whether a text has half a surrogate pair, from a JSON escape or from bytes that are not UTF-8.

    >>> holds_surrogate("caf\udce9"), holds_surrogate("café")
    (True, False)
    """
    return any("\ud800" <= character <= "\udfff" for character in text)
