"""The run key: which settings can change a number, and the eight hex digits that name them."""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, OmegaConf

from see_lightning.config.checks import TRAIN
from see_lightning.config.schema import ALL_LINEAR, LLAMA_TARGETS

# What a run may change without changing a number. A new trainer setting counts until it is listed here.
# The seed has its own folder; the ratio enters through the method; a protocol only sums up what was measured, and foreign
# queries and variants are asked beside it.
NUISANCE = ("paths", "logger", "seed", "ratio", "protocol", "ood", "variants")
OFF: dict[str, tuple[str, ...]] = {  # settings of methods that are off at 0 or "none", and those that then mean nothing
    "min_negatives": (),
    "general_negatives": (),
    "other_instructions": (),
    "calibrate_on": ("keep", "against", "leeway"),
    "against": ("leeway",),
    "warm_start": ("probe",),
}
REHEARSAL = ("rehearsal", "min_negatives", "calibrate_on")  # of data, read by methods that rehearse
GENERAL_USES = ("general_negatives", "other_instructions", "against")  # what general_source is read for
GENERAL_VERSION = 2  # of the package's general instructions; other ones train other experts
NUISANCE_TRAINER = ("accelerator", "devices", "num_nodes", "strategy", "plugins", "enable_progress_bar")
NUISANCE_BENCHMARK = ("licence", "citation", "package", "published_at", "paraphrases")


def numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that can change the numbers.

    Args:
        config: as plain containers, such as ``results.json`` holds it.
    """
    kept = {name: part for name, part in config.items() if name not in NUISANCE}
    # Like the ratio, these enter through the methods that rehearse.
    kept["data"] = {name: value for name, value in config["data"].items() if name not in REHEARSAL}
    # Parts of a step are like the ranks that share it.
    targets = config["adapter"]["targets"]
    if targets is None or targets in (ALL_LINEAR, [ALL_LINEAR]):
        targets = LLAMA_TARGETS[targets and ALL_LINEAR]
    kept["adapter"] = {**config["adapter"], "targets": [targets] if isinstance(targets, str) else targets}
    kept["optim"] = {name: value for name, value in config["optim"].items() if name != "tokens_at_once"}
    kept["trainer"] = {name: value for name, value in config["trainer"].items() if name not in NUISANCE_TRAINER}
    # Came later; without any, prompts are what they were.
    kept["model"] = {name: value for name, value in config["model"].items() if name != "template_args" or value}
    kept["method"] = switched_on({name: _one_spelling(value) for name, value in config["method"].items()})
    if "ratio" in kept["method"]:
        kept["method"]["ratio"] = float(kept["method"]["ratio"])
    if "ratio" in kept["method"] and _ratio_is_enough(kept["method"], config):
        kept["method"].pop("min_negatives", None)
    if kept["method"].get("general_source") == "built_in":
        kept["method"]["general_source"] = f"built_in {GENERAL_VERSION}"
    benchmark = kept["benchmark"] = _without_place(config["benchmark"], config["paths"]["data"])
    benchmark["tasks"] = {task: benchmark["tasks"].get(task) for task in config["order"]["tasks"]}
    # A protocol is a number; that the training answers tell was so before there was the setting.
    longest, protocol = (benchmark.pop(name, None) for name in ("max_new_tokens", "protocol_max_new_tokens"))
    if longest not in (None, "training"):
        benchmark["max_new_tokens"] = protocol if longest == "protocol" else longest
    for part in (benchmark, benchmark["reader"], *filter(None, benchmark["tasks"].values())):
        for name in NUISANCE_BENCHMARK:
            part.pop(name, None)
    return kept


def _ratio_is_enough(method: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a past task has so many rows for sure that the ratio alone gives ``min_negatives``, or none are wanted."""
    if not method.get("ratio"):
        return True
    # Rows that are left out, or held out for want of others, make a task smaller than it was asked for.
    whole = (
        config.get("train_size")
        and config["data"].get("on_bad_row", "stop") == "stop"
        and method.get("calibrate_on") in (None, 0, TRAIN)
    )
    return bool(whole) and max(1, round(method["ratio"] * config["train_size"])) >= method.get("min_negatives", 0)


def switched_on(method: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings without those that are off: what came later and is off changes nothing, so it makes no other key.

    >>> switched_on({"ratio": 0.1, "calibrate_on": 0, "keep": 0.98, "warm_start": "none", "probe": 32})
    {'ratio': 0.1}
    """
    off = {name for switch, more in OFF.items() if method.get(switch) in (0, "none") for name in (switch, *more)}
    if method.get("calibrate_on") == TRAIN:
        off.discard("leeway")  # refused rows stand where general instructions might
    uses = [name for name in GENERAL_USES if name in method]
    if uses and off.issuperset(uses):
        off.add("general_source")
    return {name: value for name, value in method.items() if name not in off}


def _one_spelling(value: Any) -> Any:
    """1.0 is 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_place(value: Any, root: str) -> Any:
    """A copy in which no path tells where the data root lies: the same data in another place are the same data."""
    if isinstance(value, Mapping):
        return {name: _without_place(part, root) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_place(part, root) for part in value]
    if isinstance(value, str) and (value == root or value.startswith(f"{root}/")):
        return f"<data>{value.removeprefix(root)}"
    return value


def numbers_config(cfg: DictConfig) -> dict[str, Any]:
    """What ``numbers`` keeps of a composed config."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    return numbers(resolved)


def with_values(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of settings with other values for some of them.

    >>> with_values({"model": {"name": "mine", "dtype": "fp32"}}, {"model.name": None})
    {'model': {'name': None, 'dtype': 'fp32'}}
    """
    copied = deepcopy(dict(settings))
    for name, value in values.items():
        *groups, last = name.split(".")
        part = copied
        for group in groups:
            part = part[group]
        part[last] = value
    return copied


def key_of(settings: Mapping[str, Any]) -> str:
    """Eight hex digits that name settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def run_key(cfg: DictConfig) -> str:
    """Eight hex digits that name a configuration, however its command was spelt.

    Where a setting says where the user's own data or model lie, a run is called otherwise, see ``engine.contents.placed``.
    """
    return key_of(numbers_config(cfg))


def method_name(cfg: DictConfig) -> str:
    """The method's name: that of the module its class lives in."""
    return str(cfg.method["_target_"]).split(".")[-2]
