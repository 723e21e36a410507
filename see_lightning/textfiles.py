"""Text files of users, in the encodings that their editors write."""

import codecs
from pathlib import Path

from see_lightning.config import DataError

# The longer first, as one begins with another.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def text_bytes(path: Path) -> bytes:
    """What a text file holds, in UTF-8 and without a mark of the byte order; UTF-16 and UTF-32 need that mark.

    Raises:
        DataError: the file is in none of these.
    """
    content = path.read_bytes()
    for mark, encoding in MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding).removeprefix("\ufeff").encode()
            except UnicodeDecodeError as error:
                if encoding == "utf-8":  # the reader tells which row
                    return content.removeprefix(mark)
                raise DataError(f"{path}: not {encoding.upper()}, as its first bytes say: {error.reason}") from error
    if b"\0" in content[:4]:
        raise DataError(f"{path}: neither UTF-8 nor marked as UTF-16; save it as UTF-8")
    return content


def read_text(path: Path) -> str:
    """What a text file holds.

    Raises:
        DataError: it is in another encoding than ``text_bytes`` reads.
    """
    try:
        return text_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start + 1}") from error


def holds_surrogate(text: str) -> bool:
    r"""Whether a text has half a surrogate pair, as JSON may spell it and bytes that are no UTF-8 leave it.

    >>> holds_surrogate("caf\udce9"), holds_surrogate("café")
    (True, False)
    """
    return any("\ud800" <= character <= "\udfff" for character in text)
