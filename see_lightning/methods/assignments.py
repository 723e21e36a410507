"""The file with the expert that a task was assigned, for methods that may reuse an earlier one."""

import json
from dataclasses import asdict
from pathlib import Path

from see_lightning.files.run_files import read_file
from see_lightning.files.writing import write_text
from see_lightning.methods.method import Assignment

GIVEN = "given.json"  # in an expert's folder, and in that of a task without an expert of its own


def write_given(given: Assignment, folder: Path) -> None:
    """Write a task's assignment into its folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / GIVEN, json.dumps(asdict(given)) + "\n")


def read_given(folder: Path) -> Assignment:
    """The assignment that ``write_given`` wrote into a folder."""
    return Assignment(**read_file(folder / GIVEN))
