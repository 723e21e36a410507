"""Types a composed configuration and checks rules that types cannot express."""

import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from see_lightning.config.former_names import with_current_names
from see_lightning.config.names import called_here
from see_lightning.config.schema import RunConfig
from see_lightning.errors import ConfigError, nearest

# Arguments of the Trainer that the loop over tasks sets itself, or that would change the number of examples of a step.
TRAINER_SET_BY_RUN = {
    "accumulate_grad_batches",
    "barebones",
    "callbacks",
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "fast_dev_run",
    "gradient_clip_val",
    "limit_predict_batches",
    "log_every_n_steps",
    "logger",
    "max_epochs",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "num_sanity_val_steps",
    "overfit_batches",
    "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler",
}


FSDP_BASE = "fsdp_base"  # each rank trains all of the experts and holds a part of the base model
STRATEGIES = ("auto", "ddp", FSDP_BASE)


def validate(cfg: DictConfig) -> RunConfig:
    """Convert a composed config to the schema's types and check every range.

    Args:
        cfg: composed. Its ``ood`` becomes null if it has no source of queries: with ``ood=none`` the other settings that an
            experiment makes of it have no effect.

    Raises:
        ConfigError: a value is out of range, or a mandatory one is missing.
    """
    if cfg.ood is not None and cfg.ood.get("sources") == {}:
        cfg.ood = None
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]} is not set; give {missing[0]}=... on the command line.")
    _refuse_endless(OmegaConf.to_container(cfg, resolve=True), "")
    typed = OmegaConf.to_object(cfg)
    assert isinstance(typed, RunConfig)
    for name in ("devices", "num_nodes"):
        number = typed.trainer.get(name, 1)
        if (name, number) != ("devices", "auto") and not (isinstance(number, int) and number > 0):
            raise ConfigError(f"trainer.{name} must be a whole number, at least 1; got {number!r}.")
    strategy = typed.trainer.get("strategy", "auto")
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"trainer.strategy must be one of {', '.join(STRATEGIES)}; got {strategy!r}."
            f"{nearest(str(strategy), STRATEGIES)} The run starts its ranks and distributes examples and queries itself,"
            f" and every rank holds all experts whole; other strategies work differently."
        )
    taken = sorted(TRAINER_SET_BY_RUN & set(typed.trainer))
    if taken:
        ours = called_here(taken[0])
        raise ConfigError(f"trainer.{taken[0]} is set by the run itself.{ours or ' See optim, data and logger.'}")
    if typed.trainer.get("limit_train_batches") == 0:
        raise ConfigError("trainer.limit_train_batches=0 trains nothing; give the steps of an epoch, or method=base.")
    _refuse_additions(typed, "")
    return typed


def load_composed(path: Path) -> DictConfig:
    """A composed configuration that another process of this run saved."""
    return typed(cast("DictConfig", OmegaConf.load(path)))


def typed(settings: DictConfig) -> DictConfig:
    """Resolved settings with their types; of this version or an earlier one."""
    plain: Any = OmegaConf.to_container(settings, resolve=False)
    cfg = OmegaConf.merge(OmegaConf.structured(RunConfig), with_current_names(plain))
    assert isinstance(cfg, DictConfig)
    return cfg


#: Spellings of infinity that YAML reads as a number in a file, and Hydra as a text on the command line.
_ENDLESS = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)


def _refuse_endless(value: Any, name: str) -> None:
    """Refuse ``inf`` and ``nan``, which no setting can use and most range checks do not catch."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _refuse_endless(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for part in value:
            _refuse_endless(part, name)
    elif (isinstance(value, float) and not math.isfinite(value)) or (
        isinstance(value, str) and _ENDLESS.fullmatch(value)
    ):
        raise ConfigError(f"{name} must be a finite number; got {value}.")


def _refuse_additions(typed: Any, prefix: str) -> None:
    """Refuse settings that Hydra's ``+key=value`` added but the schema does not have, since nothing would read them."""
    known = {field.name for field in fields(typed)}
    for key, value in vars(typed).items():
        if key not in known:
            raise ConfigError(f"there is no setting {prefix + key!r}.{called_here(key) or nearest(key, known)}")
        if is_dataclass(value):
            _refuse_additions(value, f"{prefix}{key}.")
