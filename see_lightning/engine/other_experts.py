"""A new run from a finished one, in which one expert is left out, trained again, or imported."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from see_lightning.config.checks import one_of
from see_lightning.config.origins import NONE, read_origins
from see_lightning.config.trust import NOTHING, Trust
from see_lightning.config.validation import validate
from see_lightning.engine.build import build_tasks, build_template
from see_lightning.engine.changed_run import (
    Finished,
    check_place,
    check_same_training,
    open_finished,
    with_its_evaluation,
)
from see_lightning.engine.launch import launch
from see_lightning.errors import ConfigError, listed, nearest
from see_lightning.tasks.task import changed_data

WHY = "single experts are changed when all are trained"
QUANTIZE_CURE = "train again from the start, with adapter.quantization"
CURE = "train again from the start, with order.experts"


def remove_expert(run_dir: Path, task: str, trust: Trust = NOTHING) -> Path:
    """Make a run without one expert; other experts or the base model answer its task's queries.

    Args:
        run_dir: of a finished run, which is not changed.
        task: the expert's.
        trust: the code named in the run's settings that may run.

    Returns:
        The path of the new run's ``results.json``.

    Raises:
        Refusal: the run is not finished, its method's experts depend on each other, its data have changed, or there is no
            such expert.
    """
    run = open_finished(run_dir, WHY, trust)
    _check_task(run, task)
    experts = _experts(run)
    if experts.get(task) == NONE:
        raise ConfigError(f"{run.directory} has no expert of {task} any more.")
    left = [name for name in run.cfg.order.tasks if name != task and experts.get(name) != NONE]
    if not left:
        raise ConfigError(
            f"{task} is the only expert of {run.directory}; without it, only the base model would answer."
        )
    return _changed(run, task, NONE, trust)


def retrain_expert(run_dir: Path, task: str, training: Mapping[str, float], trust: Trust = NOTHING) -> Path:
    """Make a run in which one expert is trained again.

    Args:
        run_dir: of a finished run, which is not changed.
        task: the expert's.
        training: its own ``lr``, ``epochs`` and ``seed``; with the run's values it is trained as the others. Empty if rows of
            the task have changed: then it and the experts of all later tasks are trained with the run's settings.
        trust: the code named in the run's settings that may run.

    Returns:
        The path of the new run's ``results.json``.

    Raises:
        Refusal: as of ``remove_expert``; or nothing would be trained otherwise.
    """
    run = open_finished(run_dir, WHY, trust)
    _check_task(run, task)
    if training:
        usual = {"lr": run.cfg.optim.lr, "epochs": run.cfg.optim.epochs, "seed": run.cfg.seed}
        own = {name: value for name, value in training.items() if value != usual[name]}
        if (own or None) == _experts(run).get(task):
            raise ConfigError(
                f"the expert of {task} would be the same: it was trained with "
                + ", ".join(f"{name}={value:g}" for name, value in training.items())
                + ". Give another value."
            )
        return _changed(run, task, own or None, trust)
    check_place(run, CURE)
    cfg = with_its_evaluation(run, trust)
    config = validate(cfg)
    tasks = build_tasks(cfg, config, build_template(config, run.about.get("date")))
    if task not in changed_data(run.about["data"], {one.name: one.digest() for one in tasks}):
        raise ConfigError(
            f"nothing has changed: the expert of {task} would be the same. Give --lr, --epochs or --seed, or change its"
            f" training rows first."
        )
    return launch(cfg, run.about["command"])


def import_expert(run_dir: Path, task: str, folder: str, trust: Trust = NOTHING) -> Path:
    """Make a run in which a PEFT folder's adapter is the expert of a task.

    Args:
        run_dir: of a finished run, which is not changed.
        task: of the run, or a further one of its data, which then comes last.
        folder: with a LoRA adapter.
        trust: the code named in the run's settings that may run.

    Returns:
        The path of the new run's ``results.json``.

    Raises:
        Refusal: as of ``remove_expert``; or the folder holds no adapter that this run can use.
    """
    run = open_finished(run_dir, WHY, trust)
    if task not in run.cfg.order.tasks:
        run.cfg.order.tasks = [*run.cfg.order.tasks, task]
    return _changed(run, task, str(Path(folder).expanduser().resolve()), trust)


def quantize_experts(run_dir: Path, kind: str, trust: Trust = NOTHING) -> Path:
    """Make a run whose experts are stored in fewer bits.

    Args:
        run_dir: of a finished run, which is not changed.
        kind: ``int8`` or ``nf4``.
        trust: the code named in the run's settings that may run.

    Returns:
        The path of the new run's ``results.json``.

    Raises:
        Refusal: as of ``remove_expert``; or its experts are quantised already.
    """
    one_of("the format of experts", kind, ("int8", "nf4"))
    run = open_finished(run_dir, WHY, trust)
    if run.cfg.adapter.quantization != "none":
        raise ConfigError(
            f"the experts of {run.directory} are stored as {run.cfg.adapter.quantization} already; quantise the run from"
            f" which it was made."
        )
    check_place(run, QUANTIZE_CURE)
    run.cfg.adapter.quantization = kind
    cfg = with_its_evaluation(run, trust)
    check_same_training(
        run,
        cfg,
        f"its experts cannot be quantised: {QUANTIZE_CURE}",
        f"have changed since. Restore them, or {QUANTIZE_CURE}",
    )
    return launch(cfg, shlex.join([*shlex.split(run.about["command"]), f"adapter.quantization={kind}"]))


def _check_task(run: Finished, task: str) -> None:
    """Refuse a task that the run has not learned."""
    tasks = list(run.cfg.order.tasks)
    if task not in tasks:
        raise ConfigError(f"{run.directory} has no task {task!r}.{nearest(task, tasks)} There are: {listed(tasks)}.")


def _changed(run: Finished, task: str, value: Any, trust: Trust) -> Path:
    """The run with another value for a task in ``order.experts``; None takes the task's value away."""
    check_place(run, CURE)
    experts = {name: one for name, one in {**_experts(run), task: value}.items() if one is not None}
    read_origins(experts, list(run.cfg.order.tasks))
    run.cfg.order.experts = experts
    cfg = with_its_evaluation(run, trust)
    check_same_training(
        run, cfg, f"a single expert cannot be changed: {CURE}", f"have changed since. Restore them, or {CURE}"
    )
    given = {"order.experts": _text(experts)}
    if list(cfg.order.tasks) != run.about["numbers"]["order"]["tasks"]:
        given["order.tasks"] = f"[{','.join(cfg.order.tasks)}]"
    return launch(
        cfg, shlex.join([*shlex.split(run.about["command"]), *(f"{key}={text}" for key, text in given.items())])
    )


def _experts(run: Finished) -> dict[str, Any]:
    """The run's own ``order.experts``."""
    found: Any = OmegaConf.to_container(OmegaConf.create({"experts": run.cfg.order.experts}))
    return dict(found["experts"] or {})


def _text(value: Any) -> str:
    """A value as Hydra's command line takes it.

    >>> _text({"sea": "none", "sky": {"epochs": 5, "lr": 1e-4}, "ice": "my adapters (v=2)"})
    "{sea:none,sky:{epochs:5,lr:0.0001},ice:'my adapters (v=2)'}"
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_text(one)}" for name, one in value.items()) + "}"
    text = str(value)
    return text if re.fullmatch(r"[\w./-]+", text) else "'" + text.replace("'", "\\'") + "'"
