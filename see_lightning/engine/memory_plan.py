"""How a training step is fitted into the memory that there is: the size of micro-batches, and what is computed again.

Neither changes a number. Letters: S tokens of a row.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from transformers import PreTrainedConfig, PreTrainedModel

from see_lightning.config.schema import USUAL_TOKENS, RunConfig
from see_lightning.config.validation import FSDP_BASE
from see_lightning.engine.build import cache_folder
from see_lightning.engine.distributed import on_gpu
from see_lightning.engine.footprint import HEAP, LIBRARIES, Footprint, process_bytes, shapes_to_try, training_footprint
from see_lightning.errors import ConfigError
from see_lightning.models.attention import LONG
from see_lightning.models.base import DTYPES, load_settings, model_of
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task

#: Share of the free memory that an estimate may take.
SHARE = 0.8
#: Tokens of micro-batches that ``auto`` tries. On a CPU larger ones are not faster.
ON_GPU, ON_CPU = (65536, 32768, 16384, 8192, 4096, 2048, 1024), (4096, 2048, 1024)


@dataclass(frozen=True)
class Machine:
    """Where a run trains.

    Args:
        has_gpu: whether on GPUs.
        available: bytes that are free on a device.
        ranks: processes that train together.
        is_sharded: whether each holds a part of the base model.
    """

    has_gpu: bool
    available: int
    ranks: int = 1
    is_sharded: bool = False


@dataclass(frozen=True)
class MemoryPlan:
    """How a step is fitted.

    Args:
        tokens: most tokens of a micro-batch.
        checkpointing: whether layers are computed again in the backward pass.
        footprint: the estimate; None if the step is so small that none was made, or if it failed.
        fault: why it failed.
    """

    tokens: int
    checkpointing: bool
    footprint: Footprint | None = None
    fault: str = ""

    def in_words(self, here: Machine) -> str:
        """What was chosen, and why."""
        if self.footprint is None:
            return f"the memory of a training step was not estimated: {self.fault}"
        again = "layers are computed again in the backward pass, " if self.checkpointing else ""
        return (
            f"{again}micro-batches of at most {self.tokens:,} tokens: {self.footprint.total() / 2**30:.1f} GiB by the"
            f" estimate, {here.available / 2**30:.1f} GiB are free"
        )


@dataclass(frozen=True)
class Rows:
    """The longest rows that a run trains on.

    Args:
        longest: tokens of the longest row.
        labels: tokens of the longest answer.
        experts: adapters that are in memory at the end.
    """

    longest: int
    labels: int
    experts: int = 1


def longest_rows(tasks: Sequence[Task], template: PromptTemplate) -> Rows:
    """The longest row and the longest answer of the training rows of tasks, with the tokens around them."""
    rows = [row for task in tasks for row in task.train]
    labels = [len(template.target_ids(row.target)) for row in rows]
    lengths = [len(template.prompt_ids(row)) + answer for row, answer in zip(rows, labels, strict=True)]
    return Rows(max(lengths, default=1), max(labels, default=1), len(tasks))


def machine(cfg: DictConfig, ranks: int) -> Machine:
    """Where a run trains, and the memory that is free there for each of its processes."""
    gpu = on_gpu(cfg)
    free = available_bytes(gpu)
    here = max(1, ranks // int(cfg.trainer.get("num_nodes", 1)))
    return Machine(gpu, free if gpu else free // here, ranks, cfg.trainer.get("strategy") == FSDP_BASE)


def plan_memory(config: RunConfig, dtype: str, rows: Rows, machine: Machine) -> MemoryPlan:
    """The largest micro-batch that fits, of those that the settings allow, and without computing layers again if possible.

    Args:
        config: of the run, with names of layers as ``adapter.targets``.
        dtype: ``bf16`` or ``fp32``, of the base model.
        rows: that it trains on.
        machine: where it trains.

    Raises:
        ConfigError: ``auto`` finds no micro-batch that fits.
    """
    wish, given = config.model.gradient_checkpointing, config.optim.max_tokens_per_microbatch
    sizes = [size for size in (ON_GPU if machine.has_gpu else ON_CPU) if size > rows.longest]
    tokens = [int(given)] if given != "auto" else [*sizes, rows.longest]
    limit = SHARE * machine.available
    if wish == "on" and given != "auto":
        return MemoryPlan(tokens[0], True)
    settings = load_settings(config.model, cache_folder(config))
    if wish != "on" and rough_bytes(settings, dtype, tokens[0], rows) < limit:
        return MemoryPlan(tokens[0], False)
    last: MemoryPlan | None = None
    try:
        for last in _plans(settings, config, dtype, rows, machine, tokens):
            if last.footprint is not None and last.footprint.total() <= limit:
                return last
    except Exception as error:  # of any type: a model's own code may not run on tensors without data, and yet train
        usual = USUAL_TOKENS if given == "auto" else tokens[0]
        reason = next(iter(str(error).splitlines()), "")
        return MemoryPlan(usual, wish == "on", fault=f"{type(error).__name__}: {reason[:200]}")
    assert last is not None
    assert last.footprint is not None
    if given == "auto":
        raise ConfigError(
            f"a micro-batch of one row ({last.tokens} tokens) takes {last.footprint.total() / 2**30:.1f} GiB of memory by"
            f" the estimate, and {machine.available / 2**30:.1f} GiB are free. Lower model.max_length or adapter.rank, or"
            f" choose a smaller model; optim.max_tokens_per_microbatch={last.tokens} tries it all the same."
        )
    return last  # the user's own choice, in its smallest form


def _plans(
    settings: PreTrainedConfig, config: RunConfig, dtype: str, rows: Rows, machine: Machine, tokens: list[int]
) -> Iterator[MemoryPlan]:
    """The allowed plans, the fastest first."""
    for again in {"auto": (False, True), "on": (True,), "off": (False,)}[config.model.gradient_checkpointing]:
        for size in tokens:
            bones = model_of(settings, config.model)
            yield MemoryPlan(size, again, footprint(bones, config, dtype, rows, machine, size, checkpointing=again))


def footprint(
    bones: PreTrainedModel,
    config: RunConfig,
    dtype: str,
    rows: Rows,
    machine: Machine,
    tokens: int,
    *,
    checkpointing: bool,
) -> Footprint:
    """The estimate for one size of micro-batches of a run; ``bones``, the model on the meta device, is changed."""
    return training_footprint(
        bones,
        config.adapter,
        dtype,
        shapes_to_try(tokens, rows.longest, rows.labels),
        attention=config.model.attention,
        has_gpu=machine.has_gpu,
        checkpointing=checkpointing,
        adapters=rows.experts,
        ranks=machine.ranks,
        is_sharded=machine.is_sharded,
        quantization=config.model.quantization,
    )


def rough_bytes(settings: PreTrainedConfig, dtype: str, tokens: int, rows: Rows) -> float:
    """An upper bound of the bytes of a training process, without a pass; about 1.5 times those of a Llama.

    Args:
        settings: the model's own configuration.
        dtype: of the base model.
        tokens: most tokens of a micro-batch.
        rows: that are trained on.
    """
    text = settings.get_text_config(decoder=True)
    if not all(hasattr(text, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")):
        return float("inf")
    hidden, layers = text.hidden_size, text.num_hidden_layers
    inner = max(getattr(text, name, None) or 0 for name in ("intermediate_size", "ffn_dim", "n_inner")) or 4 * hidden
    size = DTYPES[dtype].itemsize
    scores = 10 * text.num_attention_heads * min(rows.longest, LONG - 1)
    step = max(tokens, rows.longest) * layers * (size * (16 * hidden + 4 * inner) + scores)
    weights = size * (2 * text.vocab_size * hidden + layers * (4 * hidden**2 + 3 * hidden * inner))
    logits = 3 * 4 * rows.labels * max(1, tokens // rows.longest) * text.vocab_size
    return float(HEAP * (step + logits) + weights + process_bytes("VmRSS") + 2 * LIBRARIES)


def available_bytes(has_gpu: bool) -> int:
    """Bytes that are free: of the first GPU, or of this machine within the limit of its control group."""
    if has_gpu:
        return int(torch.cuda.mem_get_info()[0])
    found = []
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # ``max`` is no limit
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        found.append(limit - used)
    return min(found, default=2**62)
