"""Composing of settings from the files of ``conf``, for commands that need a part of them."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from see_lightning.config.overrides import translate
from see_lightning.config.search_path import CONF, register, register_own_conf
from see_lightning.config.sources import combine_sources


def composed(words: Sequence[str]) -> DictConfig:
    """The configuration that a run would compose from these words; it may lack mandatory values.

    Args:
        words: settings as typed, such as ``router=density router.reject_above=3``.

    Raises:
        HydraException: there is no such option or setting.
        ConfigError: a word is no setting with a value.
    """
    register()
    register_own_conf()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("run", overrides=translate(words, several=False))
    combine_sources(cfg)
    return cfg
