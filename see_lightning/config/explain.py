"""The line that a refused command prints: what was wrong, and the nearest allowed spelling."""

import re
from collections.abc import Iterator
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationKeyError, OmegaConfBaseException
from yaml import YAMLError

from see_lightning.config.conf_files import with_todays_names
from see_lightning.config.names import called_here
from see_lightning.config.schema import ModelConfig, RunConfig
from see_lightning.config.search_path import options
from see_lightning.errors import DataError, Refusal, nearest
from see_lightning.files.text import read_text

REFUSED = (Refusal, HydraException, OmegaConfBaseException)
OWN_LINES = ("full_key:", "object_type=", "reference_type=", "See https://", "Set the environment variable HYDRA")
#: Settings whose last names are those of tasks, so that any may be added.
BY_TASK = re.compile(r"(benchmark|ood\.sources\.[^.]+)\.(tasks|paraphrases)\.")


def explain(error: Exception) -> str:
    """The message to print instead of a traceback.

    Args:
        error: one of ``REFUSED``.
    """
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        return f"there is no {group}={option}.{nearest(option, error.options)} There are: {', '.join(error.options)}."
    lines = [line.strip() for line in str(error).splitlines()]
    # Lines about Hydra's and OmegaConf's own classes and web pages do not help the user.
    message = " ".join(line for line in lines if line and not line.startswith(OWN_LINES))
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown and BY_TASK.match(unknown[1]):
        added = re.search(r"use (\+.*)", str(error))
        return f"{unknown[1]} is not set yet; what is added has a + before it: {added[1] if added else f'+{unknown[1]}=...'}"
    if unknown:
        return f"there is no setting {unknown[1]!r}.{hint(unknown[1])}"
    if isinstance(error, Refusal):
        return message  # our own messages are complete
    cause = str(getattr(error.__cause__, "msg", None) or "").strip()
    message = f"{message.removeprefix('Error merging override ')}: {cause.splitlines()[0]}" if cause else message
    message = re.sub(r"field '(\S+)' is not Optional", r"\1 cannot be null", message)
    message = re.sub(
        r"Invalid value assigned: .* is not a ListConfig, list or tuple\.", "it is a list, such as [a,b].", message
    )
    if isinstance(error, InterpolationKeyError | GrammarParseError) or isinstance(error.__cause__, GrammarParseError):
        message += r". ${...} stands for the value of a setting; for the text itself write \${...}."
    return message


def hint(key: str) -> str:
    """A hint to the known setting that an unknown one is meant to be."""
    known = known_keys()
    if key in known:
        group, _, inner = key.partition(".")
        names = [path.stem for path in options(group) if inner in _dotted(settings_in(path))]
        return f" It belongs to {' or '.join(f'{group}={option}' for option in names)}."
    if key.startswith("trainer.") and not called_here(key):
        return f" One of Lightning's own that the file lacks is added: +{key}=..."
    return called_here(key) or nearest(key, known)


def known_keys() -> list[str]:
    """Every setting and group in the schema and in the files of ``conf``."""
    keys = list({path.parent.name for path in options()})
    keys += _dotted(OmegaConf.structured(RunConfig))
    keys += _dotted(OmegaConf.structured(ModelConfig), "model.")
    for path in options():
        group = "" if "@package _global_" in read_text(path) else f"{path.parent.name}."
        keys += [group + key for key in _dotted(settings_in(path))]
    return sorted(set(keys))


def settings_in(path: Path) -> DictConfig:
    """The settings in a file of ``conf``, by today's names; empty if it has none, which Hydra reports when it is chosen."""
    try:
        config = with_todays_names(OmegaConf.create(read_text(path)), path.parent.name)
    except (YAMLError, OmegaConfBaseException, DataError):
        return DictConfig({})
    return config if isinstance(config, DictConfig) else DictConfig({})


def _dotted(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        yield prefix + key
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none():
            yield from _dotted(node, f"{prefix}{key}.")
