"""The settings of a run: their types, defaults and ranges.

The groups of fixed shape are typed here; a group that names its class by ``_target_`` is typed by that class.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig

from see_lightning.config.checks import check_calibrate_on, check_ratio, check_tokens, one_of, within
from see_lightning.config.evaluate import EvaluateConfig
from see_lightning.config.origins import Origin, read_origins
from see_lightning.errors import ConfigError

PROTOCOLS = ("ssr", "trace", "olora", "sapt")
#: Variants with a paraphrase of the definition, in the order of a benchmark's paraphrases.
PARAPHRASED = ("paraphrased", *(f"paraphrased_{number}" for number in range(2, 10)))
VARIANTS = ("input_only", *PARAPHRASED)
OOD_VARIANTS = ("input_only",)
PROMPT_STYLES = ("chat", "plain", "alpaca", "llama2")
USUAL_TOKENS = 4096  # of a micro-batch, where no number is given


def _open_group() -> Any:
    """An empty group that accepts new keys from the command line without a plus."""
    return DictConfig({}, flags={"struct": False})


@dataclass
class ModelConfig:
    """The base model and its prompt format."""

    source: str = MISSING  # package (weights inside a pip package), tiny (random, for tests), hub
    name: str = MISSING  # hub id, or a name for the model
    revision: str | None = None  # hub only: commit, tag or branch
    prompt: str = "chat"  # chat (the tokenizer's template), plain (the query alone), alpaca, llama2 (SSR's)
    system_prompt: str | None = None  # chat: null is the template's own; llama2: null is none
    template_args: dict[str, Any] = field(
        default_factory=_open_group
    )  # chat only: variables of the template, such as enable_thinking
    dtype: str = "auto"  # auto (bf16 where the hardware is fast at it, else fp32), bf16, fp32
    max_length: int = 1536  # tokens; the longest prompt with its answer
    attention: str = "auto"  # auto (GPU: sdpa; CPU: grouped where the model allows it, else eager), sdpa, flash, ...
    quantization: str = "none"  # of the base model's linear layers: none, int8, nf4; needs bitsandbytes
    gradient_checkpointing: str = "auto"  # auto (if memory would not suffice), on (less memory, a third more time), off
    trust_remote_code: bool = False  # run Python code that comes with the model

    def __post_init__(self) -> None:
        one_of("model.source", self.source, ("package", "tiny", "hub"))
        one_of("model.prompt", self.prompt, PROMPT_STYLES)
        one_of("model.dtype", self.dtype, ("auto", "bf16", "fp32"))
        one_of("model.attention", self.attention, ("auto", "sdpa", "flash", "eager", "grouped"))
        one_of("model.quantization", self.quantization, ("none", "int8", "nf4"))
        one_of("model.gradient_checkpointing", self.gradient_checkpointing, ("auto", "on", "off"))
        within("model.max_length", self.max_length, 16)
        if self.template_args and self.prompt != "chat":
            raise ConfigError(f"model.template_args are for model.prompt=chat; the style is {self.prompt}.")
        if self.source != "hub" and (self.revision or self.trust_remote_code):
            raise ConfigError(
                f"model.revision and model.trust_remote_code belong to model.source=hub, not {self.source}."
            )


ALL_LINEAR = "all-linear"  # PEFT's word
# The layers of Llama that null and all-linear stand for: kept runs of these settings have the names in their keys.
LLAMA_TARGETS: dict[str | None, list[str]] = {
    None: ["q_proj", "v_proj"],
    ALL_LINEAR: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


@dataclass
class AdapterConfig:
    """One expert's LoRA, or the layers that are trained whole."""

    rank: int = 8
    alpha: float = 32.0  # the update is scaled by alpha / rank
    dropout: float = 0.1  # share of the adapter's inputs
    targets: Any = field(default_factory=lambda: ["q_proj", "v_proj"])  # names of linear layers; see ``conf/adapter``
    activated: bool = (
        False  # acts from the assistant header on, so that all experts share the base model's KV cache of a query
    )
    cache_gb: float = 4.0  # activated only: memory of the base model's KV caches (half training, half test)
    quantization: str = "none"  # of an expert after its training: none (fp32), int8, nf4; it answers as it is stored
    full: bool = False  # the target layers are trained whole, without LoRA: rank, alpha and dropout have no effect

    def __post_init__(self) -> None:
        if self.full and self.activated:
            raise ConfigError(
                "adapter.full trains whole layers, which read every token of a prompt, and adapter.activated limits experts"
                " to its end; set one of the two."
            )
        one_of("adapter.quantization", self.quantization, ("none", "int8", "nf4"))
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
    """Training of one task."""

    lr: float = 2e-4  # peak learning rate of AdamW
    weight_decay: float = 0.0
    epochs: int = 3  # passes over a task's training examples
    global_batch_size: int = 32  # examples per optimizer step, over all devices
    max_tokens_per_microbatch: Any = (
        USUAL_TOKENS  # of a device, padding included; auto: as many as fit into the free memory
    )
    schedule: str = "cosine"  # cosine (to zero), linear (to zero), constant
    warmup: float = 0.0  # share of the steps
    grad_clip: float = 1.0  # largest gradient norm; 0 turns it off
    loss_reduction: str = "tokens"  # mean over: tokens (all targets of a batch), examples (each weighs the same)
    early_stopping: int = 0  # epochs without a lower validation loss that end a task; its best epoch is kept; 0: none
    migu: float = 0.0  # MIGU: share of the rows of A and B that a step does not update from the second task on; 0: none

    def __post_init__(self) -> None:
        within("optim.early_stopping", self.early_stopping, 0)
        within("optim.migu", self.migu, 0, 0.999)
        within("optim.lr", self.lr, 0)
        within("optim.weight_decay", self.weight_decay, 0)
        within("optim.epochs", self.epochs, 1)
        within("optim.global_batch_size", self.global_batch_size, 1)
        check_tokens("optim.max_tokens_per_microbatch", self.max_tokens_per_microbatch)
        within("optim.warmup", self.warmup, 0, 1)
        within("optim.grad_clip", self.grad_clip, 0)
        one_of("optim.schedule", self.schedule, ("cosine", "linear", "constant"))
        one_of("optim.loss_reduction", self.loss_reduction, ("tokens", "examples"))


#: How the tasks of an order come: one after another, again and again, or mixed.
STREAMS = ("none", "recurring", "blurry")
RESERVED = ("base", "ensemble")  # the base model in answers; all experts together in the harness


@dataclass
class OrderConfig:
    """The tasks in the order of learning."""

    name: str = MISSING
    tasks: list[str] = MISSING
    stream: str = "none"  # none (one task after another), recurring (each task comes back), blurry (tasks share rows)
    visits: int = 2  # recurring: visits of each task, over which its rows are dealt
    share: float = 0.1  # blurry: share of each task's training rows that are learned in the stages of the others
    #: By task, where its expert comes from, if it is not trained as all others are: none (it has no expert), a PEFT folder,
    #: or the lr, epochs and seed of its training.
    experts: Any = None

    def __post_init__(self) -> None:
        one_of("order.stream", self.stream, STREAMS)
        within("order.visits", self.visits, 2)
        within("order.share", self.share, 0, 1)
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
        if self.stream == "blurry" and len(self.tasks) < 2:
            raise ConfigError("order.stream=blurry mixes tasks; name at least two in order.tasks.")
        if self.origins() and self.stream != "none":
            raise ConfigError(f"order.experts is for tasks one after another, not for order.stream={self.stream}.")

    def origins(self) -> dict[str, Origin]:
        """The values of ``experts``."""
        return read_origins(self.experts, self.tasks)

    def learned(self) -> dict[str, str]:
        """By name of each task that a run learns, the benchmark's task; see ``learned_tasks``."""
        return learned_tasks(asdict(self))


def visit_name(task: str, number: int) -> str:
    """The name of a recurring task's visit, counted from 1, and of its expert."""
    return f"{task}_{number}"


def learned_tasks(order: Mapping[str, Any]) -> dict[str, str]:
    """By name of each task that a run learns, in this order, the benchmark's task whose rows it has.

    Args:
        order: settings of ``OrderConfig`` by name; ``stream`` may be missing.

    >>> learned_tasks({"tasks": ["qa", "sa"]})
    {'qa': 'qa', 'sa': 'sa'}
    >>> learned_tasks({"tasks": ["qa", "sa"], "stream": "recurring", "visits": 2})
    {'qa_1': 'qa', 'sa_1': 'sa', 'qa_2': 'qa', 'sa_2': 'sa'}
    """
    if order.get("stream", "none") != "recurring":
        return {task: task for task in order["tasks"]}
    return {visit_name(task, number): task for number in range(1, order["visits"] + 1) for task in order["tasks"]}


#: When past examples are drawn: for every later task, or once for all of them.
RESAMPLE = ("per_task", "once")


@dataclass
class DataConfig:
    """Checks, rehearsal and batches of examples."""

    on_bad_row: str = "stop"  # stop, or skip (counted, reported, an error above 1 % of a task's rows)
    eval_batch_size: int = 16  # queries decoded together
    resample: str = "per_task"  # per_task (past examples are sampled for every later task), once (sampled once for all)
    min_negatives: int = 12  # least examples of each past task that an expert learns to reject; 0: the ratio alone
    max_negatives: int = 0  # most examples of all past tasks together that an expert learns to reject; 0: no limit
    calibrate_on: Any = 0  # held-out rows that set an expert's threshold; train: its training rows; 0: no threshold

    def __post_init__(self) -> None:
        within("data.min_negatives", self.min_negatives, 0)
        within("data.max_negatives", self.max_negatives, 0)
        check_calibrate_on("data.calibrate_on", self.calibrate_on)
        one_of("data.resample", self.resample, RESAMPLE)
        one_of("data.on_bad_row", self.on_bad_row, ("stop", "skip"))
        within("data.eval_batch_size", self.eval_batch_size, 1)


@dataclass
class IndicatorConfig:
    """The indicators: an expert writes pos before an answer, and neg instead of one."""

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
    """Folders. They change no number."""

    data: str = "data"  # data root; the environment variable SEE_DATA by default
    runs: str = "runs"
    cache: str = "~/.cache/see_lightning"  # the converted base model

    def cache_folder(self) -> Path:
        """The folder of the cache, with the home folder expanded.

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
    """OOD queries: of tasks that no expert is trained on."""

    sources: dict[str, Any] = MISSING  # benchmarks under any names; names of tasks must differ from the run's
    dir: str | None = None  # folder of a source's files, for sources with ${ood.dir}
    tasks: list[str] | None = None  # null takes all tasks of the sources
    size: int | None = 50  # queries of each task; null takes all
    max_new_tokens: int | None = 64  # longest answer; null takes each task's own limit
    every: bool = False  # evaluated after every task instead of after the last alone
    variants: list[str] = field(default_factory=list)  # evaluated in addition: input_only (without the definition)

    def __post_init__(self) -> None:
        for variant in self.variants:
            one_of("ood.variants", variant, OOD_VARIANTS)
        within("ood.size", self.size, 1)
        within("ood.max_new_tokens", self.max_new_tokens, 1)


@dataclass
class RunConfig:
    """The root of all settings, as typed on the command line."""

    ratio: float = 0.1  # share of each past task's examples that is rehearsed, 0..1
    seed: int = 0
    train_size: int | None = None  # training examples per task; null takes all
    test_size: int | None = None  # test examples per task; null takes all
    valid_size: int = 0  # validation examples per task, for the loss after each epoch
    protocol: str = "ssr"  # the metrics that are printed: ssr, trace, olora, sapt; results.json has all
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
    router: Any = None  # null: the method's own
    rule: Any = None  # null: the method's own, if it merges
    ood: OodConfig | None = None
    variants: list[str] = field(default_factory=list)  # of test queries: input_only, paraphrased, paraphrased_2
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
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
        within("valid_size", self.valid_size, 0)
        if self.optim.early_stopping and not self.valid_size:
            raise ConfigError(
                f"optim.early_stopping={self.optim.early_stopping} compares validation losses, and no validation rows are"
                f" chosen; write valid_size=N too, such as valid_size=50, or optim.early_stopping=0."
            )
        one_of("protocol", self.protocol, PROTOCOLS)
        for variant in self.variants:
            one_of("variants", variant, VARIANTS)
