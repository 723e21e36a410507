"""A run command for a finished run: whether nothing is left to do, and the checks before its report is printed again."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from see_lightning.config.schema import PARAPHRASED, RunConfig
from see_lightning.engine.build import build_template
from see_lightning.engine.contents import ood_digests, ood_queries
from see_lightning.engine.find import Found
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.made_from import check_prompts
from see_lightning.engine.preemption import StopSignal
from see_lightning.engine.relay import notice
from see_lightning.engine.results import paraphrases, texts_of
from see_lightning.engine.start import is_noted, note_contents, note_places
from see_lightning.engine.tracker import make_tracker
from see_lightning.errors import ConfigError, Refusal, listed
from see_lightning.reporting.runs import read_results


def is_finished(cfg: DictConfig, path: Path) -> bool:
    """Whether a run is finished, with answers to the ``ood`` tasks and variants that the command names.

    Args:
        cfg: composed.
        path: of the run's ``results.json``, which may be missing.
    """
    if not path.exists():
        return False
    results = read_results(path)
    variants, wanted = results.get("variants", {}), set(cfg.get("variants") or ())
    return (
        (not cfg.get("ood") or _is_ood_answered(cfg, results.get("ood", {})))
        and wanted <= set(variants.get("asked", ()))
        and all(variants[texts_of(name)] == paraphrases(cfg, name) for name in wanted.intersection(PARAPHRASED))
    )


def _is_ood_answered(cfg: DictConfig, answered: Mapping[str, Any]) -> bool:
    """Whether a run has answers to these ``ood`` tasks; for tasks that cannot be read now, only the settings are compared."""
    asked: Any = OmegaConf.to_container(cfg.ood, resolve=True)
    if asked["variants"] and "input_only" not in answered:
        return False
    if "digests" not in answered:
        return bool({"variants": [], **answered.get("asked", {})} == asked)
    if ood_queries(answered["asked"]) != ood_queries(asked):
        return False
    now, then = ood_digests(cfg), answered["digests"]
    unread = sorted(task for task in then if now.get(task) is None)
    if unread:
        notice(f"ood tasks that the run answered cannot be read, so they were not compared: {listed(unread)}")
    return all(then.get(task) == digest for task, digest in now.items() if digest is not None)


def check_template(config: RunConfig, ledger: Ledger) -> None:
    """Refuse to report a run whose chat template or tokenizer has changed since.

    Args:
        config: of the command.
        ledger: of the run, read.

    Raises:
        LedgerError: template or tokenizer has changed.
    """
    try:
        template = build_template(config, ledger.content["about"].get("date"))
    except ConfigError as error:  # the report is printed nevertheless
        notice(f"template and tokenizer were not compared with those of the run: {error}")
    else:
        check_prompts(ledger, template)


def bring_up_to_date(cfg: DictConfig, found: Found) -> None:
    """Add facts that earlier versions did not record to a finished run, and report it to a sweep.

    Args:
        cfg: composed.
        found: directory and inputs of the run.
    """
    for note in (*found.notes, *found.left_out):
        notice(note)
    if not found.notes and not is_noted(found.directory, cfg):
        with suppress(OSError, Refusal), Ledger(found.directory) as ledger:  # of a run of an earlier version
            note_contents(ledger, found)
            note_places(ledger, cfg)
    if "WANDB_SWEEP_ID" in os.environ:
        _track_again(cfg, found.directory)


def _track_again(cfg: DictConfig, directory: Path) -> None:
    """Report a run that was finished before the sweep began: the sweep waits for its metric."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    with make_tracker(cfg.logger) as tracker:
        tracker.open(directory, settings, StopSignal())
        tracker.finish(read_results(directory / "results.json"), directory / "report.html")
