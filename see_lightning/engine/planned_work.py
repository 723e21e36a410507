"""What a run would train on: rows, steps and tokens of each task, from a sample of its rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import mean

from omegaconf import DictConfig, OmegaConf

from see_lightning.config.instantiate import instantiate
from see_lightning.config.schema import ModelConfig, RunConfig
from see_lightning.data.example import Example
from see_lightning.engine.build import build_template
from see_lightning.engine.memory_plan import Rows
from see_lightning.errors import Refusal
from see_lightning.methods.lookup import method_class
from see_lightning.tasks.memory import num_rehearsed
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Benchmark

#: Rows of a task whose tokens are counted: drawn at random, and those with most characters.
SAMPLED, LONGEST = 100, 10
#: The packaged model, whose tokenizer counts tokens where the model's own is not on this machine.
STAND_IN = ModelConfig(source="package", name="HuggingFaceTB/SmolLM2-135M-Instruct@gguf-q4_1")


@dataclass(frozen=True)
class Sample:
    """The training rows of a task.

    Args:
        rows: number of rows.
        tokens: mean length of a row in tokens.
        longest: tokens of the longest row.
        labels: tokens of the longest answer.
    """

    rows: int
    tokens: float
    longest: int
    labels: int


@dataclass(frozen=True)
class Work:
    """What a run trains on.

    Args:
        rows: the longest ones, and the number of experts.
        stages: by task: rows, steps, and tokens of all epochs.
        counted: how tokens were counted, in words.
    """

    rows: Rows
    stages: dict[str, tuple[int, int, int]]
    counted: str


def planned_work(cfg: DictConfig, config: RunConfig) -> Work:
    """The rows of the run, if its data are on this machine."""
    model, learned = config.model, len(config.order.learned())
    experts = 1 if method_class(cfg.method).traits.one_lora else learned
    try:
        samples, counted = _samples(cfg, config)
    except Refusal as error:
        usual = Rows(model.max_length, min(256, model.max_length // 4), experts)
        return Work(usual, {}, f"model.max_length, since no rows were read: {error}")
    finally:
        config.model = model
    rows = Rows(max(one.longest for one in samples.values()), max(one.labels for one in samples.values()), experts)
    return Work(rows, _steps(cfg, config, samples), counted)


def _samples(cfg: DictConfig, config: RunConfig) -> tuple[dict[str, Sample], str]:
    """Samples of all tasks by name, and how tokens were counted; ``config.model`` may be replaced.

    Raises:
        Refusal: the data are not there.
    """
    read = OmegaConf.to_container(cfg.benchmark, resolve=True)
    key = repr((read, config.order.tasks, config.train_size, config.seed, config.model))
    if key not in _READ:  # the jobs of a sweep often differ in the method alone
        counted = "counted by the model's own tokenizer"
        try:
            template = build_template(config)
        except Refusal:
            counted = "counted by the packaged tokenizer, since the model's own is not on this machine"
            config.model = replace(STAND_IN, max_length=config.model.max_length)
            template = build_template(config)
        benchmark: Benchmark = instantiate(cfg.benchmark)
        _READ[key] = {task: _sample(benchmark, task, config, template) for task in config.order.tasks}, counted
    return _READ[key]


#: What this process has read, by all that it depends on.
_READ: dict[str, tuple[dict[str, Sample], str]] = {}


def _sample(benchmark: Benchmark, task: str, config: RunConfig, template: PromptTemplate) -> Sample:
    """The number of a task's training rows, and lengths of those with most characters and of some others.

    Raises:
        DataError: the data are not there.
    """
    rows = [row for row in benchmark.reader.parts(task)["train"].rows if isinstance(row, Example)]
    size = min(len(rows), config.train_size or len(rows))
    drawn = Random(config.seed).sample(rows, min(len(rows), SAMPLED))
    longest = sorted(rows, key=lambda row: len(row.prompt) + len(row.target))[-LONGEST:]
    most = config.model.max_length

    def lengths(some: Sequence[Example]) -> list[tuple[int, int]]:
        answers = [len(template.target_ids(row.target)) for row in some]
        return [(min(most, len(template.prompt_ids(row)) + n), n) for row, n in zip(some, answers, strict=True)]

    usual, top = lengths(drawn), lengths(longest)
    return Sample(size, mean(n for n, _ in usual), max(n for n, _ in top + usual), max(n for _, n in top + usual))


def _steps(cfg: DictConfig, config: RunConfig, samples: Mapping[str, Sample]) -> dict[str, tuple[int, int, int]]:
    """Rows, steps and tokens of each stage; past rows as ``ratio``, ``min_negatives`` and ``max_negatives`` say."""
    traits, epochs, batch = method_class(cfg.method).traits, config.optim.epochs, config.optim.global_batch_size
    least = cfg.method.get("min_negatives", 0) if traits.learns_refusals else 0
    ratio, most = float(cfg.method.get("ratio") or 0), cfg.method.get("max_negatives", 0)
    if traits.schedule == "joint":
        every = sum(one.rows for one in samples.values())
        tokens = sum(one.rows * one.tokens for one in samples.values())
        return {"all tasks": (every, math.ceil(every / batch) * epochs, round(tokens * epochs))}
    found: dict[str, tuple[int, int, int]] = {}
    past: dict[str, Sample] = {}
    for task, one in samples.items():
        drawn = {name: num_rehearsed(ratio, other.rows, least) for name, other in past.items()}
        share = min(1.0, most / max(1, sum(drawn.values()))) if most else 1.0
        kept = {name: int(share * rows) for name, rows in drawn.items()}
        rows = one.rows + sum(kept.values())
        tokens = one.rows * one.tokens + sum(number * past[name].tokens for name, number in kept.items())
        found[task] = (rows, math.ceil(rows / batch) * epochs, round(epochs * tokens))
        past[task] = one
    return found
