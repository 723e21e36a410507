"""A new run that differs from a finished one in a few settings and takes over its experts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from see_lightning.config.identity import method_name, numbers_config
from see_lightning.config.trust import Trust, load_config, refuse_code
from see_lightning.config.validation import validate
from see_lightning.engine.finished import finished_results
from see_lightning.engine.latest import find_run
from see_lightning.engine.ledger import Ledger
from see_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run from which another one is made.

    Args:
        directory: of the run, without links.
        cfg: its settings; those of the new run are set in them.
        about: of its ledger.
        results: content of its ``results.json``.
    """

    directory: Path
    cfg: DictConfig
    about: Mapping[str, Any]
    results: Mapping[str, Any]


def open_finished(run_dir: Path, why: str, trust: Trust) -> Finished:
    """A finished run and its settings.

    Args:
        run_dir: of the run.
        why: the reason for which it must be finished, for the refusal.
        trust: the code named in the run's settings that may run.

    Raises:
        Refusal: it is not finished, or its settings cannot be read.
    """
    run_dir = find_run(run_dir)
    results = finished_results(run_dir, why)
    run_dir = run_dir.resolve()
    cfg = load_config(run_dir / "config.yaml", trust)
    return Finished(run_dir, cfg, Ledger(run_dir).read().content["about"], results)


def check_place(run: Finished, cure: str) -> None:
    """Refuse a run that does not lie where its settings place it: a new run could not find its experts.

    Args:
        run: the finished run.
        cure: what else the user may do.

    Raises:
        ConfigError: it lies elsewhere, or is of a version that kept no settings in the ledger.
    """
    cfg, directory = run.cfg, run.directory
    place = (cfg.order.name, method_name(cfg), directory.parent.name, f"seed={cfg.seed}")
    if directory.parts[-4:] != place or "numbers" not in run.about:
        raise ConfigError(
            f"{directory} lies elsewhere than a run of these settings does, or is older than this; its experts would not be"
            f" found. Let it lie at .../{'/'.join(place)}, or {cure}."
        )


def with_its_evaluation(run: Finished, trust: Trust) -> DictConfig:
    """The run's settings, for a new run beside it with the ``ood`` queries and variants of its last evaluation."""
    cfg = run.cfg
    cfg.paths.runs = str(run.directory.parents[3])  # a run may have been moved since
    # Merged, since a plain assignment would have to be typed.
    cfg.ood, further = None, {name: run.results.get(name, {}).get("asked") for name in ("ood", "variants")}
    refuse_code(run.directory / "results.json", further, trust)
    return cast("DictConfig", OmegaConf.merge(cfg, {name: value for name, value in further.items() if value}))


def check_same_training(run: Finished, cfg: DictConfig, cure: str, data_cure: str) -> None:
    """Refuse settings or rows that would train other experts than the finished run's.

    Args:
        run: the finished run.
        cfg: settings of the new one.
        cure: what else the user may do where the settings differ.
        data_cure: likewise where the rows differ: an ending of the message.

    Raises:
        ConfigError: other experts would be trained.
    """
    # Late, because these import torch, which takes longer than a refusal should.
    from see_lightning.engine.build import build_tasks, build_template
    from see_lightning.engine.grow import trains_alike, without_tasks
    from see_lightning.tasks.task import changed_data

    config = validate(cfg)
    learned = run.about["numbers"]
    if not trains_alike(learned, without_tasks(numbers_config(cfg), len(learned["order"]["tasks"]))):
        raise ConfigError(
            f"{run.directory} was trained by an earlier version, with other general instructions or settings than this one"
            f" would train with, so {cure}."
        )
    tasks = build_tasks(cfg, config, build_template(config, run.about.get("date")))
    learned_from = run.about["data"]
    digests = {task.name: task.digest() for task in tasks if task.name in learned_from}
    if changed := changed_data(digests, learned_from):
        raise ConfigError(f"{run.directory} was trained on rows of {', '.join(changed)} that {data_cure}.")
