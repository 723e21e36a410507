"""The difference of two checkpoints as a LoRA adapter: ``see-lightning extract OUT TUNED BASE``."""

import argparse
from pathlib import Path

from see_lightning.cli.command import Parser, at_least, command
from see_lightning.errors import ConfigError, listed
from see_lightning.files.text import visible

DESCRIPTION = """\
Writes what training changed in the linear layers of a model as a LoRA adapter that PEFT loads: the nearest one of a rank, or
of the smallest rank whose error is small enough. So a model that was trained whole becomes an expert, or is merged with
others. Changes of embeddings, norms and biases are not in it; they are named, with their share."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: the folder to write, the two models, and the budget."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; new or empty")
    parser.add_argument("tuned", type=Path, metavar="TUNED", help="folder of the trained model, in safetensors")
    parser.add_argument("base", type=Path, metavar="BASE", help="folder of the model from which it was trained")
    parser.add_argument("--rank", type=at_least(1), metavar="R", help="rank of the adapter")
    error = "largest error, as a share of the norm of the change, 0 to 1: the smallest rank that reaches it"
    parser.add_argument("--error", type=float, metavar="E", help=error)


@command("extract", DESCRIPTION, add_arguments)
def main(given: argparse.Namespace) -> None:
    """Extract, and print what was written and what was left out."""
    from see_lightning.engine.extract import extract

    if (given.rank is None) == (given.error is None):
        raise ConfigError("give either --rank R or --error E, such as --error 0.1.")
    if given.error is not None and not 0 <= given.error < 1:
        raise ConfigError(f"--error must be at least 0 and below 1; got {given.error}.")
    found = extract(given.out, given.tuned, given.base, rank=given.rank, error=given.error)
    print(visible(f"adapter of rank {found.rank}, {found.layers} layers, {found.error:.2%} of their change left out"))
    if found.left_out:
        names = listed(found.left_out, most=3)
        print(visible(f"not in it: {names}, {found.left_out_share:.2%} of the norm of all changes"))
    print(visible(str(given.out)))
