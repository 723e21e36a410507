"""Translation of typed overrides into Hydra's grammar: Python literals, settings in a dict, texts with special characters.

A W&B sweep passes values as Python prints them (``None``, ``{'lr': 0.001}``), and a folder may have any name. Words that
Hydra's grammar can read are left to it; the others are read as a Python literal or a text, or refused with a correction.
"""

import ast
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from hydra._internal.grammar.utils import escape_special_characters
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Quote, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig

from see_lightning.config.explain import settings_in
from see_lightning.config.former_names import current_setting, current_value
from see_lightning.config.schema import AdapterConfig, RunConfig
from see_lightning.config.search_path import CONF, is_group, options
from see_lightning.errors import ConfigError

MAY_BE_NULL = ("experiment", "debug", "router", "rule")  # optional groups
_PARSER = OverridesParser.create()
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NAMES = {"inf": float("inf"), "nan": float("nan"), "null": None, "true": True, "false": False}
_WINDOWS = re.compile(r"[A-Za-z]:\\|\\\\\w")  # a Windows path, in which a backslash is no escape
_TOKENS = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[\[\]{},]|[^\[\]{},'"]+|['"]""", re.DOTALL)


def translate(words: Sequence[str], *, several: bool) -> list[str]:
    """Translate typed words into Hydra's overrides, in the same order.

    Args:
        words: as typed.
        several: whether each of several values between commas makes a job of its own (``-m``).

    Raises:
        ConfigError: a word is no setting with a value, or its value can be read in several ways.

    >>> translate(["model.system_prompt=None", "optim={'lr': 0.001}", "paths.runs=/runs/a=1"], several=False)
    ['model.system_prompt=null', 'optim.lr=0.001', 'paths.runs="/runs/a=1"']
    """
    chosen = next((word.partition("=")[2] for word in reversed(words) if word.startswith("method=")), "")
    ours = (CONF / "method" / f"{current_value('method', chosen)}.yaml").exists()
    return [override for word in words for override in _translated(word, several, ours)]


def _translated(word: str, several: bool, ours: bool) -> list[str]:
    key, equals, text = word.partition("=")
    if key.startswith("~") and not equals and key[1:] not in MAY_BE_NULL and (CONF / key[1:] / "none.yaml").exists():
        return [f"{key[1:]}=none"]
    if key.startswith("~"):
        return [f"~{_called(key[1:], ours)}{equals}{text}"]
    if not equals or not key.strip("+ "):
        raise ConfigError(
            f"{word!r} is no setting with a value: write NAME=VALUE, with no blanks around =.{_meant(word)}"
        )
    key = _called(key, ours)
    kinds = kinds_of(key)
    if text == "~" or text.startswith("~/"):  # a shell does not expand it inside a word
        text = os.path.expanduser(text)
    word = f"{key}={text}"
    if str in kinds and _WINDOWS.match(text) and "," not in text:
        return [_keyed(key, _quoted(text))]
    try:
        value = _parsed(text)
    except HydraException:
        return _unreadable(key, text, several)
    if isinstance(value, ChoiceSweep):
        if not several:
            return _listed(key, text, value)
        fitted = [_fit(key, one) for one in value.list]
        if not value.simple_form or _same(fitted, value.list):
            return [_keyed(key, text)]
        return [_keyed(key, ",".join(map(_written, fitted)))]
    if isinstance(value, Sweep | Glob):
        return [_keyed(key, text)]
    if isinstance(value, int | float) and _is_text(key, kinds):
        return [_keyed(key, _quoted(text))]  # kept as typed: 1.10 is a version, not the number 1.1
    return _set(key, value, text)


def _is_text(key: str, kinds: tuple[Any, ...]) -> bool:
    """Whether a setting holds texts, so that a typed number is a text: by its type, its values in the files, or its name.

    >>> [_is_text(key, kinds_of(key)) for key in ("model.revision", "benchmark.version", "trainer.devices")]
    [True, True, False]
    """
    group = key.lstrip("+").partition(".")[0]
    if get_type_hints(RunConfig).get(group) is not Any:
        return str in kinds
    if key.rpartition(".")[2] in ("folder", "path", "dir", "name"):
        return True
    return any(isinstance(value, str) and re.fullmatch(r"[\d.]+", value) for value in _in_files(key.lstrip("+")))


def _called(key: str, ours: bool = False) -> str:
    """The key with a former name replaced by today's name; leading plus signs stay.

    Args:
        key: as typed.
        ours: whether the method is known to be the package's; a user's own may have a setting of a former name.
    """
    name = key.lstrip("+")
    return key if _in_files(name) and not ours else key.removesuffix(name) + current_setting(name)


def _set(key: str, value: Any, text: str | None = None) -> list[str]:
    """The overrides that set a setting, or each setting of a group; ``text`` is kept where it has the same meaning."""
    key = _called(key)
    if isinstance(value, dict) and _is_part(key):
        return [override for name, part in value.items() for override in _set(f"{key}.{name}", part)]
    fitted = _fit(key, value)
    if fitted is None and is_group(name := key.lstrip("+")):
        return [f"~{name}"]  # Hydra's own way to choose none; it refuses null
    return [_keyed(key, text if text is not None and _same(fitted, value) else _written(fitted))]


def _fit(key: str, value: Any) -> Any:
    """A value in the setting's own type: Python's None becomes null, and a quoted number a number if the setting is one."""
    name, nothing = key.lstrip("+"), value is None or value == "None"
    if not is_group(name):
        value = current_value(name, value)
        return "none" if nothing and "none" in _in_files(name) else _as_one_of(kinds_of(name), value)
    stems = sorted({path.stem for path in options(name)})
    if value not in stems:
        value = current_value(name, value)
    if nothing and name in MAY_BE_NULL:
        return None
    if (nothing or value is False) and "none" in stems:
        return "none"
    if nothing or not isinstance(value, str | QuotedString | list):
        raise ConfigError(f"{name} must be one of {', '.join(stems)}; got {_written(value)}.")
    return value


def _as_one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_one_of((), part) for name, part in value.items()}
    if isinstance(value, list):
        parts = next((get_args(kind) for kind in kinds if get_origin(kind) is list), ())
        return [_as_one_of(parts, part) for part in value]
    if isinstance(value, QuotedString) and kinds and str not in kinds:
        try:
            number = _parsed(value.text)
        except HydraException:
            return value
        return _as_one_of(kinds, number) if type(number) in (int, float, bool) else value
    if isinstance(value, str) and value == "None":
        return value if str in kinds and NoneType not in kinds else None
    if isinstance(value, float) and int in kinds and float not in kinds and value.is_integer():
        return int(value)
    return value


def _unreadable(key: str, text: str, several: bool) -> list[str]:
    """Translate a value that Hydra's grammar cannot read: a Python literal, a list of unquoted texts, or one text."""
    if text[0] in "[({":
        try:
            return _set(key, _literal(ast.parse(text.strip(), mode="eval").body))
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            pass
        try:
            return _set(key, _parsed(_with_quotes(text)))
        except HydraException:
            pass
    kinds = kinds_of(key)
    if text[0] in "[({" and (kinds or _is_part(key)) and str not in kinds:
        raise ConfigError(
            f"{key}={text} cannot be read: a bracket or a quote is missing or left over, or a blank stands where a comma"
            f" should. Write a list as {_typed(key, '[a,b]')}, a dict as {_typed(key, '{a:b}')}."
        )
    if several and "," in text:
        parts = ",".join(_quoted(part.strip()) for part in text.split(","))
        raise ConfigError(
            f"{key}={text} can be read in two ways: one text, {_typed(key, _quoted(text))}; or one for each job,"
            f" {_typed(key, parts)}."
        )
    return [_keyed(key, _quoted(text))]


def _listed(key: str, text: str, value: ChoiceSweep) -> list[str]:
    """Values between commas without ``-m``: a list if the setting is one, one text if they are prose; else refused."""
    kinds = kinds_of(key)
    if any(get_origin(kind) is list for kind in kinds) and value.simple_form:
        return _set(key, value.list)
    if str in kinds and value.simple_form and re.search(r",\s", text):
        return [_keyed(key, _quoted(text))]
    more = ""
    if value.simple_form and not _is_part(key) and (not kinds or str in kinds):
        more = f"; for one text write {_typed(key, _quoted(text))}"
        more += "" if kinds else f", for a list {_typed(key, f'[{text}]')}"
    raise ConfigError(f"{key}={text} has several values: add -m for a job with each{more}.")


def _parsed(text: str) -> Any:
    return _PARSER.parse_override(f"key={text}")._value


def _literal(node: ast.expr) -> Any:
    """A Python literal as Hydra's parser represents it; a bare name is a text, except inf, nan, null, true and false."""
    match node:
        case ast.Constant(value=str(text)):
            return QuotedString(text, Quote.single)
        case ast.Constant(value=None | bool() | int() | float()):
            return node.value
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return [_literal(part) for part in parts]
        case ast.Dict(keys=names, values=parts):
            named = [_literal(name) for name in names if name is not None]
            texts = [name.text if isinstance(name, QuotedString) else str(name) for name in named]
            return dict(zip(texts, map(_literal, parts), strict=True))
        case ast.UnaryOp(op=ast.USub(), operand=number):
            return -_literal(number)
        case ast.Name(id=name):
            return _NAMES.get(name, name)
    raise ValueError


def _with_quotes(text: str) -> str:
    """A list or a dict with quotes around each bare piece that the grammar cannot read."""
    done, open_ = [], [""]
    for token in _TOKENS.findall(text):
        if token in "[{":
            open_.append(token)
        elif token in "]}":
            open_ = open_[:-1] or [""]
        elif token != "," and token[0] not in "'\"":
            name, colon, piece = token.partition(":") if open_[-1] == "{" else ("", "", token)
            try:
                _parsed(f"[{piece}]")
            except HydraException:
                piece = _quoted(piece.strip())
            token = f"{name}{colon}{piece}"
        done.append(token)
    return "".join(done)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and repr(one) == repr(other)


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()  # double, since shells usually get single ones


def _written(value: Any) -> str:
    """A value in Hydra's grammar."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case QuotedString():
            return _quoted(value.text)
        case list():
            return f"[{','.join(map(_written, value))}]"
        case dict():
            return (
                f"{{{','.join(f'{escape_special_characters(name)}:{_written(part)}' for name, part in value.items())}}}"
            )
    plain = _WORD.fullmatch(value) and value.lower() not in (*_NAMES, "none")
    return value if plain or value == "none" else _quoted(value)


def _keyed(key: str, text: str) -> str:
    """An override; a part of the key that the grammar cannot read, such as 20Minuten, goes into a dict.

    Raises:
        ConfigError: the override cannot be read in this form either.
    """
    names, inner = key.split("."), text
    while True:
        override = f"{'.'.join(names)}={inner}"
        try:
            _PARSER.parse_override(override)
        except HydraException:
            if len(names) == 1:
                raise ConfigError(f"there is no setting {key!r}, and {key}={text} cannot be read.") from None
            inner = f"{{{escape_special_characters(names.pop())}:{inner}}}"
        else:
            return override


def _typed(key: str, text: str) -> str:
    """The override, quoted for a shell."""
    return shlex.quote(_keyed(key, text))


def _meant(word: str) -> str:
    groups = [path.parent.name for path in options() if path.stem == word]
    return f" Did you mean {groups[0]}={word}?" if groups else ""


def _is_part(key: str) -> bool:
    """Whether a key names a group of settings."""
    name = key.lstrip("+")
    return is_group(name) or is_dataclass(get_type_hints(RunConfig).get(name))


def kinds_of(key: str) -> tuple[Any, ...]:
    """The types that a setting may have: from the schema, else from its values in the files of its group.

    >>> kinds_of("train_size"), kinds_of("adapter.targets"), kinds_of("method.target_recall"), kinds_of("trainer.foo")
    ((<class 'int'>, <class 'NoneType'>), (list[str], <class 'NoneType'>), (<class 'float'>,), ())
    """
    *above, last = key.lstrip("+").split(".")
    at: Any = RunConfig
    for name in above:
        hint = get_type_hints(at).get(name, Any)
        at = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        if at is None:
            return _kinds_in_files(key.lstrip("+"))
    hint = get_type_hints(at).get(last, Any)
    if (at, last) == (AdapterConfig, "targets"):
        return list[str], NoneType  # a list of names, a word, or null; the schema has Any
    return () if hint is Any or is_dataclass(hint) else get_args(hint) if NoneType in get_args(hint) else (hint,)


def _kinds_in_files(key: str) -> tuple[Any, ...]:
    found: dict[Any, None] = {}
    for value in _in_files(key):
        if isinstance(value, str) and re.fullmatch(r"\$\{[\w.]+\}", value):
            found |= dict.fromkeys(kinds_of(value[2:-1]))
        elif value is not None and value != "???":
            found[type(value)] = None
    return tuple(found)


@cache
def _in_files(key: str) -> list[Any]:
    """The values of a setting in the files of its group, unresolved."""
    group, _, inner = key.partition(".")
    found: list[Any] = []
    for path in options(group) if inner else []:
        value: Any = settings_in(path)
        for name in inner.split("."):
            value = value._get_node(name) if isinstance(value, DictConfig) and name in value else None
        if value is not None:
            found.append(value._value())
    return found
