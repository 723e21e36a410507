"""Output folders of commands that read several runs."""

import os
from collections.abc import Sequence
from pathlib import Path

from see_lightning.errors import Refusal
from see_lightning.files.writing import make_folder, write_text


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that contains or equals all the paths; a file counts as its folder.

    >>> common_folder([Path("runs/superni_5/see"), Path("runs/superni_5/mtl")]).as_posix()
    'runs/superni_5'
    """
    folders = [path.parent if path.is_file() else path for path in paths]
    if any(folder.is_absolute() for folder in folders):
        folders = [folder.absolute() for folder in folders]
    return Path(os.path.commonpath(folders))


def is_of_a_run(folder: Path) -> bool:
    """Whether a folder is that of a run; tables of several runs are not written there."""
    return any((folder / name).exists() for name in ("results.json", "ledger.json"))


def write(folder: Path, name: str, text: str) -> Path:
    """Write a text into a folder, which is made if missing.

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
