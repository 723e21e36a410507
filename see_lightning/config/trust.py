"""Safe reading of a run's ``config.yaml``, which may come from somebody else.

Nothing in it is resolved or imported before all of it is checked. It may name the classes in the package's own
configurations, each at the same place as there, and the classes that the user trusts (``--trust``).
"""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from see_lightning.config.former_names import with_current_names
from see_lightning.config.instantiate import METHOD_GIVEN, ROUTER_GIVEN, NotImportable, bind
from see_lightning.config.schema import RunConfig
from see_lightning.config.search_path import CONF
from see_lightning.config.validation import typed, validate
from see_lightning.errors import ConfigError
from see_lightning.files.reading import file_bytes
from see_lightning.files.run_files import LedgerError, check

LARGEST, DEPTH, NODES = 1_000_000, 32, 100_000  # bytes; depth of nesting; number of mappings, lists and values
SEAL = "# sha256: "  # begins the last line
BASES = (
    "see_lightning.methods.method.Method",
    "see_lightning.data.reader.Reader",
    "see_lightning.routing.router.Router",
    "see_lightning.merging.rule.MergeRule",
)
SHAPE = {
    "method": {"_target_": str},
    "router?": ({"_target_": str}, None),
    "rule?": ({"_target_": str}, None),
    "order": dict,
    "benchmark": {"_target_": str, "reader": {"_target_": str}, "tasks": {str: (dict, None)}},
    "model": dict,
    "trainer": {"_target_": str},
    "logger?": (dict, None),
    "ood?": ({"sources": {str: {"_target_": str, "reader": {"_target_": str}}}}, None),
    "paths": {str: str},
}
#: Places of settings, as patterns, at which the classes of another place may stand.
ALIKE = {
    r"^ood\.sources\.[^.]+$": "benchmark",
    r"^benchmark\.reader\.readers\.[^.]+$": "benchmark.reader",
    r"^router\.(by|body)$": "router",
}
BROKEN = (
    *(yaml.YAMLError, OmegaConfBaseException, ConfigError, ValueError, TypeError, AttributeError, AssertionError),
    *(LookupError, ArithmeticError, RecursionError, MemoryError),
)
CURE = "Put it back, or delete it and give the run's command again, which writes it."


@dataclass(frozen=True, slots=True)
class Trust:
    """The code named in a run's folder that the user allows to run.

    Args:
        classes: dotted names of the user's own methods or data readers, which may be imported.
        remote_code: whether Python code that comes with the base model may run.
    """

    classes: tuple[str, ...] = ()
    remote_code: bool = False


NOTHING = Trust()


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--trust`` and ``--trust-remote-code``; ``trust_in`` reads them."""
    parser.add_argument(
        "--trust", action="append", default=[], metavar="MODULE.CLASS",
        help="a class that is not part of see_lightning, your own method, router or reader, and may be imported for"
        " this run; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="let Python code run that comes with this run's base model"
    )


def trust_in(given: argparse.Namespace) -> Trust:
    """The ``Trust`` given by the options of ``add_trust``."""
    return Trust(tuple(given.trust), given.trust_remote_code)


def sealed_settings(settings: DictConfig) -> str:
    """The text of a run's ``config.yaml``: the resolved settings, and a last line with the sha256 of the lines before it."""
    text = OmegaConf.to_yaml(settings, resolve=True)
    return f"{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def read_settings(path: Path) -> DictConfig:
    """The settings in a run's ``config.yaml`` as plain data: not resolved, typed or imported.

    Args:
        path: of the file.

    Raises:
        LedgerError: it cannot be read, was edited, or is not what a run writes.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise LedgerError(f"{path} has more than {LARGEST:,} bytes, which no run writes. {CURE}")
        text = file_bytes(path).decode("utf-8")
        text, sealed, digest = text.rpartition(SEAL) if SEAL in text else (text, "", "")
        if sealed and digest.strip() != hashlib.sha256(text.encode()).hexdigest():
            raise LedgerError(
                f"{path} is not as the run wrote it: it was edited, or is damaged. A setting is changed by giving the run's"
                f" command with another value, not in this file. {CURE}"
            )
        _check_form(text)
        settings = OmegaConf.create(text)
        plain: Any = OmegaConf.to_container(settings, resolve=False)
        if not isinstance(settings, DictConfig):
            raise ValueError("it holds no settings")
        for place, value in _texts(plain):
            if "${" in value or value == "???":
                raise ValueError(f"{place or 'a name'} is {value[:60]!r}, and a run writes its settings resolved")
        check(plain, SHAPE)
    except LedgerError:
        raise
    except OSError as error:
        raise LedgerError(f"{path} cannot be read: {error.strerror}. {CURE}") from error
    except UnicodeDecodeError as error:
        raise LedgerError(f"{path} is damaged: byte {error.start} is not UTF-8. {CURE}") from error
    except BROKEN as error:
        raise _damaged(path, error) from error
    return settings


def load_config(path: Path, trust: Trust = NOTHING) -> DictConfig:
    """The typed configuration of a run, which names only trusted classes.

    Args:
        path: of the run's ``config.yaml``.
        trust: in addition to the package's own classes. Methods and readers that the calling program has imported are
            trusted too.

    Raises:
        LedgerError: it cannot be read, was edited, or is not of a run's form.
        ConfigError: it names a class that is not trusted, or its base model comes with code and ``remote_code`` is off.
    """
    plain: Any = OmegaConf.to_container(read_settings(path))
    settings = with_current_names(plain)
    refuse_code(path, settings, trust)
    try:
        cfg = typed(OmegaConf.create(settings))
        cfg.paths.cache = os.environ.get(
            "SEE_CACHE", RunConfig().paths.cache
        )  # of this user, not of the one who made the run
        validate(cfg)
    except BROKEN as error:
        raise _damaged(path, error) from error
    if cfg.model.trust_remote_code and not trust.remote_code:
        raise ConfigError(
            f"{path} has model.trust_remote_code: Python code that comes with its base model {cfg.model.name[:200]} would"
            f" run. If you trust it, add --trust-remote-code (in Python, trust_remote_code=True)."
        )
    if trust.classes:
        _let_be_found(path)
    _bind(path, cfg)
    return cfg


def refuse_code(path: Path, settings: Any, trust: Trust = NOTHING) -> None:
    """Refuse settings that name a class which is not trusted, or a value that would be looked up elsewhere.

    Args:
        path: of the file with the settings.
        settings: of a run, or some of its groups by name.
        trust: in addition to the package's own classes.

    Raises:
        LedgerError: a value is not resolved.
        ConfigError: a class is not trusted.
    """
    for place, value in _texts(settings):
        if "${" in value:
            raise LedgerError(
                f"{path} has {value[:60]!r} as its {place}, and a run writes its settings resolved. {CURE}"
            )
    for place, name in sorted(_targets(settings)):
        if not (name in trust.classes or name in allowed().get(place, ()) or _is_imported(name)):
            raise ConfigError(
                f"{path} names {name[:200]} as its {place}, which is not part of see_lightning and would run as code. If it"
                f" is your own, or you trust it, add --trust {name[:200]} (in Python, trust=[...])."
            )


def _bind(path: Path, cfg: DictConfig) -> None:
    """Import the classes in the settings, which are all trusted by now, and refuse arguments that they do not take."""
    benchmarks = [cfg.benchmark, *(cfg.ood.sources.values() if cfg.ood else ())]
    nodes = [
        (cfg.method, METHOD_GIVEN),
        *((node, ()) for benchmark in benchmarks for node in (benchmark, benchmark.reader)),
    ]
    if cfg.router is not None:
        nodes.append((cfg.router, ROUTER_GIVEN))
    if cfg.rule is not None:
        nodes.append((cfg.rule, ()))
    for node, given in nodes:
        try:
            bind(node, *given)
        except NotImportable as error:
            raise ConfigError(f"{path}: {error}") from error
        except ConfigError as error:
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> LedgerError:
    return LedgerError(f"{path} is damaged: {' '.join(str(error).split())[:300]}. {CURE}")


def _check_form(text: str) -> None:
    """Refuse YAML that no run writes: anchors, aliases, tags, several documents, or too many or too deep nodes."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = f"line {event.start_mark.line + 1}" if event.start_mark else "a line"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(f"{line} has an anchor or an alias, which no run writes")
        if tag := getattr(event, "tag", None):
            raise ValueError(f"{line} has the tag {tag[:60]}, which no run writes")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        if depth > DEPTH or nodes > NODES:
            raise ValueError(f"{line} is nested too deep, or is one of too many")


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text with its dotted place, the names of settings included."""
    if isinstance(value, dict):
        for name, part in value.items():
            if isinstance(name, str):
                yield place, name
            yield from _texts(part, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list):
        for at, part in enumerate(value):
            yield from _texts(part, f"{place}.{at}")
    elif isinstance(value, str):
        yield place, value


def _targets(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every class in settings, and Hydra's other keys such as ``_args_``, with the place in the spelling of ``allowed``."""
    if isinstance(value, dict):
        for name, part in value.items():
            if re.fullmatch(r"_\w+_", str(name)):
                yield (place, str(part)) if name == "_target_" else (f"{place}.{name}", str(part))
            else:
                inner = f"{place}.{name}".lstrip(".")
                for pattern, alike in ALIKE.items():
                    inner = re.sub(pattern, alike, inner)
                yield from _targets(part, inner)
    elif isinstance(value, list):
        for part in value:
            yield from _targets(part, f"{place}.*")


@cache
def allowed() -> dict[str, frozenset[str]]:
    """The classes in the package's own configurations, by place."""
    found: dict[str, set[str]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        for place, name in _targets({path.parent.name: yaml.safe_load(path.read_text(encoding="utf-8"))}):
            found.setdefault(place, set()).add(name)
    return {place: frozenset(names) for place, names in found.items()}


def _is_imported(name: str) -> bool:
    """Whether a name is a method or reader that the calling program has imported; nothing is imported for the check."""
    module, _, attribute = name.rpartition(".")
    found = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
    mro = found.__mro__[1:] if isinstance(found, type) else ()
    return any(f"{base.__module__}.{base.__qualname__}" in BASES for base in mro)


def _let_be_found(path: Path) -> None:
    """Put the working folder last on the import path, for trusted classes, unless it is the run's own folder."""
    here, run = Path.cwd().resolve(), path.resolve().parent
    if here != run and run not in here.parents and str(here) not in sys.path:
        sys.path.append(str(here))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(here))))  # for ranks
