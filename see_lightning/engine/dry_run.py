"""What a run would take, without weights, training or a network: ``see-lightning run ... --dry-run``."""

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from transformers import PreTrainedConfig, PreTrainedModel

from see_lightning.adapters.targets import resolve_targets, target_layers
from see_lightning.config.identity import method_name
from see_lightning.config.schema import USUAL_TOKENS, ModelConfig, RunConfig
from see_lightning.config.validation import FSDP_BASE, validate
from see_lightning.engine.build import cache_folder
from see_lightning.engine.distributed import on_gpu, processes
from see_lightning.engine.footprint import Footprint
from see_lightning.engine.launch import check_traits
from see_lightning.engine.memory_plan import Machine, footprint
from see_lightning.engine.merge_rule import settle_rule
from see_lightning.engine.planned_work import Work, planned_work
from see_lightning.engine.router import settle_router
from see_lightning.errors import ConfigError
from see_lightning.methods.lookup import method_class
from see_lightning.models.architecture import check_architecture
from see_lightning.models.base import DTYPES, fast_dtype, load_settings, model_of
from see_lightning.models.quantized_base import check_quantizable
from see_lightning.models.shapes import known_shape
from see_lightning.reporting.terminal import print_table

#: Operations a second of a GPU that is not here: an H100's dense bf16 products, by its data sheet.
GPU_PEAK = 989e12
#: Share of the speed of large products that a training step reaches.
REACHED = {"cpu": 0.5, "gpu": 0.4}
#: A line of a table: its name and its cells.
Row = tuple[str, Sequence[str]]


@dataclass(frozen=True)
class DryRun:
    """A run that is only looked at.

    Args:
        cfg: composed.
        config: its typed form, with names of layers as ``adapter.targets``.
        settings: configuration of the base model.
        source: where that comes from, in words.
        work: what the run trains on.
        here: the devices that it asks for.
        dtype: of the base model.
        trains: whether it trains anything.
    """

    cfg: DictConfig
    config: RunConfig
    settings: PreTrainedConfig
    source: str
    work: Work
    here: Machine
    dtype: str
    trains: bool

    @cached_property
    def bones(self) -> PreTrainedModel:
        """The base model without weights."""
        return bones_of(self.settings, self.config.model)

    @cached_property
    def head(self) -> int:
        """Weights of the vocabulary head."""
        return int(self.bones.get_output_embeddings().weight.numel())

    def title(self) -> str:
        """The run in one line."""
        one, several = ("a GPU", "GPUs") if self.here.has_gpu else ("a CPU process", "CPU processes")
        devices = f"{self.here.ranks} {several}" if self.here.ranks > 1 else one
        return (
            f"{method_name(self.cfg)} on {self.config.order.name}: {len(self.config.order.tasks)} tasks,"
            f" {self.config.model.name}, {self.dtype}, {devices}. Nothing is run."
        )

    def weights(self) -> list[Row]:
        """Numbers of weights, and the longest row."""
        adapter = self.config.adapter
        total = sum(weight.numel() for weight in self.bones.parameters())
        rows = [
            (f"weights of the base model ({self.source})", [f"{total:,}"]),
            ("of these in the vocabulary head", [f"{self.head:,}"]),
        ]
        if self.trains:
            layers = target_layers(self.bones, adapter.targets).values()
            whole = sum(weight.numel() for layer in layers for weight in layer.parameters())
            low = adapter.rank * sum(sum(layer.weight.shape) for layer in layers)  # type: ignore[arg-type, misc]
            kind = "whole layers" if adapter.full else f"LoRA of rank {adapter.rank}"
            rows.append(
                (f"trained weights a task: {kind}, {len(layers)} layers", [f"{whole if adapter.full else low:,}"])
            )
        return [*rows, ("tokens of the longest training row", [f"{self.work.rows.longest:,}"])]

    def memory(self) -> list[Row]:
        """The parts of the memory of a training step, in GiB."""
        given = self.config.optim.max_tokens_per_microbatch
        tokens = USUAL_TOKENS if given == "auto" else int(given)
        found, kind = self._footprint(tokens), self.config.model.quantization
        step = f"activations, micro-batches of {tokens:,} tokens{'; auto makes them fit' if given == 'auto' else ''}"
        parts = {
            f"base model{'' if kind == 'none' else f', {kind}'}": found.base,
            f"adapters in memory: {self.work.rows.experts}": found.adapters,
            "gradients and moments of the trained one": found.optimizer,
            step + (", layers computed again" if self.recomputes else ""): found.step,
            "cached prefills": found.cache,
            "interpreter and libraries": found.process,
            "together": found.total(),
        }
        return [(name, [f"{size / 2**30:.2f}"]) for name, size in parts.items() if size]

    @property
    def recomputes(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return self.config.model.gradient_checkpointing == "on"

    def _footprint(self, tokens: int) -> Footprint:
        config, here = self.config, self.here
        rows, experts = replace(self.work.rows, experts=1), self.work.rows.experts
        key = repr((config.model, config.adapter, self.dtype, tokens, rows, here))
        if key not in _ESTIMATES:  # the jobs of a sweep often differ in the method alone
            bones = model_of(self.settings, config.model)  # another one, since it is changed
            _ESTIMATES[key] = footprint(bones, config, self.dtype, rows, here, tokens, checkpointing=self.recomputes)
        return replace(_ESTIMATES[key], adapters=experts * _ESTIMATES[key].adapters)

    def stages(self) -> list[Row]:
        """Rows, steps and tokens of each stage."""
        rows = [(name, [f"{number:,}" for number in numbers]) for name, numbers in self.work.stages.items()]
        sums = [f"{sum(column):,}" for column in zip(*self.work.stages.values(), strict=True)]
        return [*rows, ("together", sums)]

    def time(self) -> str:
        """Operations of the training, and the hours that they take here, or on an assumed GPU if there is none."""
        tokens = sum(numbers[2] for numbers in self.work.stages.values())
        text = self.settings.get_text_config(decoder=True)
        layers = sum(weight.numel() for weight in self.bones.parameters()) - self.head * (2 - text.tie_word_embeddings)
        # Two operations a weight forward, two for the gradients of inputs, and two for those of weights that are trained.
        passes = 2 + self.config.adapter.full + self.recomputes
        labels = min(1.0, self.work.rows.labels / self.work.rows.longest)
        total = tokens * (2 * passes * layers + 4 * self.head * labels)
        if self.here.has_gpu and not torch.cuda.is_available():
            rate, said = GPU_PEAK * REACHED["gpu"], "at 40 % of an H100's 989 TFLOP/s, since no GPU is here"
        else:
            device, share = ("cuda", REACHED["gpu"]) if self.here.has_gpu else ("cpu", REACHED["cpu"])
            rate = share * products_a_second(text.hidden_size, self.dtype, device)
            said = f"at {rate / 1e9:,.0f} GFLOP/s, {share:.0%} of what products of this size reached just now"
        hours = total / rate / self.here.ranks / 3600
        took = f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:,.0f} min"
        return f"training: {total:.2e} operations, about {took} {said}; testing comes in addition."


#: Estimates of this process, of one adapter in memory, and models without weights, by all that they depend on.
_ESTIMATES: dict[str, Footprint] = {}
_BONES: dict[str, PreTrainedModel] = {}


def dry_run(cfg: DictConfig) -> None:
    """Check a configuration as a run does, and print its weights, memory, steps, tokens and time.

    Args:
        cfg: composed.

    Raises:
        Refusal: the run would refuse these settings, or the model's configuration is not on this machine.
    """
    found = look_at(cfg)
    console = Console(highlight=False)
    console.print(found.title(), markup=False, soft_wrap=True)
    _print(console, "what", ("number",), found.weights())
    console.print(f"tokens: {found.work.counted}", markup=False, soft_wrap=True)
    if found.trains:
        _print(console, "memory of a training step on each device", ("GiB",), found.memory())
    if found.trains and found.work.stages:
        _print(console, "training", ("rows", "steps", "tokens"), found.stages())
        console.print(found.time(), markup=False, soft_wrap=True)


def look_at(cfg: DictConfig) -> DryRun:
    """Check a configuration, and read the model's shape and the data.

    Raises:
        Refusal: see ``dry_run``.
    """
    config = validate(cfg)
    traits = method_class(cfg.method).traits
    if traits.weights == "full":
        cfg.adapter.full = config.adapter.full = True
    settle_router(cfg, config)
    settle_rule(cfg, config)
    check_traits(cfg, config)
    settings, source = shape_of(config)
    trains = traits.trains and traits.schedule != "frozen"
    if trains:
        bones = bones_of(settings, config.model)
        config.adapter.targets = resolve_targets(config.adapter.targets, bones, config.model.name)
    gpu = cfg.trainer.get("accelerator", "auto") in ("gpu", "cuda") or on_gpu(cfg)
    if config.model.quantization != "none":
        bones = bones_of(settings, config.model)
        check_quantizable(bones, config.model.quantization, config.model.name, has_gpu=gpu)
    own = "bf16" if gpu else fast_dtype("cpu")
    dtype = own if config.model.dtype == "auto" else config.model.dtype
    here = Machine(gpu, 0, max(1, processes(cfg)), cfg.trainer.get("strategy") == FSDP_BASE)
    return DryRun(cfg, config, settings, source, planned_work(cfg, config), here, dtype, trains)


def bones_of(settings: PreTrainedConfig, config: ModelConfig) -> PreTrainedModel:
    """The base model without weights, one for all jobs of a sweep, which do not change it."""
    key = repr((settings.to_dict(), config))
    if key not in _BONES:
        _BONES[key] = model_of(settings, config)
    return _BONES[key]


def shape_of(config: RunConfig) -> tuple[PreTrainedConfig, str]:
    """The configuration of the base model, and where it comes from, in words.

    Raises:
        ConfigError: it is neither on this machine nor known, or experts cannot share the model.
    """
    known = known_shape(config.model.name) if config.model.source == "hub" else None
    try:
        return load_settings(config.model, cache_folder(config)), "its own configuration"
    except ConfigError as error:
        if known is None:
            raise ConfigError(
                f"{error} Its shape is not known either: download its config.json, or give a folder."
            ) from error
    check_architecture(config.model, known)
    return known, "known shape"


@functools.cache  # the jobs of a sweep ask for the same
def products_a_second(hidden: int, dtype: str, device: str) -> float:
    """Operations a second of products of a model's size on a device: the best of five."""
    left = torch.randn(1024, hidden, device=device).to(DTYPES[dtype])
    right = torch.randn(4 * hidden, hidden, device=device).to(DTYPES[dtype])
    best = math.inf
    for _ in range(5):
        begun = time.perf_counter()
        torch.nn.functional.linear(left, right)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * left.numel() * len(right) / best


def _print(console: Console, title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    table = Table(title, *(Column(name, justify="right") for name in columns), box=box.SIMPLE_HEAD)
    for name, cells in rows:
        table.add_row(Text(name), *map(Text, cells))
    print_table(table, console)
