"""One command from its configuration to ``results.json``: find the run directory, resume or report."""

import json
import logging
import signal
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import hydra.utils
import torch
import transformers
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from see_lightning.config import (
    ConfigError,
    RunConfig,
    bind,
    instantiate,
    method_name,
    numbers_config,
    run_key,
    validate,
)
from see_lightning.engine.build import build_method, build_tasks, build_template
from see_lightning.engine.grow import adopt, shorter_run
from see_lightning.engine.ledger import Ledger, LedgerError, dump, write_atomic
from see_lightning.engine.results import collect, commit, versions
from see_lightning.engine.run import ContinualRun, RunSettings
from see_lightning.engine.stages import plan_stages
from see_lightning.evaluation.report import matrix_csv, print_report, render_html
from see_lightning.methods.method import Method
from see_lightning.models.base import fast_dtype
from see_lightning.tasks.prompts import PromptTemplate


def run_directory(cfg: DictConfig, config: RunConfig) -> Path:
    """Where this experiment lives, however its command was spelt: ``runs/<order>/<method>/<key>/seed=<n>``."""
    return Path(config.paths.runs) / config.order.name / method_name(cfg) / run_key(cfg) / f"seed={config.seed}"


def launch(cfg: DictConfig, command: str) -> Path:
    """Run, resume or report one experiment, and print the path of its ``results.json`` as the last line.

    Args:
        cfg: the composed config.
        command: as it was typed, for the record.

    Raises:
        ConfigError: a setting cannot be used.
        DataError: the data cannot be used.
        LedgerError: the run directory cannot be used.
    """
    config = validate(cfg)
    directory = run_directory(cfg, config)
    path = directory / "results.json"
    if not path.exists():
        _quiet()
        with Ledger(directory) as ledger:
            _run(cfg, config, ledger, command)
    print_report(json.loads(path.read_text(encoding="utf-8")), Console())
    print(f"{directory / 'report.html'}\n{path}", flush=True)
    return path


def _run(cfg: DictConfig, config: RunConfig, ledger: Ledger, command: str) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    bind(cfg.method, "pool", "template", "optim", "run_seed")
    method: type[Method] = hydra.utils.get_class(cfg.method._target_)
    if cfg.trainer.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError("trainer=gpu, but torch finds no GPU here; use trainer=cpu.")
    template = build_template(config)
    tasks = build_tasks(cfg, config, template)
    for notice in (notice for task in tasks for notice in task.notices):
        console.print(notice)
    stages = plan_stages(method.schedule, tasks)
    data = {task.name: task.digest() for task in tasks}
    resolved = (
        fast_dtype(cfg.trainer.get("accelerator", "auto")) if config.model.dtype == "auto" else config.model.dtype
    )
    here = commit()
    about = ledger.about(
        {
            "command": command,
            "commits": [here],
            "versions": versions(),
            "dtype": resolved,
            "data": data,
            "numbers": numbers_config(cfg),
        }
    )
    if about["data"] != data:
        changed = ", ".join(task for task in data if about["data"].get(task) != data[task])
        raise LedgerError(
            f"{ledger.directory} was started on other data: {changed} changed since."
            f" Restore them, or move that folder away."
        )
    if here != about["commits"][-1]:
        console.print(f"going on at commit {here}; this run was begun at {about['commits'][-1]}")
        about["commits"].append(here)  # made final with the next commit of the ledger
    write_atomic(ledger.directory / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    if not ledger.content["stages"] and method.schedule == "sequential":
        other = shorter_run(ledger.directory, numbers_config(cfg))
        if other:
            console.print(f"growing: {adopt(ledger, stages, other)} finished stages taken over from {other}")
    if about["dtype"] != resolved:
        console.print(
            f"going on in {about['dtype']}, in which this run was begun; this machine's own choice is {resolved}"
        )
    run = ContinualRun(
        ledger=ledger,
        stages=stages,
        settings=RunSettings(
            seed=config.seed,
            epochs=config.optim.epochs,
            global_batch=config.optim.global_batch,
            grad_clip=config.optim.grad_clip,
            eval_batch=config.data.eval_batch,
            facts=expert_facts(config, template, about["dtype"]),
        ),
        decides=method.refuses,
        make_method=partial(build_method, cfg, config, template, about["dtype"]),
        make_trainer=instantiate(cfg.trainer),
        make_logger=partial(_logger, cfg.logger),
        console=console,
    )
    try:
        run.run()
    except SIGTERMException:
        console.print("stopped by SIGTERM; the same command goes on from here")
        raise SystemExit(128 + signal.SIGTERM) from None  # Lightning's own would look like success
    results = collect(ledger, stages, tasks, cfg, config, method)
    write_atomic(ledger.directory / "matrix.csv", matrix_csv(results))
    write_atomic(ledger.directory / "report.html", render_html(results))
    write_atomic(ledger.directory / "results.json", dump(results))  # last: that it is there means all is there


def expert_facts(config: RunConfig, template: PromptTemplate, dtype: str) -> dict[str, Any]:
    """What every expert's file says of its origin."""
    return {
        "base_model": config.model.name,
        "base_revision": config.model.revision,
        "dtype": dtype,
        "indicators": {"pos": config.indicators.pos, "neg": config.indicators.neg},
        "template_sha256": template.digest(),
    }


def _logger(node: DictConfig | None, folder: str) -> Any:
    return instantiate(node)(save_dir=folder) if node else False


def _quiet() -> None:
    """Leave out what Lightning says about machines and workers; what matters is told by the run itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    transformers.logging.disable_progress_bar()
    for message in (
        ".*does not have many workers.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*GPU available but not used.*",
        ".*srun.* command is available.*",
        ".*litlogger.*",
    ):
        warnings.filterwarnings("ignore", message=message)
