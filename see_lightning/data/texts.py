"""Values of a data set's columns as text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from string import Formatter
from typing import Any

from see_lightning.errors import listed


class NoText(ValueError):
    """A value is no text; the message describes it and suggests a setting."""


def column_text(form: str, row: Mapping[str, Any]) -> str:
    """Fill in the columns of a row into a text.

    Args:
        form: with columns in braces, ``"{question} {answers.text.0}"``; a format after a colon converts any value to text.
        row: values by column.

    Raises:
        NoText: a value is no text.
        LookupError: the row has no value at a path.

    >>> column_text("{q}: {a.text.0}, {score:.1f}", {"q": "Who?", "a": {"text": ["Lima"]}, "score": 3.79})
    'Who?: Lima, 3.8'
    """
    filled = []
    for literal, path, spec, conversion in Formatter().parse(form):
        filled.append(literal)
        if path is None:
            continue
        value = at(row, path)
        filled.append(_formatted(value, path, conversion or "", spec) if spec or conversion else as_text(value, path))
    return "".join(filled)


def _formatted(value: Any, path: str, conversion: str, spec: str | None) -> str:
    spelled: dict[str, Callable[[Any], str]] = {"s": str, "r": repr, "a": ascii}
    value = spelled[conversion](value) if conversion in spelled else value
    try:
        if isinstance(value, str) and (spec or "")[-1:] in tuple("eEfFgGn%"):
            value = float(value)  # numbers of files are read as texts
        return format(value, spec or "")
    except (ValueError, TypeError) as error:
        raise NoText(f"column {path!r}, {kind_of(value)}, cannot be written as {spec!r}: {error}") from error


def columns_of(form: str) -> list[str]:
    """The columns, or paths into columns, in a text's braces."""
    return [path for _, path, _, _ in Formatter().parse(form) if path is not None]


def at(row: Mapping[str, Any], path: str) -> Any:
    """The value of a row at a path: a column, keys and list positions, joined by dots.

    Raises:
        LookupError: the row has no value at the path.
    """
    if path in row:
        return row[path]
    column, *steps = path.split(".")
    value: Any = row.get(column)
    for number, step in enumerate(steps, start=1):
        before = ".".join([column, *steps[: number - 1]])
        if isinstance(value, Mapping):
            if step not in value:
                raise LookupError(f"{before!r} has no {step!r}, only {listed(value)}")
            value = value[step]
        elif _is_list(value):
            if not step.isdecimal() or int(step) >= len(value):
                raise LookupError(
                    f"{before!r} is a list of {len(value)}, in which there is no {step!r} (the first is 0)"
                )
            value = value[int(step)]
        elif value is None:
            return None
        else:
            raise LookupError(f"{before!r} is {kind_of(value)}, in which there is no {step!r}")
    return value


def as_text(value: Any, path: str) -> str:
    """A string or an integer as text.

    Args:
        value: of a column.
        path: of the value, for messages.

    Raises:
        NoText: it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    fault = f"column {path!r} holds no text but {kind_of(value)}"
    inside = list(_texts_in(value, path))
    if inside:
        fault += f"; name the text in it, such as {', '.join(inside[:3])}"
    elif isinstance(value, bool):
        fault += "; give the words for it, labels: {true: ..., false: ...}"
    elif isinstance(value, float):
        fault += f"; give a format, such as {{{path}:.1f}}, or give the words for it, labels: {{{value}: ...}}"
    raise NoText(fault)


def kind_of(value: Any) -> str:
    """The kind of a value, for messages: a number, a list of 3, ..."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true or false (bool)"
    if isinstance(value, int | float):
        return f"a number ({type(value).__name__})"
    if isinstance(value, Mapping):
        return f"an object (dict with {listed(value) if value else 'no keys'})"
    if _is_list(value):
        return f"a list of {len(value)}"
    return type(value).__name__


def _texts_in(value: Any, path: str) -> Iterator[str]:
    """Paths to the texts inside a value."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts_in(inner, f"{path}.{key}")
    elif _is_list(value):
        for place, inner in enumerate(value[:3]):
            yield from _texts_in(inner, f"{path}.{place}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)
