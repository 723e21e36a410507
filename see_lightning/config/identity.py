"""The run key: which settings can change a number, and the eight hex digits that name them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, OmegaConf

from see_lightning.config.checks import TRAIN
from see_lightning.config.former_names import with_former_names
from see_lightning.config.schema import ALL_LINEAR, LLAMA_TARGETS

# Settings that change no number. A new trainer setting counts as changing numbers until it is listed here.
# The seed has its own folder; the ratio enters through the method; a protocol only summarises the scores; ood queries and
# variants are evaluated in addition.
NUISANCE = ("paths", "logger", "seed", "ratio", "protocol", "ood", "variants", "evaluate")
OFF: dict[str, tuple[str, ...]] = {  # switches of methods, off at 0, "none" or [], and the settings without effect then
    "min_negatives": (),
    "max_negatives": (),
    "second_chance": (),
    "reuse": ("reuse_share", "reuse_gain"),
    "general_negatives": (),
    "other_instructions": (),
    "calibrate_on": ("keep", "against", "leeway"),
    "against": ("leeway",),
    "warm_start": ("probe",),
    "instruction_variants": ("rewordings", "wordings_per_example"),
}
# Settings of routers that are newer than the first kept runs of these routers, and the values that change nothing.
FEATURES_OFF: dict[str, Any] = {"layer": 0, "wordings": ["as_is"], "target_recall": 0}
ROUTERS_OFF: dict[str, dict[str, Any]] = {
    "see_lightning.routing.centroid.Centroid": FEATURES_OFF,
    "see_lightning.routing.density.Density": FEATURES_OFF,
    "see_lightning.routing.joint.Joint": {"bare_recall": None},
}
# Settings of readers that are newer than the first kept runs of these readers, and the values that change nothing.
READERS_OFF: dict[str, dict[str, Any]] = {"see_lightning.data.jsonl.JsonlReader": {"train_on": "last"}}
REHEARSAL = (
    "rehearsal",
    "min_negatives",
    "max_negatives",
    "calibrate_on",
)  # settings of data that only methods that rehearse read
NEWER = ("valid_size",)  # settings that are newer than the first kept runs, off at 0
NEWER_OPTIM = ("migu", "early_stopping")  # such settings of optim
STREAM_SETTING = {"recurring": "visits", "blurry": "share"}  # the setting of each stream of tasks
GENERAL_USES = ("general_negatives", "other_instructions", "against")  # settings that use general_source
REWORDING_VERSION = 1  # of the rules that reword definitions; other rules train other experts
FIRST_OF_JOINT = "built_in 2"  # the general instructions that router=joint first had, which are in no key of its runs
GENERAL_VERSION = 2  # of the package's general instructions; another version trains other experts
NUISANCE_TRAINER = ("accelerator", "devices", "num_nodes", "strategy", "plugins", "enable_progress_bar")
# Settings of the model that are newer than the first kept runs, and the values that change nothing.
MODEL_OFF: dict[str, Any] = {"template_args": {}, "quantization": "none"}
NUISANCE_MODEL = ("attention", "gradient_checkpointing")  # how the same products are computed, as the device
NUISANCE_BENCHMARK = ("licence", "citation", "package", "published_at", "paraphrases")


def numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that can change the numbers, under the settings' former names.

    Args:
        config: as plain dicts and lists, as in ``results.json``, of this version or an earlier one.
    """
    config = with_former_names(config)
    kept = {name: part for name, part in config.items() if name not in NUISANCE and (name not in NEWER or part)}
    if kept.get("router") is None:  # of the method's own router, the method's settings tell
        kept.pop("router", None)
    else:
        off = ROUTERS_OFF.get(kept["router"]["_target_"], {})
        kept["router"] = {
            name: value for name, value in kept["router"].items() if name not in off or value != off[name]
        }
    if kept.get("rule") is None:
        kept.pop("rule", None)
    kept["order"] = _of_stream(config["order"])
    # Like the ratio, these enter through the methods that rehearse.
    kept["data"] = {name: value for name, value in config["data"].items() if name not in REHEARSAL}
    kept["adapter"] = _of_adapter(config["adapter"])
    # How a step is split into micro-batches changes no number; some settings are newer than the first kept runs.
    optim = {name: value for name, value in config["optim"].items() if name not in NEWER_OPTIM or value}
    kept["optim"] = {name: value for name, value in optim.items() if name != "tokens_at_once"}
    kept["trainer"] = {name: value for name, value in config["trainer"].items() if name not in NUISANCE_TRAINER}
    model = {
        name: value for name, value in config["model"].items() if name not in MODEL_OFF or value != MODEL_OFF[name]
    }
    kept["model"] = {name: value for name, value in model.items() if name not in NUISANCE_MODEL}
    kept["method"] = switched_on({name: _one_spelling(value) for name, value in config["method"].items()})
    if "ratio" in kept["method"]:
        kept["method"]["ratio"] = float(kept["method"]["ratio"])
    if "ratio" in kept["method"] and _ratio_is_enough(kept["method"], config):
        kept["method"].pop("min_negatives", None)
    kept["method"] = _with_general_source(kept["method"], config)
    if kept["method"].get("instruction_variants"):
        kept["method"]["rewording_rules"] = REWORDING_VERSION
    benchmark = kept["benchmark"] = _without_place(config["benchmark"], config["paths"]["data"])
    benchmark["tasks"] = {task: benchmark["tasks"].get(task) for task in config["order"]["tasks"]}
    # A limit by protocol counts as its number; limits by the training answers were the rule before there was the setting.
    longest, protocol = (benchmark.pop(name, None) for name in ("max_new_tokens", "protocol_max_new_tokens"))
    if longest not in (None, "training"):
        benchmark["max_new_tokens"] = protocol if longest == "protocol" else longest
    for task in filter(None, benchmark["tasks"].values()):
        protocol = task.pop("protocol_max_new_tokens", None)
        if protocol is not None and task.get("max_new_tokens", longest) == "protocol":
            task["max_new_tokens"] = protocol
    readers = (benchmark["reader"], *benchmark["reader"].get("readers", {}).values())
    for reader in readers:
        reader_switched_on(reader)
    for part in (benchmark, *readers, *filter(None, benchmark["tasks"].values())):
        for name in NUISANCE_BENCHMARK:
            part.pop(name, None)
    return kept


def _with_general_source(method: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings that are on, with the general instructions that it or its router reads: a file, or a version.

    ``router=joint`` reads the method's own; those that it first had are in no key of its runs.
    """
    source, reads = config["method"].get("general_source"), "general_source" in method
    if source is None or not (reads or "ood_examples" in (config.get("router") or {})):
        return method
    found = f"built_in {GENERAL_VERSION}" if source == "built_in" else source
    return method if found == FIRST_OF_JOINT and not reads else {**method, "general_source": found}


def reader_switched_on(reader: dict[str, Any]) -> None:
    """Remove the settings of a reader that are off: a setting added later moves no key of an older run.

    >>> reader = {"_target_": "see_lightning.data.jsonl.JsonlReader", "folder": "mine", "train_on": "last"}
    >>> reader_switched_on(reader)
    >>> reader
    {'_target_': 'see_lightning.data.jsonl.JsonlReader', 'folder': 'mine'}
    """
    for name, value in READERS_OFF.get(str(reader.get("_target_")), {}).items():
        if reader.get(name) == value:
            del reader[name]


def _of_adapter(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter's settings that count, with names of layers for words that stand for those of Llama.

    ``full`` and ``quantization`` are newer than the first kept runs. Layers that are trained whole have no rank, scale and
    dropout.

    >>> _of_adapter({"rank": 8, "targets": None, "full": False, "quantization": "none"})
    {'rank': 8, 'targets': ['q_proj', 'v_proj']}
    """
    targets = adapter["targets"]
    if targets is None or targets in (ALL_LINEAR, [ALL_LINEAR]):
        targets = LLAMA_TARGETS[targets and ALL_LINEAR]
    targets = [targets] if isinstance(targets, str) else targets
    if adapter.get("full", False):
        return {"full": True, "targets": targets}
    lora = {name: value for name, value in adapter.items() if name not in ("full", "quantization")}
    kind = adapter.get("quantization", "none")
    return {**lora, "targets": targets, **({} if kind == "none" else {"quantization": kind})}


def _of_stream(order: Mapping[str, Any]) -> dict[str, Any]:
    """An order's settings that count under its stream, without those that are off.

    >>> _of_stream({"tasks": ["qa"], "stream": "none", "visits": 2, "share": 0.1, "experts": {}})
    {'tasks': ['qa']}
    """
    stream = order.get("stream", "none")
    off = {"visits", "share"} - {STREAM_SETTING.get(stream)} | ({"stream"} if stream == "none" else set())
    off |= set() if order.get("experts") else {"experts"}  # newer than the first kept runs
    return {name: value for name, value in order.items() if name not in off}


def _ratio_is_enough(method: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether the ratio alone certainly gives ``min_negatives`` rows of each past task, or no negatives are wanted."""
    if not method.get("ratio"):
        return True
    # Bad rows that are skipped, and held-out rows, make a task smaller than train_size.
    whole = (
        config.get("train_size")
        and config["data"].get("on_bad_row", "stop") == "stop"
        and method.get("calibrate_on") in (None, 0, TRAIN)
    )
    return bool(whole) and max(1, round(method["ratio"] * config["train_size"])) >= method.get("min_negatives", 0)


def switched_on(method: Mapping[str, Any], left_out: Iterable[str] = ()) -> dict[str, Any]:
    """A method's settings, by former names, without those that are off: a setting added later moves no key of an older run.

    Args:
        method: the settings.
        left_out: settings to leave out with those that only they read.

    >>> switched_on({"ratio": 0.1, "calibrate_on": 0, "keep": 0.98, "warm_start": "none", "probe": 32})
    {'ratio': 0.1}
    """
    off = {
        name for switch, more in OFF.items() if method.get(switch) in (0, "none", "off", []) for name in (switch, *more)
    }
    if method.get("calibrate_on") == TRAIN:
        off.discard("leeway")  # rehearsed negatives are used in place of general instructions
    off.update(left_out)
    if "reworded" not in method.get("instruction_variants", ()):
        off.add("rewordings")
    uses = [name for name in GENERAL_USES if name in method]
    if uses and off.issuperset(uses):
        off.add("general_source")
    return {name: value for name, value in method.items() if name not in off}


def _one_spelling(value: Any) -> Any:
    """An integer for a float with an integer's value, since 1.0 and 1 are the same setting."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_place(value: Any, root: str) -> Any:
    """A copy in which paths are relative to the data root, since the same data in another folder give the same numbers."""
    if isinstance(value, Mapping):
        return {name: _without_place(part, root) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_place(part, root) for part in value]
    if isinstance(value, str) and (value == root or value.startswith(f"{root}/")):
        return f"<data>{value.removeprefix(root)}"
    return value


def numbers_config(cfg: DictConfig) -> dict[str, Any]:
    """The settings of a composed config that can change a number."""
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
    """Eight hex digits that name a configuration, independent of the spelling of its command.

    A run on the user's own data or model hashes their contents instead of their paths; see ``engine.contents.placed``.
    """
    return key_of(numbers_config(cfg))


def method_name(cfg: DictConfig) -> str:
    """The method's name: that of the module its class lives in."""
    return str(cfg.method["_target_"]).split(".")[-2]
