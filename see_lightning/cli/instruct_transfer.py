"""Carries an adapter from a base model to its instruct model: ``see-lightning instruct-transfer``."""

import argparse
from pathlib import Path

from see_lightning.cli.command import Parser, command
from see_lightning.files.text import visible

DESCRIPTION = """\
Writes a LoRA adapter that was trained on a base model, such as by continual pretraining on texts of a domain, as an adapter
of the model that was instruction-tuned from it: domain and instructions are added without data of instructions. Checks that
layers, sizes and tokenizers are the same, and prints the cosine of what the adapter and what instruction tuning changed, by
layer. Near 0 the two do not disturb each other; towards -1 one undoes the other."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: the folder to write, the adapter, and the two models."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; new or empty")
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="folder of a LoRA adapter of the base model")
    parser.add_argument("base", type=Path, metavar="BASE", help="folder of the base model, in safetensors")
    parser.add_argument("instruct", type=Path, metavar="INSTRUCT", help="folder of the instruction-tuned model")


@command("instruct-transfer", DESCRIPTION, add_arguments)
def main(given: argparse.Namespace) -> None:
    """Carry the adapter over, and print the cosines."""
    from see_lightning.engine.instruct_transfer import instruct_transfer

    found = instruct_transfer(given.out, given.adapter, given.base, given.instruct)
    for layer, cosine in found.by_layer.items():
        print(visible(f"{layer}: {cosine:+.4f}"))
    print(f"all layers: {found.cosine:+.4f}")
    print(visible(str(given.out)))
