"""Thresholds for the experts of a finished run: ``see-lightning calibrate RUN_DIR``."""

import argparse
from pathlib import Path

from omegaconf import DictConfig

from see_lightning.cli.command import Parser, command
from see_lightning.config.checks import TRAIN, check_calibrate_on, within
from see_lightning.config.effects import uses_thresholds
from see_lightning.config.identity import method_name
from see_lightning.config.trust import NOTHING, Trust, add_trust, trust_in
from see_lightning.engine.changed_run import check_place, check_same_training, open_finished, with_its_evaluation
from see_lightning.errors import ConfigError

DESCRIPTION = """\
Set a threshold for each expert of a run on examples of its task that it was not trained on: a positive verdict counts only
if its log-odds are as high as for most of these examples. A query that no expert accepts so reaches the base model."""
EPILOG = """\
Trains nothing and leaves RUN_DIR as it is. Writes a new run beside it, the same that method.calibrate_on=N would have made,
with its own results.json, whose path is the last line. The ood queries and variants that RUN_DIR was last evaluated on are
evaluated there too."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a run, and the settings of its thresholds."""
    parser.add_run_dir()
    parser.add_argument(
        "--calibrate-on",
        dest="on",
        type=_rows_or_train,
        default=60,
        metavar="N",
        help="held-out examples of each task (default 60); train: the experts' training rows, negatives included",
    )
    parser.add_argument(
        "--target-recall",
        type=float,
        default=0.98,
        metavar="SHARE",
        help="share of own examples above the threshold (default 0.98)",
    )
    parser.add_argument(
        "--ood-examples",
        type=int,
        default=0,
        metavar="N",
        help="general instructions that set a threshold together with own examples (default 0: own examples alone)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        metavar="SHARE",
        help="share of the gap to their log-odds, or to those of negatives, by which it is lowered (default 0.25)",
    )
    add_trust(parser)


@command("calibrate", DESCRIPTION, add_arguments, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Write a new run with thresholds from a finished run."""
    calibrate(
        given.run_dir,
        on=given.on,
        target_recall=given.target_recall,
        ood_examples=given.ood_examples,
        margin=given.margin,
        trust=trust_in(given),
    )


def _rows_or_train(word: str) -> int | str:
    """Parse ``--calibrate-on``: a number of rows or ``train``."""
    if word == TRAIN or word.isdecimal():
        return word if word == TRAIN else int(word)
    raise argparse.ArgumentTypeError(f"a number of examples of each task is wanted, or {TRAIN}; got {word!r}")


def calibrate(
    run_dir: Path,
    *,
    on: int | str,
    target_recall: float,
    ood_examples: int = 0,
    margin: float | None = None,
    trust: Trust = NOTHING,
) -> Path:
    """Set thresholds for a finished run's experts, and evaluate it with them.

    Args:
        run_dir: of the run.
        on: held-out examples of each task, at least 1; or ``train``.
        target_recall: share of own examples at or above the threshold, 0.01..1.
        ood_examples: general instructions that set a threshold together with own examples; no expert was trained on them.
        margin: share of the gap to their log-odds, or with ``train`` to those of negatives, by which the threshold is
            lowered, 0..1; None is 0.25.
        trust: the code named in the run's settings that may run.

    Returns:
        The path of the new run's ``results.json``.

    Raises:
        Refusal: the run does not lie where its settings place it, its method has no thresholds, or its tasks have too few
            examples.
    """
    _check_numbers(on, target_recall, ood_examples, margin)
    run = open_finished(run_dir, "thresholds are set for the experts of all tasks", trust)
    again = f"train again with method.calibrate_on={on}"
    _check_thresholds(run.directory, run.cfg, again)
    check_place(run, again)
    settings = _settings(run.cfg, on, target_recall, ood_examples, margin)
    for name, value in settings.items():
        run.cfg.method[name] = value
    cfg = with_its_evaluation(run, trust)
    check_same_training(
        run,
        cfg,
        f"its thresholds cannot be set alone. {again.capitalize()}",
        f"{on} held out would need, or its data changed since. Give a smaller --calibrate-on, or {again}",
    )
    from see_lightning.engine.launch import launch  # late: it imports torch, which takes longer than a refusal should

    return launch(
        cfg, " ".join([run.about["command"], *(f"method.{name}={value}" for name, value in settings.items())])
    )


def _check_numbers(on: int | str, target_recall: float, ood_examples: int, margin: float | None) -> None:
    """Refuse numbers out of range before any file is read."""
    check_calibrate_on("--calibrate-on", on)
    if not isinstance(on, str):
        within("--calibrate-on", on, 1)
    within("--target-recall", target_recall, 0.01, 1)
    within("--ood-examples", ood_examples, 0)
    within("--margin", margin, 0, 1)


def _settings(
    cfg: DictConfig, on: int | str, target_recall: float, ood_examples: int, margin: float | None
) -> dict[str, float | str]:
    """The settings of the method that differ from the run's own."""
    settings: dict[str, float | str] = {"calibrate_on": on, "target_recall": target_recall}
    if on == TRAIN or ood_examples or cfg.method.get("ood_examples"):
        return {**settings, "ood_examples": ood_examples, "margin": 0.25 if margin is None else margin}
    if margin is not None:
        raise ConfigError(
            f"--margin={margin:g} has no effect without --ood-examples N or --calibrate-on {TRAIN}; leave it out."
        )
    return settings


def _check_thresholds(run_dir: Path, cfg: DictConfig, again: str) -> None:
    """Refuse a run of a method without thresholds, or one that was not routed by them.

    Args:
        run_dir: of the run.
        cfg: its settings.
        again: the advice to train again.
    """
    if "calibrate_on" not in cfg.method:
        raise ConfigError(
            f"{run_dir} is a run of {method_name(cfg)}, whose models have no thresholds; give one of see."
        )
    if cfg.method.get("reuse") == "accept":
        raise ConfigError(
            f"{run_dir} chose by its thresholds which tasks get an expert, so other thresholds need another training;"
            f" {again}."
        )
    if not uses_thresholds(cfg):
        raise ConfigError(
            f"{run_dir} was routed by {cfg.router['_target_']}, which uses no thresholds; give a run without router=, or with"
            f" router=propose."
        )
