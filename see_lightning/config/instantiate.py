"""Building of objects from config nodes; the arguments are checked before the class is called."""

import inspect
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

import hydra.utils
from hydra._internal.utils import _locate
from omegaconf import DictConfig, OmegaConf

from see_lightning.errors import ConfigError, nearest

METHOD_GIVEN, ROUTER_GIVEN = ("setup",), ("method",)  # arguments that a method and a router get in addition to settings


class NotImportable(ConfigError):
    """Python cannot import the class or function of a ``_target_``."""


def target_of(node: Any) -> Any:
    """The class or function of a config node's ``_target_``.

    Raises:
        NotImportable: it does not exist, or its module raises an error.
    """
    name = str(node["_target_"])
    try:
        return _locate(name)
    except (ImportError, ValueError) as error:  # a module may raise any error, which is then the cause
        cause = error.__cause__ or error
        reason = next(iter(str(cause).splitlines()), "").rstrip(".")
        reason = reason if isinstance(cause, ImportError | AttributeError) else f"{type(cause).__name__}: {reason}"
        raise NotImportable(
            f"{name} cannot be imported: {reason}. If it is your own, let Python find it: PYTHONPATH=DIR."
        ) from error


def bind(node: Any, *arguments: str) -> None:
    """Refuse a config node that its ``_target_`` could not be called with.

    Args:
        node: a config node with ``_target_``.
        arguments: names that the caller adds.

    Raises:
        NotImportable: there is no such target.
        ConfigError: an argument is unknown to the target, does not fit its annotation, or is required and missing.
    """
    target = target_of(node)
    given = {str(key) for key in node if not str(key).startswith("_")} | set(arguments)
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError) as error:  # a module, a number, or a class written in C
        raise ConfigError(f"{node['_target_']} is no class or function whose arguments Python knows.") from error
    unknown = sorted(given - set(parameters))
    if unknown:
        raise ConfigError(f"{node['_target_']} takes no {unknown[0]!r}.{nearest(unknown[0], parameters)}")
    for name in given.difference(arguments):
        _check_type(node, name, parameters[name].annotation)
    needed = {name for name, p in parameters.items() if p.default is p.empty}
    if not node.get("_partial_") and needed - given:
        raise ConfigError(
            f"{node['_target_']} needs {sorted(needed - given)[0]!r}, which the configuration does not give."
        )
    for value in node.values():
        for part in value.values() if isinstance(value, Mapping | DictConfig) and "_target_" not in value else ():
            if (
                isinstance(part, Mapping | DictConfig) and "_target_" in part
            ):  # such as the readers of several benchmarks
                bind(part)


#: Plain types of arguments: the Python types that a value may have, and their name in messages.
PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a word"),
    bool: ((bool,), "true or false"),
    type(None): ((type(None),), "null"),
}


def _check_type(node: Any, name: str, annotation: Any) -> None:
    """Refuse a value that an argument's annotation does not allow; only numbers, words, switches and null are checked."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if not all(kind in PLAIN for kind in kinds):
        return
    value = node[name]
    fits = [isinstance(value, PLAIN[kind][0]) and (kind is bool or not isinstance(value, bool)) for kind in kinds]
    if not any(fits):
        allowed = " or ".join(PLAIN[kind][1] for kind in kinds)
        raise ConfigError(f"{name} of {node['_target_']} must be {allowed}; got {value!r}.")


def instantiate(node: Any, **arguments: Any) -> Any:
    """Build the object that a config node's ``_target_`` names, with the caller's own arguments added.

    With ``_recursive_: false`` the object gets the settings of nested objects, which it builds itself.
    """
    bind(node, *arguments)
    plain: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    for part in plain.values() if plain.get("_recursive_", True) else ():
        if isinstance(part, dict) and "_target_" in part:  # Hydra would tell of its faults in several lines
            bind(part)
    # "all": lists and dicts arrive as Python's own, so nothing below Hydra has to know OmegaConf.
    build = hydra.utils.instantiate({**plain, "_partial_": True}, _convert_="all")
    return build if plain.get("_partial_") else build(**arguments)
