"""Removal of a machine's paths and name from results."""

import os
import re
import shlex
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

#: The beginning of a path outside the working folder: ``/a``, ``~/a``, ``../a``.
OUTSIDE = r"(?:file://)?(?:~[\w.-]*|\.\.)?/"
#: Such a path within a text; it needs two slashes, since one may belong to a word.
IN_TEXT = re.compile(rf"(?<![\w./<~]){OUTSIDE}[^/\s'\"<>,;:()\[\]{{}}]+(?:/[^/\s'\"<>,;:()\[\]{{}}]+)+/?")
HOST = "host"
CACHE = "~/.cache/see_lightning"
NOT_KEPT = ("paths", "logger", "hydra")  # settings that may name a machine or an account, and change no number


def machine(config: Mapping[str, Any], runs: Path, own: Iterable[str] = ()) -> dict[str, str]:
    """Replacements for the machine's name and for each path that a run knows, in all forms in which it may be written.

    Args:
        config: of the run, resolved.
        runs: the folder of runs that contains it.
        own: values of settings that are paths, such as a folder of data in the working folder.
    """
    paths = config.get("paths") or {}
    below_data = f"{paths.get('data') or 'data'}/"
    kept_settings = {name: part for name, part in config.items() if name not in NOT_KEPT}
    places = [
        (paths.get("data"), "data"),
        (paths.get("runs"), "runs"),
        (str(runs), "runs"),
        (paths.get("cache"), CACHE),
        (os.getcwd(), "."),
        (os.path.expanduser("~"), "~"),
        *((text, _last(text)) for text in _leaves(kept_settings) if re.match(OUTSIDE, text) and "\n" not in text),
        *(
            (place, _last(place))
            for place in own
            if "/" in os.path.normpath(place) and not place.startswith(below_data)
        ),
    ]
    found: dict[str, str] = {}
    for place, name in places:
        if place:
            path = os.path.expanduser(place)
            for form in (place, path, os.path.normpath(path), os.path.abspath(path), os.path.realpath(path)):
                found.setdefault(form.rstrip("/"), name)
    host = socket.gethostname()
    if re.search(r"[\d.-]", host):  # a name without these may be a word of the results
        found.setdefault(host, HOST)
    return {place: name for place, name in found.items() if place.strip("./~")}


def _leaves(value: Any) -> Iterator[str]:
    """All texts of a configuration."""
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _leaves(part)
    if isinstance(value, str):
        yield value


def without_places(value: Any, places: Mapping[str, str]) -> Any:
    """A copy of JSON content without paths of the machine.

    Known paths are replaced by their names. Of other paths outside the working folder the last part is kept, since it may
    name a model or a data set.

    Args:
        value: content.
        places: replacements from ``machine``.

    >>> without_places({"command": "python run.py seed=1 paths.runs=/big/runs", "at": "/big/data/a"}, {"/big/data": "data"})
    {'command': 'python run.py seed=1', 'at': 'data/a'}
    >>> without_places(["python run.py ood.dir=/home/me/ood", "row 3 of ../there/b.json is bad, see https://a/b/c"], {})
    ['python run.py ood.dir=.../ood', 'row 3 of .../b.json is bad, see https://a/b/c']
    """
    if isinstance(value, Mapping):
        return {without_places(key, places): without_places(part, places) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(part, places) for part in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("python ", "see-lightning ")):
        try:
            words = shlex.split(value)
        except ValueError:  # not a command
            return _text(value, places)
        kept = [word for word in words if re.split(r"[.=]", word.lstrip("+~"))[0] not in NOT_KEPT]
        changed = [_operand(_argument(word, places), places) for word in kept]
        return value if changed == words else shlex.join(changed)
    return _value(value, places)


def _argument(word: str, places: Mapping[str, str]) -> str:
    """Replace the paths in a word of a command; they may have blanks, and stand in lists."""
    cut = re.compile(rf"(?<![^=,:'\"(\[{{]){OUTSIDE}[^,'\"()\[\]{{}}]*")
    return cut.sub(lambda found: _last(found[0]), _known(word, places))


def _operand(word: str, places: Mapping[str, str]) -> str:
    """Shorten a word of a command that is a path in the working folder, unless its first folder is a replacement already."""
    first = os.path.normpath(word).split("/")[0]
    is_path = "/" in word and "=" not in first and not word.startswith((".../", "~"))
    return _last(word) if is_path and first not in places.values() else word


def _value(text: str, places: Mapping[str, str]) -> str:
    """Replace the paths in a text, which may be one path with blanks."""
    text = _known(text, places)
    is_path = re.fullmatch(rf"{OUTSIDE}[^\n,\[\]{{}}]*", text) and not text.startswith(CACHE)
    return _last(text) if is_path else _text(text, places)


def _text(text: str, places: Mapping[str, str]) -> str:
    return IN_TEXT.sub(lambda found: found[0] if found[0].startswith(CACHE) else _last(found[0]), _known(text, places))


def _known(text: str, places: Mapping[str, str]) -> str:
    if text in places:
        return places[text]
    for place in sorted(places, key=len, reverse=True):  # longer paths first
        # A name without a slash may be a word of any text; it is a path only if a slash follows.
        is_word = "/" not in place and not place.startswith("~") and places[place] != HOST
        end = "(?=/)" if is_word else r"(?![\w-]|\.\w)"
        text = re.sub(rf"(?<![\w./~-])(?:file://)?{re.escape(place)}{end}", places[place], text)
    return text


def _last(path: str) -> str:
    """The last part of a path; ~ for a home folder, since it is named after a person."""
    parts = [part for part in path.removeprefix("file://").split("/") if part]
    is_home = (len(parts) == 2 and parts[0] in ("home", "Users")) or parts[:1] == ["~"] == parts
    return "~" if is_home else f".../{parts[-1]}" if parts else path


def words_without_places(words: Iterable[str]) -> list[str]:
    """The words of a command without paths outside the working folder, of which the last part is kept."""
    return [_argument(word, {}) for word in words]
