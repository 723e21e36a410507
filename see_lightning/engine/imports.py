"""The folders of ``order.experts``, from which experts are imported: their places, and whether a run can use them."""

import os
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from see_lightning.adapters.files import CONFIG
from see_lightning.adapters.foreign import read_foreign
from see_lightning.adapters.targets import resolve_targets, target_layers
from see_lightning.config.schema import RunConfig
from see_lightning.engine.origin import check_never_refusing, gives_verdicts
from see_lightning.engine.router import router_class
from see_lightning.errors import ConfigError
from see_lightning.methods.lookup import method_class
from see_lightning.models.base import skeleton


def settle_experts(cfg: DictConfig, config: RunConfig) -> None:
    """Make the folders of ``order.experts`` absolute, so that they are found from every working directory.

    Args:
        cfg: composed; changed in place.
        config: its typed form; changed in place.
    """
    experts = {
        task: value if origin.folder is None else os.path.abspath(os.path.expanduser(origin.folder))
        for (task, origin), value in zip(
            config.order.origins().items(), (config.order.experts or {}).values(), strict=True
        )
    }
    if experts:
        cfg.order.experts = config.order.experts = experts


def check_imports(cfg: DictConfig, config: RunConfig, final: Collection[str]) -> None:
    """Refuse adapters that cannot be experts of a run, before its directory is made; no model is loaded.

    Args:
        cfg: composed.
        config: its typed form.
        final: tasks whose expert was imported by an earlier start, so that its folder is not needed any more.

    Raises:
        ConfigError: a folder holds no adapter that this run can use.
    """
    origins = config.order.origins().items()
    folders = {task: Path(one.folder) for task, one in origins if one.folder is not None and task not in final}
    if not folders:
        return
    bones = skeleton(config.model, config.paths.cache_folder())
    layers = target_layers(bones, resolve_targets(config.adapter.targets, bones, config.model.name))
    method, router, words = method_class(cfg.method), router_class(cfg), asdict(config.indicators)
    for task, folder in folders.items():
        if not (folder / CONFIG).is_file():
            raise ConfigError(
                f"order.experts.{task}={folder} has no {CONFIG}; give the folder of a LoRA adapter that PEFT has saved (where"
                f" it was moved to another place, import it again from there), none, or settings such as {{epochs: 5}}."
            )
        read_foreign(folder, layers, config.adapter, None)
        if method.traits.learns_refusals and not gives_verdicts(folder, words):
            check_never_refusing(folder, router, second_chance=cfg.method.get("second_chance") == "on")
