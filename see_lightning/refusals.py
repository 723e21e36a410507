"""How a refused command is told: one line with what was wrong and the nearest thing that is right."""

import argparse
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationKeyError, OmegaConfBaseException
from yaml import YAMLError

from see_lightning.config import DataError, ModelConfig, Refusal, RunConfig, nearest
from see_lightning.names import called_here
from see_lightning.search_path import CONF as CONF
from see_lightning.search_path import options
from see_lightning.textfiles import read_text

REFUSED = (Refusal, HydraException, OmegaConfBaseException)
OWN_LINES = ("full_key:", "object_type=", "reference_type=", "See https://", "Set the environment variable HYDRA")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: What the place is to blame for: read-only, not allowed, below a file, a folder where a file belongs.
BARRED = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST),
)

#: Settings whose last names are those of tasks, so that any may be added.
BY_TASK = re.compile(r"(benchmark|ood\.sources\.[^.]+)\.(tasks|paraphrases)\.")


@contextmanager
def room_needed(folder: Path, cure: str = "paths.runs=DIR") -> Iterator[None]:
    """Within this, a full disk or a place that cannot be used is a refusal, which names the place.

    Args:
        folder: that is written to, unless the error knows better.
        cure: what to type to have another place.

    Raises:
        Refusal: there is no room, or the place cannot be written.
    """
    try:
        yield
    except Exception as error:
        told = re.search(r"\(os error (\d+)\)", str(error))  # how libraries written in Rust tell it
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        place = getattr(error, "filename", None) or folder
        if number in FULL:
            raise Refusal(full(place, number)) from error
        if number in BARRED:
            raise Refusal(f"{place} cannot be used: {os.strerror(number)}. Give a place that can: {cure}.") from error
        raise


def full(place: str | Path, number: int) -> str:
    """One line on a place that has no room.

    Args:
        place: what was written.
        number: of the system's error, of ``FULL``.
    """
    there = next(path for path in (Path(place), *Path(place).absolute().parents) if path.exists())
    return (
        f"{place} cannot be written: {os.strerror(number)}; {shutil.disk_usage(there).free / 1e6:,.0f} MB are free there."
        f" Make room or raise the limit, and give the same command again: what is final is kept."
    )


def barred(error: OSError) -> str | None:
    """One line on a place that cannot be used; None if the error tells of something else."""
    if "No usable temporary directory" in str(error):
        return "there is no folder for temporary files that can be written; set TMPDIR=DIR."
    if error.errno in FULL and error.filename is not None:
        return full(error.filename, error.errno)
    if error.errno not in BARRED or error.filename is None:
        return None
    return f"{error.filename} cannot be used: {os.strerror(error.errno)}."


def explain(error: Exception) -> str:
    """What to print instead of a traceback.

    Args:
        error: one of ``REFUSED``.
    """
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        return f"there is no {group}={option}.{nearest(option, error.options)} There are: {', '.join(error.options)}."
    lines = [line.strip() for line in str(error).splitlines()]
    # What Hydra and OmegaConf add on their own classes and pages says nothing of what was typed.
    told = " ".join(line for line in lines if line and not line.startswith(OWN_LINES))
    unknown = re.search(r"Could not override '([^']+)'", told)
    if unknown and BY_TASK.match(unknown[1]):
        added = re.search(r"use (\+.*)", str(error))
        return f"{unknown[1]} is not set yet; what is added has a + before it: {added[1] if added else f'+{unknown[1]}=...'}"
    if unknown:
        return f"there is no setting {unknown[1]!r}.{hint(unknown[1])}"
    if isinstance(error, Refusal):
        return told  # ours say all that there is to say
    cause = str(getattr(error.__cause__, "msg", None) or "").strip()
    told = f"{told.removeprefix('Error merging override ')}: {cause.splitlines()[0]}" if cause else told
    told = re.sub(r"field '(\S+)' is not Optional", r"\1 cannot be null", told)
    told = re.sub(
        r"Invalid value assigned: .* is not a ListConfig, list or tuple\.", "it is a list, such as [a,b].", told
    )
    if isinstance(error, InterpolationKeyError | GrammarParseError) or isinstance(error.__cause__, GrammarParseError):
        told += r". ${...} stands for the value of a setting; for the text itself write \${...}."
    return told


def with_cause(error: BaseException) -> str:
    """An error in one line, with what is at the bottom of it: a library that is missing, a host that nobody knows.

    Args:
        error: of a library that says so at the top as "cannot connect".
    """
    cause = error
    while below := cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__):
        cause = below
    top, bottom = (next(iter(str(one).strip().splitlines()), "") or type(one).__name__ for one in (error, cause))
    return top if bottom in top else f"{top} ({type(cause).__name__}: {bottom})"


def hint(key: str) -> str:
    """What an unknown setting is called here."""
    known = known_keys()
    if key in known:
        group, _, inner = key.partition(".")
        names = [path.stem for path in options(group) if inner in _dotted(settings_in(path))]
        return f" It belongs to {' or '.join(f'{group}={option}' for option in names)}."
    if key.startswith("trainer.") and not called_here(key):
        return f" One of Lightning's own that the file lacks is added: +{key}=..."
    return called_here(key) or nearest(key, known)


def known_keys() -> list[str]:
    """Every setting and group that the command line takes, as far as the files of ``conf`` tell."""
    keys = list({path.parent.name for path in options()})
    keys += _dotted(OmegaConf.structured(RunConfig))
    keys += _dotted(OmegaConf.structured(ModelConfig), "model.")
    for path in options():
        group = "" if "@package _global_" in read_text(path) else f"{path.parent.name}."
        keys += [group + key for key in _dotted(settings_in(path))]
    return sorted(set(keys))


def settings_in(path: Path) -> DictConfig:
    """A file of ``conf``; empty if it holds no settings, of which Hydra tells when it is chosen."""
    try:
        config = OmegaConf.create(read_text(path))
    except (YAMLError, OmegaConfBaseException, DataError):
        return DictConfig({})
    return config if isinstance(config, DictConfig) else DictConfig({})


def _dotted(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        yield prefix + key
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none():
            yield from _dotted(node, f"{prefix}{key}.")


def at_least(least: int) -> Callable[[str], int]:
    """An argument's type: a whole number that is not smaller than another."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"a number of at least {least} is wanted; got {text!r}")
        return int(text)

    return read
