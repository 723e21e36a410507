"""Where commands that look at several runs write to."""

import os
from collections.abc import Sequence
from pathlib import Path

from see_lightning.errors import Refusal
from see_lightning.files.writing import make_folder, write_text


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder in which all the paths lie, or which is all of them; a file lies in its own folder.

    >>> common_folder([Path("runs/superni_5/see"), Path("runs/superni_5/mtl")]).as_posix()
    'runs/superni_5'
    """
    folders = [path.parent if path.is_file() else path for path in paths]
    if any(folder.is_absolute() for folder in folders):
        folders = [folder.absolute() for folder in folders]
    return Path(os.path.commonpath(folders))


def is_of_a_run(folder: Path) -> bool:
    """Whether a folder is that of a run, into which only what is measured of the run is written."""
    return any((folder / name).exists() for name in ("results.json", "ledger.json"))


def write(folder: Path, name: str, text: str) -> Path:
    """Put a text into a folder, which is made if need be.

    Raises:
        Refusal: it cannot be written there.
    """
    try:
        make_folder(folder)
        write_text(folder / name, text)
    except OSError as error:
        raise Refusal(
            f"{folder / name} cannot be written: {error.strerror}; give another folder with --out."
        ) from error
    return folder / name
