"""Readers of data sets and checks of their rows, from files to examples; without tensors, tokens or models."""

from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import Body, Example, Turn
from see_lightning.data.reader import Part, Reader
from see_lightning.data.split import Split

__all__ = ["BadRow", "Body", "Example", "Part", "Reader", "RowChecks", "Split", "Turn"]
