"""Loads what a finished run has learned: its method, its tasks, and the cached responses of its experts."""

import torch
from omegaconf import DictConfig

from see_lightning.config.trust import NOTHING, Trust, load_config
from see_lightning.config.validation import validate
from see_lightning.engine.build import build_method, build_tasks, build_template, expert_facts, response_cache_of
from see_lightning.engine.find import check_model
from see_lightning.engine.ledger import REMEMBERED, Ledger, LedgerError
from see_lightning.engine.made_from import check_prompts, taken_up
from see_lightning.engine.router import restore_expert
from see_lightning.errors import listed
from see_lightning.evaluation.evaluate import put_back, remembered
from see_lightning.methods.method import ExpertMethod, Method
from see_lightning.tasks.datamodule import query_loader
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task, changed_data


def load_method(
    cfg: DictConfig, ledger: Ledger, dtype: str | None = None, device: torch.device | None = None
) -> Method:
    """Build a run's method, and load everything that it has learned.

    Args:
        cfg: of the run.
        ledger: of the run.
        dtype: of the base model; None takes the run's.
        device: of the model; None is the CPU.

    Raises:
        LedgerError: an expert's file is damaged, or the tokenizer or template has changed since training.
    """
    config = validate(cfg)
    check_model(ledger, config)
    about = ledger.facts()
    template = build_template(config, about.get("date"))
    check_prompts(ledger, template)
    method = build_method(cfg, config, template, dtype or about["dtype"])
    check_model(ledger, config)  # its files may have been downloaded just now
    method.pool.choose_reading()
    if device is not None:
        method.to(device)  # tensors of its state are loaded onto its device
    facts = expert_facts(config, template, about["dtype"])
    for name, stage in ledger.content["stages"].items():
        if stage["trained"] and stage["trained"].get("ended", True):
            folder = ledger.verified(name) / "expert"
            with taken_up(ledger, name, facts):
                restore_expert(method, name.partition("-")[2], folder)
    return method


def read_tasks(cfg: DictConfig, ledger: Ledger, template: PromptTemplate) -> list[Task]:
    """Read the tasks of a finished run, and check that their rows are those of the run.

    Args:
        cfg: of the run.
        ledger: of the run.
        template: of the run.

    Raises:
        LedgerError: the data have changed since the run.
        DataError: the data cannot be read.
    """
    tasks = build_tasks(cfg, validate(cfg), template)
    changed = changed_data({task.name: task.digest() for task in tasks}, ledger.content["about"]["data"])
    if changed:
        raise LedgerError(f"{ledger.directory} was run on other data: {listed(changed)} changed since. Restore them.")
    return tasks


def answer_everything(ledger: Ledger, trust: Trust = NOTHING) -> int:
    """Compute every expert's verdict on every test query of a finished run, and the answers of those that accept it.

    The base model answers every query. Cached responses are reused; new ones are added to the cache of the last stage.

    Args:
        ledger: of the run, held.
        trust: the code that its settings may run.

    Returns:
        The number of answers that were generated.

    Raises:
        LedgerError: the data, tokenizer or template have changed since the run, or a file is damaged.
        DataError: the data cannot be read.
    """
    cfg = load_config(ledger.directory / "config.yaml", trust)
    method = load_remembering(cfg, ledger)
    for task in read_tasks(cfg, ledger, method.template):
        loader = query_loader([task], method.template, batch_size=validate(cfg).data.eval_batch_size, tell_task=False)
        with torch.inference_mode():
            for queries in loader:
                method.decide(queries)
        keep_said(method, task, ledger)
    return method.counts["generations"]


def load_remembering(cfg: DictConfig, ledger: Ledger, *kinds: str) -> ExpertMethod:
    """Load a run's method together with the cached responses of its experts.

    Args:
        cfg: of the run.
        ledger: of the run.
        kinds: kinds of responses to load beside ``REMEMBERED``, see ``Ledger.remembered``.
    """
    method = load_method(cfg, ledger).eval()
    assert isinstance(method, ExpertMethod)
    method.response_cache = response_cache_of(
        expert_facts(validate(cfg), method.template, ledger.content["about"]["dtype"])
    )
    for stage in ledger.content["stages"]:
        for kind in (REMEMBERED, *kinds):
            put_back(method.response_cache, ledger.remembered(stage, kind))
    return method


def keep_said(method: ExpertMethod, task: Task, ledger: Ledger, kind: str = REMEMBERED) -> None:
    """Add the new responses to one task's test queries to the cache of the run's last stage.

    Args:
        method: from ``load_remembering``; its cache has no new entries afterwards.
        task: with the queries that were answered.
        ledger: of the run, held.
        kind: of the responses, see ``Ledger.remembered``.
    """
    assert method.response_cache is not None
    entries, method.response_cache.new = method.response_cache.new, []
    if entries:
        *_, last = ledger.content["stages"]
        ledger.note_answers(last, task.name, {kind: remembered(entries, [task])[task.name]}, {})
        ledger.commit()
