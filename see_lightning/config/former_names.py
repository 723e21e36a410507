"""Names that settings, classes and fields of results had in earlier versions: still accepted, still read.

A run key is a hash that includes the settings' names, so keys are computed from the former ones: the runs of every version
are found by the same command.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

#: Settings by today's name, with the former one.
SETTINGS = {
    "method.target_recall": "method.keep",
    "method.ood_examples": "method.against",
    "method.margin": "method.leeway",
    "method.reject_above": "method.refuse",
    "method.resample": "method.draw",
    "data.resample": "data.rehearsal",
    "data.eval_batch_size": "data.eval_batch",
    "optim.loss_reduction": "optim.loss_mean",
    "optim.max_tokens_per_microbatch": "optim.tokens_at_once",
    "optim.global_batch_size": "optim.global_batch",
}
#: Values of the settings that choose when past examples are drawn.
RESAMPLE = {"per_task": "fresh", "once": "fixed"}
#: Methods by today's name, with the former one; and their classes.
METHODS = {"moram": "mora"}
CLASSES = {"see_lightning.methods.moram.MoRAM": "see_lightning.methods.mora.Mora"}

_PACKAGE = "see_lightning."


def current_setting(name: str) -> str:
    """Today's name of a setting, which may be given by its former one.

    >>> current_setting("optim.loss_mean"), current_setting("optim.lr")
    ('optim.loss_reduction', 'optim.lr')
    """
    return next((new for new, old in SETTINGS.items() if old == name), name)


def current_value(name: str, value: Any) -> Any:
    """Today's name of a setting's value.

    Args:
        name: today's name of the setting, or of the group ``method``.
        value: as it was given; Hydra's class of quoted texts has ``text``.

    >>> current_value("data.resample", "fixed"), current_value("method", "mora"), current_value("optim.lr", 0.1)
    ('once', 'moram', 0.1)
    """
    values = METHODS if name == "method" else RESAMPLE if name.endswith(".resample") else {}
    text = getattr(value, "text", value)
    return next((new for new, old in values.items() if old == text), value)


def folder_names(method: str) -> list[str]:
    """Names of the folders that hold a method's runs: today's, then the former one.

    >>> folder_names("mora"), folder_names("see")
    (['moram', 'mora'], ['see'])
    """
    name = current_value("method", method)
    return [name, *([METHODS[name]] if name in METHODS else [])]


def with_current_names(config: Mapping[str, Any], *, own_method: bool = False) -> dict[str, Any]:
    """A copy of a configuration in which settings, values and classes have today's names.

    Args:
        config: plain containers by group; groups may be missing.
        own_method: whether the method is known to be the user's own, whose settings are named by the user.
    """
    return _renamed(
        config, {old: new for new, old in SETTINGS.items()}, _inverse(RESAMPLE), _inverse(CLASSES), own_method
    )


def with_former_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration in which settings, values and classes have their former names, as run keys use them.

    >>> with_former_names({"optim": {"lr": 0.1, "loss_reduction": "tokens"}})
    {'optim': {'lr': 0.1, 'loss_mean': 'tokens'}}
    """
    return _renamed(config, SETTINGS, RESAMPLE, CLASSES, False)


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {old: new for new, old in names.items()}


def _renamed(
    config: Mapping[str, Any],
    settings: Mapping[str, str],
    values: Mapping[str, str],
    classes: Mapping[str, str],
    own_method: bool,
) -> dict[str, Any]:
    result = deepcopy(dict(config))
    for group in ("method", "data", "optim"):
        part = result.get(group)
        if not isinstance(part, Mapping):
            continue
        target = part.get("_target_", _PACKAGE)
        if group == "method" and (own_method or not str(target).startswith(_PACKAGE)):
            continue
        result[group] = renamed = {}
        for name, value in part.items():
            new = settings.get(f"{group}.{name}", f"{group}.{name}").partition(".")[2]
            if "resample" in (name, new):
                value = values.get(value, value)
            renamed[new] = classes.get(value, value) if name == "_target_" else value
    return result


#: Fields of ``results.json`` by today's name, with the former one, which other programs read and every version writes.
FIELDS = {
    "assigned_expert": "given",
    "is_new_expert": "expanded",
    "fallback_rate": "base_share",
    "no_verdict_rate": "no_indicator_share",
    "rechecked": "decided_again",
    "rechecked_share": "decided_again_share",
    "cache_hits": "remembered",
}
_SECTIONS = ("routing", "ood", "variants", "counts")


def with_current_fields(results: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a ``results.json`` in which every field with a former name also has today's.

    >>> with_current_fields({"routing": {"accuracy": 1.0, "base_share": 0.0}, "config": {"method": {"given": 1}}})["routing"]
    {'accuracy': 1.0, 'base_share': 0.0, 'fallback_rate': 0.0}
    """
    current = _inverse(FIELDS)

    def both(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        named = {name: both(value) for name, value in part.items()}
        return named | {current[name]: value for name, value in named.items() if name in current}

    top = {current[name]: value for name, value in results.items() if name in current}
    return {**results, **{name: both(results[name]) for name in _SECTIONS if name in results}, **top}
