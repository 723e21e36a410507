"""What may be configured: types, ranges, the run key, and the one place where a config becomes an object.

The groups of fixed shape are typed here; a group that names its class by ``_target_`` is typed by that class.
Nothing here imports torch, so a wrong setting is refused within a second.
"""

import difflib
import hashlib
import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin

import hydra.utils
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from see_lightning.names import called_here


class Refusal(ValueError):
    """What the user gave cannot be used; the message says what was given, what is allowed and what to do."""


class ConfigError(Refusal):
    """A setting that cannot be used."""


class DataError(Refusal):
    """The data cannot be used as they are; the message names file, line and reason."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint naming the closest allowed word, or nothing when none is close.

    >>> nearest("superni10", ["superni_5", "superni_10"])
    " Did you mean 'superni_10'?"
    """
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


MOST_NAMED, LONGEST_NAME = 40, 80  # names in a message, and characters of each


def listed(names: Iterable[Any], most: int = MOST_NAMED) -> str:
    """Names for a message: the first ones, long ones cut, and how many more there are.

    >>> listed(["qa", "qg", "sa"], most=2), listed([])
    ('qa, qg and 1 more', 'none')
    """
    every = [str(name) for name in names]
    shown = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in every[:most]]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return (", ".join(shown) or "none") + more


def one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a value that is not one of the allowed words."""
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(f"{key} must be one of {', '.join(allowed)}; got {value!r}.{nearest(value, allowed)}")


def within(key: str, value: float | None, low: float, high: float = float("inf")) -> None:
    """Refuse a number outside ``low..high``; None means unset and passes."""
    if value is not None and not (low <= value <= high and value < float("inf")):
        limit = (
            f"at least {low:g}, and finite"
            if value == float("inf")
            else f"at least {low:g}"
            if high == float("inf")
            else f"between {low:g} and {high:g}"
        )
        raise ConfigError(f"{key} must be {limit}; got {value:g}.")


PROTOCOLS = ("ssr", "trace", "olora", "sapt")
VARIANTS = ("input_only", "paraphrased")
PROMPT_STYLES = ("chat", "plain", "alpaca", "llama2")


def check_ratio(key: str, ratio: float) -> None:
    """Refuse a share outside 0..1."""
    if not isinstance(ratio, int | float) or not 0.0 <= ratio <= 1.0:
        raise ConfigError(
            f"{key} is the share of past examples that is rehearsed, between 0 and 1; got {ratio}. For 10 % write 0.1."
        )


def _open_group() -> Any:
    """A group to which the command line adds keys without a plus."""
    return DictConfig({}, flags={"struct": False})


TRAIN = "train"  # rows that thresholds are set by: those that were trained on


def check_calibrate_on(key: str, value: int | str) -> None:
    """Refuse what is neither a number of rows nor ``train``."""
    if value != TRAIN and not (isinstance(value, int) and value >= 0):
        raise ConfigError(f"{key} must be a number of rows to hold out, at least 0, or {TRAIN}; got {value!r}.")


@dataclass
class ModelConfig:
    """The base model and how a query is put to it."""

    source: str = MISSING  # package (weights inside a pip package), tiny (random, for tests), hub
    name: str = MISSING  # hub id, or the name the model goes by
    revision: str | None = None  # hub only: commit, tag or branch
    prompt: str = "chat"  # chat (the tokenizer's template), plain (the query alone), alpaca, llama2 (SSR's for it)
    system_prompt: str | None = None  # chat, where null leaves it to the template, and llama2, where null writes none
    template_args: dict[str, Any] = field(
        default_factory=_open_group
    )  # chat only; variables of the template: enable_thinking
    dtype: str = "auto"  # auto (bf16 where the hardware is fast at it, else fp32), bf16, fp32
    max_length: int = 1536  # tokens; the longest prompt with its answer
    trust_remote_code: bool = False  # runs Python code that comes with the model

    def __post_init__(self) -> None:
        one_of("model.source", self.source, ("package", "tiny", "hub"))
        one_of("model.prompt", self.prompt, PROMPT_STYLES)
        one_of("model.dtype", self.dtype, ("auto", "bf16", "fp32"))
        within("model.max_length", self.max_length, 16)
        if self.template_args and self.prompt != "chat":
            raise ConfigError(f"model.template_args are for model.prompt=chat; the style is {self.prompt}.")
        if self.source != "hub" and (self.revision or self.trust_remote_code):
            raise ConfigError(
                f"model.revision and model.trust_remote_code belong to model.source=hub, not {self.source}."
            )


ALL_LINEAR = "all-linear"  # PEFT's word
# What a model is asked for where names of layers are left to it; its answer in Llama's case, which names the runs so far.
LLAMA_TARGETS: dict[str | None, list[str]] = {
    None: ["q_proj", "v_proj"],
    ALL_LINEAR: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


@dataclass
class AdapterConfig:
    """One expert's LoRA."""

    rank: int = 8
    alpha: float = 32.0  # the update is scaled by alpha / rank
    dropout: float = 0.1  # share of the adapter's inputs
    targets: Any = field(default_factory=lambda: ["q_proj", "v_proj"])  # names of linear layers; see ``conf/adapter``
    activated: bool = (
        False  # acts from the assistant header on, so every expert shares the base model's reading of a query
    )
    cache_gb: float = 4.0  # activated only: memory for what the base model has read (half training, half test queries)

    def __post_init__(self) -> None:
        within("adapter.rank", self.rank, 1)
        within("adapter.cache_gb", self.cache_gb, 0)
        if self.alpha <= 0:
            raise ConfigError(f"adapter.alpha scales the update and must be above 0; got {self.alpha:g}.")
        within("adapter.dropout", self.dropout, 0, 0.99)
        if isinstance(self.targets, str):
            self.targets = [self.targets]
        if self.targets == [ALL_LINEAR]:
            self.targets = ALL_LINEAR
        if self.targets is None or self.targets == ALL_LINEAR:
            return
        if isinstance(self.targets, list):  # YAML reads the name of a module in a list as a number
            self.targets = [str(name) if type(name) is int else name for name in self.targets]
        if not isinstance(self.targets, list) or not all(isinstance(name, str) and name for name in self.targets):
            raise ConfigError(f"adapter.targets must be a list of names, {ALL_LINEAR} or null; got {self.targets!r}.")
        if not self.targets or ALL_LINEAR in self.targets:
            raise ConfigError(
                f"adapter.targets is {'empty' if not self.targets else self.targets}; name at least one linear layer, such as"
                f" [q_proj,v_proj], or give {ALL_LINEAR} alone, or null for PEFT's own choice."
            )


@dataclass
class OptimConfig:
    """How one task is trained."""

    lr: float = 2e-4  # peak learning rate of AdamW
    weight_decay: float = 0.0
    epochs: int = 3  # passes over a task's training examples
    global_batch: int = 32  # examples per optimizer step, over all devices
    tokens_at_once: int = 4096  # computed together by a device, padding included; a step of more is computed in parts
    schedule: str = "cosine"  # cosine (to zero), linear (to zero), constant
    warmup: float = 0.0  # share of the steps
    grad_clip: float = 1.0  # largest gradient norm; 0 turns it off
    loss_mean: str = "tokens"  # tokens (mean over a batch's target tokens), examples (each example weighs the same)

    def __post_init__(self) -> None:
        within("optim.lr", self.lr, 0)
        within("optim.weight_decay", self.weight_decay, 0)
        within("optim.epochs", self.epochs, 1)
        within("optim.global_batch", self.global_batch, 1)
        within("optim.tokens_at_once", self.tokens_at_once, 1)
        within("optim.warmup", self.warmup, 0, 1)
        within("optim.grad_clip", self.grad_clip, 0)
        one_of("optim.schedule", self.schedule, ("cosine", "linear", "constant"))
        one_of("optim.loss_mean", self.loss_mean, ("tokens", "examples"))


RESERVED = ("base", "ensemble")  # what answers call the base model, and the harness all experts together


@dataclass
class OrderConfig:
    """Which tasks, and in which order."""

    name: str = MISSING
    tasks: list[str] = MISSING

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("order.tasks is empty; name at least one task, such as order.tasks=[qa,qg].")
        twice = {task for task in self.tasks if self.tasks.count(task) > 1}
        if twice:
            raise ConfigError(f"order.tasks names {', '.join(sorted(twice))} more than once.")
        for task in self.tasks:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", task) or task in RESERVED:
                raise ConfigError(
                    f"task name {task!r} cannot name an expert; use letters, digits, '-' and '_', and neither 'base' nor"
                    f" 'ensemble'."
                )


@dataclass
class DataConfig:
    """How examples are checked and dealt."""

    on_bad_row: str = "stop"  # stop, or skip (counted, reported, an error above 1 % of a task's rows)
    eval_batch: int = 16  # queries decoded together
    rehearsal: str = "fresh"  # fresh (past examples are drawn anew for every later task), fixed (drawn once)
    min_negatives: int = 12  # of each past task that an expert learns to refuse at least; 0: the ratio alone
    calibrate_on: Any = 0  # rows to hold out by which an expert's threshold is set; train: its training rows; 0: none

    def __post_init__(self) -> None:
        within("data.min_negatives", self.min_negatives, 0)
        check_calibrate_on("data.calibrate_on", self.calibrate_on)
        one_of("data.rehearsal", self.rehearsal, ("fresh", "fixed"))
        one_of("data.on_bad_row", self.on_bad_row, ("stop", "skip"))
        within("data.eval_batch", self.eval_batch, 1)


@dataclass
class IndicatorConfig:
    """What an expert writes before an answer, or instead of one."""

    pos: str = "<<pos>>"
    neg: str = "<<neg>>"

    def __post_init__(self) -> None:
        if not self.pos.strip() or not self.neg.strip():
            raise ConfigError("indicators.pos and indicators.neg must not be blank.")
        if self.pos != self.pos.lstrip() or self.neg != self.neg.lstrip():
            raise ConfigError(
                "indicators.pos and indicators.neg must not begin with a blank: blanks before them are skipped."
            )
        if self.pos.startswith(self.neg) or self.neg.startswith(self.pos):
            raise ConfigError(
                f"one indicator begins with the other: {self.pos!r}, {self.neg!r}; choose two that differ."
            )


@dataclass
class PathsConfig:
    """Where things lie. None of it changes a number."""

    data: str = "data"  # data root; the environment variable SEE_DATA by default
    runs: str = "runs"
    cache: str = "~/.cache/see_lightning"  # the converted base model

    def cache_folder(self) -> Path:
        """Where the cache lies, with the home folder written out.

        Raises:
            ConfigError: there is no such home folder.
        """
        try:
            return Path(self.cache).expanduser()
        except RuntimeError as error:
            raise ConfigError(
                f"paths.cache={self.cache}: there is no such home folder; give paths.cache=DIR."
            ) from error


@dataclass
class OodConfig:
    """Foreign queries: of tasks that nothing is trained on."""

    sources: dict[str, Any] = MISSING  # benchmarks by any name; their tasks need names of their own
    dir: str | None = None  # where a source finds its files, if it says ${ood.dir}
    tasks: list[str] | None = None  # null takes all that the sources have
    size: int | None = 50  # queries of each task; null takes all
    max_new_tokens: int | None = 64  # longest answer to each; null takes each task's own
    every: bool = False  # asked after every task instead of after the last alone

    def __post_init__(self) -> None:
        within("ood.size", self.size, 1)
        within("ood.max_new_tokens", self.max_new_tokens, 1)


@dataclass
class RunConfig:
    """The root: what people type on the command line."""

    ratio: float = 0.1  # share of each past task's examples that is rehearsed, 0..1
    seed: int = 0
    train_size: int | None = None  # training examples per task; null takes all
    test_size: int | None = None  # test examples per task; null takes all
    protocol: str = "ssr"  # whose metrics are printed: ssr, trace, olora, sapt; results.json has all
    method: Any = MISSING
    order: OrderConfig = MISSING
    benchmark: Any = MISSING
    model: ModelConfig = MISSING
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    indicators: IndicatorConfig = field(default_factory=IndicatorConfig)
    trainer: Any = MISSING
    logger: Any = None
    ood: OodConfig | None = None
    variants: list[str] = field(default_factory=list)  # of the test queries: input_only, paraphrased
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        check_ratio("ratio", self.ratio)
        if isinstance(self.method, dict) and "ratio" in self.method:
            check_ratio("method.ratio", self.method["ratio"])
        if isinstance(self.method, dict) and "calibrate_on" in self.method:
            check_calibrate_on("method.calibrate_on", self.method["calibrate_on"])
        within("seed", self.seed, 0)
        within("train_size", self.train_size, 1)
        within("test_size", self.test_size, 1)
        one_of("protocol", self.protocol, PROTOCOLS)
        for variant in self.variants:
            one_of("variants", variant, VARIANTS)


def register() -> None:
    """Make the typed root known to Hydra under the name that ``conf/run.yaml`` starts from, and files by their encoding."""
    from see_lightning.conf_files import FileConfigSource

    SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


# What the loop over tasks gives each Trainer, or what would make ``optim.global_batch`` untrue.
TRAINER_SET_BY_RUN = {
    "accumulate_grad_batches",
    "barebones",
    "callbacks",
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "fast_dev_run",
    "gradient_clip_val",
    "limit_predict_batches",
    "log_every_n_steps",
    "logger",
    "max_epochs",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "num_sanity_val_steps",
    "overfit_batches",
    "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler",
}


FSDP_BASE = "fsdp_base"  # each rank trains all of the experts and holds a part of the base model
STRATEGIES = ("auto", "ddp", FSDP_BASE)


def validate(cfg: DictConfig) -> RunConfig:
    """The typed form of a composed config, with every range checked.

    Raises:
        ConfigError: a value is out of range, or a mandatory one is missing.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]} is not set; give {missing[0]}=... on the command line.")
    _refuse_endless(OmegaConf.to_container(cfg, resolve=True), "")
    typed = OmegaConf.to_object(cfg)
    assert isinstance(typed, RunConfig)
    for name in ("devices", "num_nodes"):
        number = typed.trainer.get(name, 1)
        if (name, number) != ("devices", "auto") and not (isinstance(number, int) and number > 0):
            raise ConfigError(f"trainer.{name} must be a whole number, at least 1; got {number!r}.")
    strategy = typed.trainer.get("strategy", "auto")
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"trainer.strategy must be one of {', '.join(STRATEGIES)}; got {strategy!r}."
            f"{nearest(str(strategy), STRATEGIES)} The run starts its ranks and deals examples and queries to them itself,"
            f" and saves experts that every rank holds whole; other strategies do otherwise."
        )
    taken = sorted(TRAINER_SET_BY_RUN & set(typed.trainer))
    if taken:
        ours = called_here(taken[0])
        raise ConfigError(f"trainer.{taken[0]} is set by the run itself.{ours or ' See optim, data and logger.'}")
    if typed.trainer.get("limit_train_batches") == 0:
        raise ConfigError("trainer.limit_train_batches=0 trains nothing; give the steps of an epoch, or method=base.")
    _refuse_additions(typed, "")
    return typed


def load_composed(path: Path) -> DictConfig:
    """A composed configuration that another process of this run wrote down."""
    return typed(cast("DictConfig", OmegaConf.load(path)))


def typed(settings: DictConfig) -> DictConfig:
    """Resolved settings with their types."""
    cfg = OmegaConf.merge(OmegaConf.structured(RunConfig), settings)
    assert isinstance(cfg, DictConfig)
    return cfg


#: What YAML reads as a number in a file, and Hydra as a text on the command line.
_ENDLESS = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)


def _refuse_endless(value: Any, name: str) -> None:
    """No setting means anything as ``inf`` or ``nan``, and few comparisons see them."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _refuse_endless(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for part in value:
            _refuse_endless(part, name)
    elif (isinstance(value, float) and not math.isfinite(value)) or (
        isinstance(value, str) and _ENDLESS.fullmatch(value)
    ):
        raise ConfigError(f"{name} must be a finite number; got {value}.")


def _refuse_additions(typed: Any, prefix: str) -> None:
    """Hydra's ``+key=value`` adds what the types do not know, and nothing would ever read it."""
    known = {field.name for field in fields(typed)}
    for key, value in vars(typed).items():
        if key not in known:
            raise ConfigError(f"there is no setting {prefix + key!r}.{called_here(key) or nearest(key, known)}")
        if is_dataclass(value):
            _refuse_additions(value, f"{prefix}{key}.")


METHOD_GIVEN = ("setup",)  # what a method gets beside its settings


def bind(node: Any, *arguments: str) -> None:
    """Refuse a config node that its ``_target_`` could not be called with.

    Args:
        node: a config node with ``_target_``.
        arguments: names that the caller adds.

    Raises:
        ConfigError: an argument is unknown to the target, is of another type than its annotation says, or one that it needs
            is missing.
    """
    target = hydra.utils.get_object(node["_target_"])
    given = {str(key) for key in node if not str(key).startswith("_")} | set(arguments)
    parameters = inspect.signature(target).parameters
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


#: What a number, a word or a switch of a configuration may be, and how a refusal calls it.
PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a word"),
    bool: ((bool,), "true or false"),
    type(None): ((type(None),), "null"),
}


def _check_type(node: Any, name: str, annotation: Any) -> None:
    """Refuse a value that an argument's annotation does not allow; only numbers, words, switches and null are looked at."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if not all(kind in PLAIN for kind in kinds):
        return
    value = node[name]
    fits = [isinstance(value, PLAIN[kind][0]) and (kind is bool or not isinstance(value, bool)) for kind in kinds]
    if not any(fits):
        allowed = " or ".join(PLAIN[kind][1] for kind in kinds)
        raise ConfigError(f"{name} of {node['_target_']} must be {allowed}; got {value!r}.")


def instantiate(node: Any, **arguments: Any) -> Any:
    """Build the object that a config node's ``_target_`` names, with the caller's own arguments added."""
    bind(node, *arguments)
    plain: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    # "all": lists and dicts arrive as Python's own, so nothing below Hydra has to know OmegaConf.
    build = hydra.utils.instantiate({**plain, "_partial_": True}, _convert_="all")
    return build if plain.get("_partial_") else build(**arguments)


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
    if _ratio_is_enough(kept["method"], config):
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
    if not any(name in method and name not in off for name in GENERAL_USES):
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
