"""Results without the places of the machine that they were made on."""

import os
import re
import shlex
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

#: Begins above or outside of where a command is given: ``/a``, ``~/a``, ``../a``.
OUTSIDE = r"(?:file://)?(?:~[\w.-]*|\.\.)?/"
#: The same in the middle of a text, where one slash alone may be a word of a language.
IN_TEXT = re.compile(rf"(?<![\w./<~]){OUTSIDE}[^/\s'\"<>,;:()\[\]{{}}]+(?:/[^/\s'\"<>,;:()\[\]{{}}]+)+/?")
HOST = "host"
CACHE = "~/.cache/see_lightning"
NOT_KEPT = ("paths", "logger", "hydra")  # settings that tell of a machine or an account, and change no number


def machine(config: Mapping[str, Any], runs: Path, own: Iterable[str] = ()) -> dict[str, str]:
    """What stands for each place that a run knows, in all forms in which it may be written, and for the machine's name.

    Args:
        config: of the run, resolved.
        runs: the folder of runs in which it lies.
        own: values of settings that say where something lies, such as a folder of data below the working folder.
    """
    paths = config.get("paths") or {}
    below_data = f"{paths.get('data') or 'data'}/"
    told = {name: part for name, part in config.items() if name not in NOT_KEPT}
    places = [
        (paths.get("data"), "data"),
        (paths.get("runs"), "runs"),
        (str(runs), "runs"),
        (paths.get("cache"), CACHE),
        (os.getcwd(), "."),
        (os.path.expanduser("~"), "~"),
        *((text, _last(text)) for text in _leaves(told) if re.match(OUTSIDE, text) and "\n" not in text),
        *(
            (place, _last(place))
            for place in own
            if "/" in os.path.normpath(place) and not place.startswith(below_data)
        ),
    ]
    found: dict[str, str] = {}
    for place, name in places:
        if place:
            there = os.path.expanduser(place)
            for form in (place, there, os.path.normpath(there), os.path.abspath(there), os.path.realpath(there)):
                found.setdefault(form.rstrip("/"), name)
    host = socket.gethostname()
    if re.search(r"[\d.-]", host):  # another may be a word of the results
        found.setdefault(host, HOST)
    return {place: name for place, name in found.items() if place.strip("./~")}


def _leaves(value: Any) -> Iterator[str]:
    """All texts of a configuration."""
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _leaves(part)
    if isinstance(value, str):
        yield value


def without_places(value: Any, places: Mapping[str, str]) -> Any:
    """A copy of JSON content in which no text names a place of the machine.

    Known places are replaced by their names. Of others outside of the folder in which a command is given, the last part
    is kept, for it may name a model or a data set.

    Args:
        value: content.
        places: what stands for which place, from ``machine``.

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
        except ValueError:  # no command after all
            return _text(value, places)
        kept = [word for word in words if re.split(r"[.=]", word.lstrip("+~"))[0] not in NOT_KEPT]
        changed = [_operand(_argument(word, places), places) for word in kept]
        return value if changed == words else shlex.join(changed)
    return _value(value, places)


def _argument(word: str, places: Mapping[str, str]) -> str:
    """A word of a command: the paths in it may have blanks, and stand in lists."""
    cut = re.compile(rf"(?<![^=,:'\"(\[{{]){OUTSIDE}[^,'\"()\[\]{{}}]*")
    return cut.sub(lambda found: _last(found[0]), _known(word, places))


def _operand(word: str, places: Mapping[str, str]) -> str:
    """A word of a command that is no setting: a path below the working folder, unless what it lies in has a name already."""
    first = os.path.normpath(word).split("/")[0]
    is_path = "/" in word and "=" not in first and not word.startswith((".../", "~"))
    return _last(word) if is_path and first not in places.values() else word


def _value(text: str, places: Mapping[str, str]) -> str:
    """A text that may be a path as a whole, with blanks in it."""
    text = _known(text, places)
    is_path = re.fullmatch(rf"{OUTSIDE}[^\n,\[\]{{}}]*", text) and not text.startswith(CACHE)
    return _last(text) if is_path else _text(text, places)


def _text(text: str, places: Mapping[str, str]) -> str:
    return IN_TEXT.sub(lambda found: found[0] if found[0].startswith(CACHE) else _last(found[0]), _known(text, places))


def _known(text: str, places: Mapping[str, str]) -> str:
    if text in places:
        return places[text]
    for place in sorted(places, key=len, reverse=True):  # the inner ones first
        # One name may be a word of any text, unless something lies below it.
        is_word = "/" not in place and not place.startswith("~") and places[place] != HOST
        end = "(?=/)" if is_word else r"(?![\w-]|\.\w)"
        text = re.sub(rf"(?<![\w./~-])(?:file://)?{re.escape(place)}{end}", places[place], text)
    return text


def _last(path: str) -> str:
    """The last part of a path; of a home folder nothing, for it is somebody's name."""
    parts = [part for part in path.removeprefix("file://").split("/") if part]
    is_home = (len(parts) == 2 and parts[0] in ("home", "Users")) or parts[:1] == ["~"] == parts
    return "~" if is_home else f".../{parts[-1]}" if parts else path


def words_without_places(words: Iterable[str]) -> list[str]:
    """The words of a command without places, as in ``without_places``."""
    return [_argument(word, {}) for word in words]
