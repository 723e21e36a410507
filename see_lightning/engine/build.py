"""Builds tasks, prompt template and method from a checked configuration."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch.distributed.device_mesh import DeviceMesh

from see_lightning.adapters.activated import check_activated
from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.response_cache import ResponseCache
from see_lightning.adapters.targets import resolve_targets
from see_lightning.config.checks import TRAIN
from see_lightning.config.instantiate import instantiate
from see_lightning.config.schema import LLAMA_TARGETS, USUAL_TOKENS, RunConfig
from see_lightning.data.checks import RowChecks
from see_lightning.engine.distributed import on_gpu
from see_lightning.engine.merge_rule import build_rule
from see_lightning.engine.router import build_router
from see_lightning.errors import ConfigError
from see_lightning.evaluation.references import score_notices
from see_lightning.evaluation.scores import score_fn
from see_lightning.methods.lookup import method_class
from see_lightning.methods.method import Method
from see_lightning.methods.migu import with_largest_rows
from see_lightning.methods.setup import Setup
from see_lightning.models.base import end_ids, load_model, load_tokenizer, model_place, skeleton
from see_lightning.models.quantized_base import check_quantizable
from see_lightning.models.sharding import shard
from see_lightning.tasks.lengths import checked_lengths, length_notices
from see_lightning.tasks.prompts import PromptTemplate, checked_header, checked_texts
from see_lightning.tasks.streams import in_stream
from see_lightning.tasks.task import Benchmark, Task


def cache_folder(config: RunConfig) -> Path:
    """The folder of converted models."""
    return config.paths.cache_folder()


def build_template(config: RunConfig, date: str | None = None) -> PromptTemplate:
    """The prompt template of a run, with its tokenizer; no weights are loaded.

    Args:
        config: of the run.
        date: of the run's start, in ISO form, for chat templates that contain it; None is now.
    """
    model = config.model
    template = PromptTemplate(
        load_tokenizer(model, cache_folder(config)),
        style=model.prompt,
        system_prompt=model.system_prompt,
        max_length=model.max_length,
        arguments=model.template_args,
        date=datetime.fromisoformat(date) if date else None,
    )
    if config.adapter.activated:
        check_activated(config.adapter, template.header_ids())
    return template


def build_tasks(cfg: DictConfig, config: RunConfig, template: PromptTemplate) -> list[Task]:
    """The tasks that a run learns, in their order: those of ``plain_tasks`` in the order's stream.

    Raises:
        DataError: as for ``plain_tasks``.
        ConfigError: likewise, or a task has too few rows for the stream.
    """
    return in_stream(plain_tasks(cfg, config, template), config.order)


def plain_tasks(cfg: DictConfig, config: RunConfig, template: PromptTemplate) -> list[Task]:
    """Read and check every task of the order, before anything is trained.

    Raises:
        DataError: a row cannot be used, or too many were skipped.
        ConfigError: a task or score is unknown, a size is too large, or an indicator cannot be tokenized or contains a
            token that ends an answer.
    """
    if method_class(cfg.method).traits.learns_refusals:
        _check_indicators(config, template)
    tasks = read_tasks(
        cfg.benchmark,
        config.order.tasks,
        config,
        template,
        config.train_size,
        config.test_size,
        held_out=0 if cfg.method.get("calibrate_on") == TRAIN else cfg.method.get("calibrate_on", 0),
        valid_size=config.valid_size,
    )
    return [with_notices(task, template, "benchmark", "benchmark.max_new_tokens") for task in tasks]


def _check_indicators(config: RunConfig, template: PromptTemplate) -> None:
    """Refuse an indicator that cannot be tokenized, or that contains a token which ends an answer."""
    ends = end_ids(config.model, cache_folder(config), template.tokenizer)
    for name, word in (("pos", config.indicators.pos), ("neg", config.indicators.neg)):
        for text, id_ in sorted((template.tokenizer.decode([id_]), id_) for id_ in ends):
            if (text.strip() and text in word) or id_ in template.text_ids(word):
                raise ConfigError(
                    f"indicators.{name}={word!r} holds {text!r}, with which the model ends an answer. Choose another word."
                )
        reason, _ = template.loss(word)
        if reason:
            raise ConfigError(f"indicators.{name}: the tokenizer cannot write it: {reason}. Choose another word.")


def with_notices(task: Task, template: PromptTemplate, benchmark: str, longest: str) -> Task:
    """The task with notices about reference answers that cannot be reached and about limits of its score.

    Args:
        task: with the test queries that are used.
        template: counts tokens.
        benchmark: key of the task's benchmark in the configuration, for the notice's advice.
        longest: key of the setting that limits answers.
    """
    score = f"++{benchmark}.tasks.{task.name}.score={{}}"
    if task.name[0].isdigit():  # Hydra does not accept such a name within a dotted key
        score = f"'++{benchmark}.tasks={{{{{task.name}: {{{{score: {{}}}}}}}}}}'"
    of_score = score_notices(task.name, task.score, task.test, task.train, score)
    return replace(task, notices=(*task.notices, *length_notices(task, template, longest), *of_score))


def indicator_tokens(config: RunConfig, template: PromptTemplate) -> int:
    """Tokens of the longer indicator."""
    return max(len(template.target_ids(word)) for word in (config.indicators.pos, config.indicators.neg))


def read_tasks(
    node: DictConfig,
    names: Sequence[str],
    config: RunConfig,
    template: PromptTemplate,
    train_size: int | None,
    test_size: int | None,
    *,
    held_out: int = 0,
    valid_size: int = 0,
    trained_on: bool = True,
) -> list[Task]:
    """Read and check tasks of one benchmark.

    Args:
        node: the benchmark.
        names: of the tasks.
        config: of the run.
        template: counts tokens.
        train_size: training rows of each; None takes all.
        test_size: test rows of each; None takes all.
        held_out: further training rows that are held out.
        valid_size: validation rows of each.
        trained_on: whether a method trains on the rows.
    """
    benchmark: Benchmark = instantiate(node)
    words = (config.indicators.pos, config.indicators.neg)
    checks = RowChecks("skip" if config.data.on_bad_row == "skip" else "stop", words, trained_on=trained_on)
    room = indicator_tokens(config, template)
    for name in names:
        score_fn(benchmark.settings(name)[0])  # an unknown score is refused before the data are read
    tasks = [
        checked_lengths(
            checked_texts(
                benchmark.task(
                    name,
                    checks=checks,
                    tokens=lambda answer: len(template.target_ids(answer)),
                    train_size=train_size,
                    test_size=test_size,
                    held_out=held_out,
                    valid_size=valid_size,
                ),
                template,
                checks,
            ),
            template,
            checks,
            room,
        )
        for name in names
    ]
    return [checked_header(task, template) for task in tasks] if config.adapter.activated else tasks


def settle_targets(cfg: DictConfig, config: RunConfig) -> None:
    """Resolve ``adapter.targets`` to names of layers, and ``adapter.full`` by the method; both are part of the run key.

    If the model's architecture cannot be read, the setting stays unresolved: a finished run is reported without its model,
    and ``check_adaptable`` refuses an unfinished one.

    Args:
        cfg: composed; changed in place.
        config: its typed form; changed in place.
    """
    if method_class(cfg.method).traits.weights == "full":
        cfg.adapter.full = config.adapter.full = True
    targets = config.adapter.targets
    if not isinstance(targets, list):
        if config.model.source != "hub":  # every packaged model is a Llama
            targets = LLAMA_TARGETS[targets]
        elif _is_trained(cfg):
            with suppress(ConfigError):
                targets = resolve_targets(targets, skeleton(config.model, cache_folder(config)), config.model.name)
    cfg.adapter.targets = config.adapter.targets = targets


def check_adaptable(cfg: DictConfig, config: RunConfig) -> None:
    """Refuse a model or layers that cannot have adapters, before the run directory is made; no weights are loaded.

    Raises:
        ConfigError: the model or a layer cannot be used.
    """
    bones = skeleton(config.model, cache_folder(config))
    check_quantizable(bones, config.model.quantization, config.model.name, has_gpu=on_gpu(cfg))
    if _is_trained(cfg):
        resolve_targets(config.adapter.targets, bones, config.model.name)


def _is_trained(cfg: DictConfig) -> bool:
    traits = method_class(cfg.method).traits
    return traits.schedule != "frozen" and traits.trains


def build_method(
    cfg: DictConfig,
    config: RunConfig,
    template: PromptTemplate,
    dtype: str,
    mesh: DeviceMesh | None = None,
    rank: int = 0,
    ranks: int = 1,
    *,
    checkpointing: bool = False,
) -> Method:
    """Load the base model and build the method on it.

    Args:
        cfg: composed.
        config: its typed form.
        template: prompt style and tokenizer.
        dtype: ``bf16`` or ``fp32``.
        mesh: ranks between which the base model is sharded; None leaves it whole.
        rank: number of this process, from 0.
        ranks: number of processes that train the method together.
        checkpointing: whether decoder layers are computed again in the backward pass.
    """
    base = load_model(config.model, cache_folder(config), dtype)
    adapter = config.adapter
    if _is_trained(cfg):
        adapter = replace(adapter, targets=resolve_targets(adapter.targets, base, config.model.name))
    if mesh:
        shard(base, mesh)
    pool = ExpertPool(
        base,
        adapter,
        config.model.name,
        config.model.revision,
        template.header_ids(),
        place=model_place(config.model, cache_folder(config)),
    )
    if checkpointing:
        pool.checkpoint_gradients()
    optim = config.optim
    if optim.max_tokens_per_microbatch == "auto":  # all tasks are trained
        optim = replace(optim, max_tokens_per_microbatch=USUAL_TOKENS)
    setup = Setup(pool, template, optim, config.seed, rank, ranks)
    method = _method(cfg, setup)
    build_router(cfg, method)
    build_rule(cfg, method)
    return method


def _method(cfg: DictConfig, setup: Setup) -> Method:
    """The method that a run names, which updates the largest rows alone if ``optim.migu`` says so."""
    settings: Any = OmegaConf.to_container(cfg.method, resolve=True)
    make: partial[Method] = instantiate({**settings, "_partial_": True}, setup=setup)
    made = cast("type[Method]", make.func)
    return (with_largest_rows(made) if setup.optim.migu else made)(setup=setup, **make.keywords)


def expert_facts(config: RunConfig, template: PromptTemplate, dtype: str) -> dict[str, Any]:
    """The fields of ``expert.json`` that all experts of a run have in common."""
    kind = config.model.quantization
    return {
        "base_model": config.model.name,
        "base_revision": config.model.revision,
        **({} if kind == "none" else {"base_quantization": kind}),
        "dtype": dtype,
        "indicators": {"pos": config.indicators.pos, "neg": config.indicators.neg},
        "template_sha256": template.digest(),
    }


def response_cache_of(facts: dict[str, Any]) -> ResponseCache:
    """An empty cache of responses, for experts with these facts."""
    return ResponseCache(*(json.dumps(fact, sort_keys=True) for fact in facts.values()))
