"""The routers that a finished run's experts can be routed by: the run's own, those of ``conf/router``, and typed ones."""

import inspect
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from see_lightning.config.compose import composed
from see_lightning.config.explain import explain
from see_lightning.config.search_path import options
from see_lightning.config.trust import Trust, refuse_code
from see_lightning.engine.router import router_class, router_name, takes
from see_lightning.errors import ConfigError, listed
from see_lightning.methods.lookup import method_class
from see_lightning.methods.method import Method
from see_lightning.routing.router import Router
from see_lightning.routing.walk import needs_every_verdict

#: What a router needs of a method, in words, by the name of a trait.
NEEDS = {
    "has_experts": "needs experts",
    "learns_refusals": "needs experts that give verdicts",
    "adds_updates": "needs experts that add updates to layers",
}


@dataclass(frozen=True)
class RouterOption:
    """A router with its settings.

    Args:
        name: an option of ``conf/router`` and the settings that were typed behind it.
        settings: by name, with ``_target_``; None for the router that the run itself has.
        has_state: whether it keeps of each task what the run's own router keeps, so that it learns nothing.
        cannot: why it cannot route the run's experts; empty if it can.
    """

    name: str
    settings: Mapping[str, Any] | None
    has_state: bool = False
    cannot: str = ""


def router_options(
    cfg: DictConfig, words: Sequence[str], trust: Trust, never_refusing: Sequence[str] = ()
) -> list[RouterOption]:
    """The routers to compare, each once, those that cannot route the run's experts too.

    Args:
        cfg: of the run.
        words: routers as typed, such as ``analytic layer=4``; none takes the run's own and every option of ``conf/router``.
        trust: the classes that may be imported beside the package's own.
        never_refusing: experts of the run that give no verdicts, among others that do.

    Raises:
        ConfigError, HydraException: a typed router or setting does not exist.
    """
    names = [shlex.split(word) for word in words] or [[path.stem] for path in _files().values()]
    if not all(names):
        raise ConfigError("--router names no router; give an option of conf/router, such as --router centroid.")
    own = _own(cfg)
    found = {shlex.join(name): _option(cfg, name, own, trust, never_refusing) for name in names}
    if not words and all(option.settings is not None for option in found.values()):
        return [RouterOption(_own_name(cfg, own), None), *found.values()]
    return list(found.values())


def _files() -> dict[str, Path]:
    """The file of each option, by its name: the project's own where the user has one of that name."""
    return {path.stem: path for path in reversed(options("router"))}


Choice = tuple[type[Router], dict[str, Any]]  # a router's class, and all of its settings


def _own(cfg: DictConfig) -> Choice:
    """The router of the run; one that belongs to its method has the method's settings."""
    router = router_class(cfg)
    return router, _whole(router, cfg.method if cfg.router is None else cfg.router)


def _whole(router: type[Router], given: Mapping[Any, Any]) -> dict[str, Any]:
    """The settings of a router with the defaults of its class."""
    parameters = list(inspect.signature(router).parameters.values())[1:]  # the first is the method
    plain: Any = OmegaConf.to_container(OmegaConf.create(dict(given)))
    return {one.name: _plain(plain.get(one.name, one.default)) for one in parameters}


def _learned(choice: Choice) -> Choice:
    """A router with those of its settings on which its state depends."""
    router, settings = choice
    return router, {name: value for name, value in settings.items() if name not in router.not_in_state}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _own_name(cfg: DictConfig, own: Choice) -> str:
    """The name of the run's own router, with the settings that differ from those of its file in ``conf/router``."""
    router, settings = own
    name = router_name(cfg)
    usual = _whole(router, composed([f"router={name}"]).router if name in _files() else {})
    return shlex.join([name, *_changed(settings, usual)])


def _changed(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> Iterator[str]:
    """``NAME=VALUE`` of each setting that is not the usual one, also of those within another, such as ``by.layer=1``."""
    for name, value in settings.items():
        before = usual.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from (f"{name}.{one}" for one in _changed(value, before))
        elif value != before:
            yield f"{name}={_typed(value)}"


def _typed(value: Any) -> str:
    """A value as it is typed in a command.

    >>> _typed(["as_is", "none"]), _typed(None), _typed(1), _typed(True)
    ('[as_is,none]', 'null', '1', 'true')
    """
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _option(
    cfg: DictConfig, words: Sequence[str], own: Choice, trust: Trust, never_refusing: Sequence[str]
) -> RouterOption:
    """The router of some words: its name, and settings with or without ``router.`` before them."""
    name, *typed = words
    full = [word if word.startswith(("router.", "router@")) else f"router.{word}" for word in typed]
    whole = composed([f"router={name}", *full])
    settings: Any = OmegaConf.to_container(whole.router, resolve=True) if whole.router else {}
    option = RouterOption(shlex.join(words), settings)
    if "_target_" not in settings:
        return replace(
            option, cannot=f"its file names no class; write _target_: MODULE.CLASS into conf/router/{name}.yaml"
        )
    try:
        refuse_code(_files().get(name, Path(name)), {"router": settings}, trust)
        router = router_class(OmegaConf.create({"router": settings}))
    except ConfigError as error:
        return replace(option, cannot=explain(error))
    chosen = router, _whole(router, settings)
    if chosen == own:
        return replace(option, settings=None)
    option = replace(option, has_state=_learned(chosen) == _learned(own))
    cannot = lacking(method_class(cfg.method), router, cfg.adapter.activated)
    if not cannot and never_refusing and needs_every_verdict(router):
        cannot = f"needs verdicts, and the imported expert of {listed(never_refusing)} gives none"
    return replace(option, cannot=cannot)


def lacking(method: type[Method], router: type[Router], activated: bool) -> str:
    """Why a router cannot choose among a method's experts; empty if it can.

    Args:
        method: of the run.
        router: the router's class.
        activated: whether the experts act from the assistant header on.
    """
    if takes(method, router):
        return "needs experts that act on the whole prompt" if router.needs_prompt and activated else ""
    if not router.needs:
        return "is for methods with one model"
    missing = sorted(name for name in router.needs if not getattr(method.traits, name))
    return "; ".join(NEEDS.get(name, f"needs a method with {name}") for name in missing)
