"""Configuration files of users, as Hydra reads them, in the encodings that their editors write."""

from pathlib import Path

from hydra._internal.core_plugins import file_config_source
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from see_lightning.files.text import read_text


class FileConfigSource(file_config_source.FileConfigSource):
    """Replaces Hydra's class of that name, which does not see ``# @package`` in a file that begins with a byte order mark."""

    def load_config(self, config_path: str) -> ConfigResult:
        """A file's settings, and the directives in its first lines, such as ``# @package``."""
        path = Path(self.path) / self._normalize_file_name(config_path)
        if not path.is_file():
            return super().load_config(config_path)  # raises Hydra's error for a missing file
        text = read_text(path)
        return ConfigResult(
            provider=self.provider,
            path=f"{self.scheme()}://{self.path}",
            config=OmegaConf.create(text),
            header=ConfigSource._get_header_dict(text[:512]),
        )
