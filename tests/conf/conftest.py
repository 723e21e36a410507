"""Composing the configuration as the command line does."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from see_lightning.config.search_path import CONF, register


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    """The configuration that ``run.py`` would get with these overrides."""
    register()

    def make(*overrides: str, conf: Path = CONF) -> DictConfig:
        with initialize_config_dir(str(conf), version_base="1.3"):
            return compose("run", overrides=list(overrides))

    return make
