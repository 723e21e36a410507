"""Test queries answered by a vLLM server: which runs may use it, how it gets the experts, and whether it may be trusted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from see_lightning.config.evaluate import EvaluateConfig
from see_lightning.config.identity import method_name
from see_lightning.config.schema import RunConfig
from see_lightning.engine.build import response_cache_of
from see_lightning.engine.distributed import processes
from see_lightning.engine.router import router_class
from see_lightning.errors import ConfigError, Refusal
from see_lightning.inference.vllm import VllmServer
from see_lightning.methods.lookup import method_class
from see_lightning.methods.method import Answer, ExpertMethod
from see_lightning.routing.remote_responses import RemoteResponses
from see_lightning.routing.router import Router
from see_lightning.tasks.datamodule import query_loader
from see_lightning.tasks.task import Task


def check_engine(cfg: DictConfig, config: RunConfig) -> None:
    """Refuse ``evaluate.engine=vllm`` for experts that vLLM does not run.

    Raises:
        ConfigError: see above.
    """
    if config.evaluate.engine != "vllm":
        return
    fault = None
    if not method_class(cfg.method).trains_apart(cfg.method):
        fault = (
            f"the experts of method={method_name(cfg)} with these settings depend on each other or are none; it is for"
            f" method=see without reuse and warm_start, stl and any_ssr"
        )
    elif router_class(cfg).adapters is not Router.adapters:
        fault = "the router that was chosen sums several adapters, which no request names; choose another one"
    elif processes(cfg) > 1:
        fault = "the check compares with one process; choose trainer.devices=1"
    elif config.adapter.activated:
        fault = "vLLM would apply activated experts to the whole prompt; choose adapter=lora"
    elif config.adapter.quantization != "none" or config.model.quantization != "none":
        fault = "the server has no such weights; leave out adapter.quantization and model.quantization"
    if fault:
        raise ConfigError(f"evaluate.engine=vllm loads each expert as a plain LoRA adapter: {fault}.")


class RemoteExperts:
    """The connection of a run to its server.

    Args:
        config: of the engine.
        method: of the run, with its experts.
        folder: gives the PEFT folder of an expert by its name.
    """

    def __init__(self, config: EvaluateConfig, method: ExpertMethod, folder: Callable[[str], Path]) -> None:
        self.config, self.method, self.folder = config, method, folder
        self.server = VllmServer(config.url, list(method.eos_ids()))
        self.responses = RemoteResponses(self.server, self.load, method.template.text, method.counts)

    def load(self, adapter: str | None) -> str | None:
        """The name of an adapter on the server, which tells its weights, since the server caches by name."""
        if adapter is None:
            return None
        name = f"{adapter}-{self.method.pool.digest(adapter)[:12]}"
        self.server.add(name, self.folder(adapter))
        return name

    def check(self, tasks: Sequence[Task], facts: Mapping[str, Any], *, batch_size: int) -> dict[str, int]:
        """Let this process and the server answer the first test queries of tasks, and compare.

        Args:
            tasks: with test queries, the newest expert's first: half of the queries are of this one.
            facts: of the run's experts, see ``build.expert_facts``.
            batch_size: queries that are decoded together.

        Returns:
            How many queries were compared (``checked``), went to another expert, and had another text.

        Raises:
            Refusal: too many went to another expert, or had another text.
        """
        local, remote = (self._answers(tasks, facts, batch_size, uses_server=uses) for uses in (False, True))
        pairs = list(zip(local, remote, strict=True))
        other = sum(ours.expert != theirs.expert for ours, theirs in pairs)
        texts = sum(ours.text != theirs.text for ours, theirs in pairs)
        for number, what, name, most in (
            (other, "sends {} queries to another expert than", "tolerance", self.config.tolerance),
            # Where this process chooses the expert, texts alone tell whether its adapter is applied.
            (texts, "answers {} queries by another text than", "text_tolerance", self.config.text_tolerance),
        ):
            if number > most * len(pairs):
                raise Refusal(
                    f"{self.config.url} {what.format(f'{number} of {len(pairs)}')} this process, more than"
                    f" evaluate.{name}={most:g} allows. Does it serve this base model, in this precision, and does it apply"
                    f" the adapters? evaluate.engine=local answers without it."
                )
        return {"checked": len(pairs), "other_expert": other, "other_text": texts}

    def _answers(
        self, tasks: Sequence[Task], facts: Mapping[str, Any], batch_size: int, *, uses_server: bool
    ) -> list[Answer]:
        """Answers to the first test queries of each task, from an empty cache."""
        method, own = self.method, -(-self.config.check // 2)
        each = -(-(self.config.check - own) // max(1, len(tasks) - 1))
        some = [replace(task, test=task.test[: each if place else own]) for place, task in enumerate(tasks)]
        kept, counts = method.response_cache, dict(method.counts)
        method.response_cache = response_cache_of(dict(facts))
        method.response_cache.remote = self.responses if uses_server else None
        loader = query_loader(some, method.template, batch_size=batch_size, tell_task=method.needs_task_id)
        try:
            with torch.inference_mode():
                found = [answer for queries in loader for answer in method.answer(queries)]
        finally:
            method.response_cache = kept
            method.counts.clear()
            method.counts.update(counts)
        return sorted(found, key=lambda answer: int(answer.id))[: self.config.check]


def engine_notices(results: Mapping[str, Any]) -> list[str]:
    """How a server's answers compare with this process's, in words, for the readers of the numbers."""
    stages = results.get("engine", {}).get("stages", {}).values()
    if not stages:
        return []
    checked, expert, text = (sum(one[name] for one in stages) for name in ("checked", "other_expert", "other_text"))
    return [
        f"test queries were answered by vLLM at {results['engine']['url']}; of {checked} that this process answered too,"
        f" {expert} went to another expert and {text} have another text."
    ]
