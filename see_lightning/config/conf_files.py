"""Configuration files of users, as Hydra reads them, in the encodings that their editors write."""

import functools
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import file_config_source
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

from see_lightning.config.former_names import SETTINGS, current_value, with_current_names
from see_lightning.files.text import read_text


class FileConfigSource(file_config_source.FileConfigSource):
    """Replaces Hydra's class of that name, which does not see ``# @package`` in a file that begins with a byte order mark."""

    def load_config(self, config_path: str) -> ConfigResult:
        """A file's settings, and the directives in its first lines, such as ``# @package``."""
        path = Path(self.path) / self._normalize_file_name(config_path)
        if not path.is_file():
            return super().load_config(config_path)  # raises Hydra's error for a missing file
        text = _with_current_references(read_text(path))
        header = ConfigSource._get_header_dict(text[:512])
        package = header.get("package") or config_path.rpartition("/")[0]
        return ConfigResult(
            provider=self.provider,
            path=f"{self.scheme()}://{self.path}",
            config=OmegaConf.create(_content(text, package)),
            header=header,
        )


@functools.cache  # parsing takes most of the time, and the jobs of a sweep read the same files
def _content(text: str, package: str) -> Any:
    """What a file holds, by today's names."""
    config = with_todays_names(OmegaConf.create(text), package)
    return OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config


def _with_current_references(text: str) -> str:
    """A file in which references to settings, ``${data.resample}``, name them as they are named today."""
    for new, old in SETTINGS.items():
        text = text.replace(f"${{{old}}}", f"${{{new}}}")
    return text


def with_todays_names(config: Any, package: str) -> Any:
    """The settings of a file by today's names, and the methods in its defaults list.

    Args:
        config: content of the file.
        package: where its settings belong: a group, or ``_global_`` or nothing for the root.
    """
    from see_lightning.config.search_path import CONF  # late: it registers this module's class

    if not isinstance(config, DictConfig):
        return config
    group = "" if package == "_global_" else package.partition("/")[0]
    plain: Any = OmegaConf.to_container(config, resolve=False)
    if isinstance(plain.get("defaults"), list):
        plain["defaults"] = [_current_default(one, group) for one in plain["defaults"]]
    chosen = [one.get("override /method") for one in plain.get("defaults") or [] if isinstance(one, dict)]
    own = any(name and not (CONF / "method" / f"{name}.yaml").exists() for name in chosen)
    renamed = with_current_names({group: plain} if group else plain, own_method=own)
    return OmegaConf.create(renamed[group] if group else renamed)


def _current_default(one: Any, group: str) -> Any:
    """An entry of a defaults list, in which a method has today's name.

    >>> _current_default({"override /method": "mora"}, ""), _current_default("mora", "method"), _current_default("mora", "")
    ({'override /method': 'moram'}, 'moram', 'mora')
    """
    if isinstance(one, dict):
        return {key: current_value(str(key).rpartition(" ")[2].strip("/"), value) for key, value in one.items()}
    return current_value(group, one) if group == "method" else one
