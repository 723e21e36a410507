r"""Carries an adapter from a base model to its instruction-tuned sibling: ``see-lightning instruct-transfer``.

An adapter that was trained on a base model with texts of a domain is added to the instruct model,
$\theta = \theta_{base} + \tau_{domain} + \tau_{instruct}$ (Hirano and Imajo, *The Construction of Instruction-tuned LLMs for
Finance without Instruction Data Using Continual Pretraining and Model Merging*, 2024, arXiv 2409.19854). They do not disturb
each other as far as the two changes are orthogonal.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from see_lightning.adapters.peft_folder import PeftFolder, write_adapter
from see_lightning.errors import ConfigError
from see_lightning.files.writing import check_new, write_new_folder
from see_lightning.merging.changes import LowRank, inner, shape
from see_lightning.models.checkpoint import Checkpoint


class Carried(NamedTuple):
    """How the changes of an adapter and of instruction tuning relate.

    Args:
        cosine: of all layers together, -1..1.
        by_layer: of each layer; 0 where one of the two has not changed it.
    """

    cosine: float
    by_layer: dict[str, float]


def instruct_transfer(out: Path, adapter: Path, base: Path, instruct: Path) -> Carried:
    """Write an adapter of a base model as one of its instruct model, after checks.

    Args:
        out: the folder to write; new or empty.
        adapter: a PEFT LoRA folder, trained on the base model.
        base: folder of the base model.
        instruct: folder of the model that was instruction-tuned from it.

    Raises:
        ConfigError: the models have other layers or tokenizers, or the adapter is of another model.
    """
    check_new(out)
    ours, theirs = Checkpoint(base), Checkpoint(instruct)
    ours.check_tokenizer(theirs)
    source = PeftFolder(adapter)
    with torch.inference_mode():
        changes = source.changes()
        found = _cosines(changes, adapter, ours, theirs)
        write_new_folder(out, partial(write_adapter, changes=changes, like=source, base=str(instruct)))
    return found


def _cosines(changes: dict[str, LowRank], adapter: Path, ours: Checkpoint, theirs: Checkpoint) -> Carried:
    """Cosines of the adapter's changes and of those between the two models, one layer in memory at a time."""
    transposed = dict(ours.matrices())
    by_layer, products = {}, torch.zeros(3, dtype=torch.float64)
    for layer, change in changes.items():
        name = f"{layer}.weight"
        if layer not in transposed or name not in theirs.files:
            lacking = ours if layer not in transposed else theirs
            raise ConfigError(
                f"{lacking.folder} has no linear layer {layer}, which {adapter} adapts; it is another model."
            )
        before, after = ours.tensor(name), theirs.tensor(name)
        sizes = shape(change)[::-1] if transposed[layer] else shape(change)
        for checkpoint, weight in ((ours, before), (theirs, after)):
            if tuple(weight.shape) != sizes:
                raise ConfigError(
                    f"{layer} has the sizes {tuple(weight.shape)} in {checkpoint.folder} and {sizes} in {adapter}; it is"
                    f" another model."
                )
        tuned_OI = (after - before).T if transposed[layer] else after - before
        three = torch.stack([inner(change, tuned_OI), inner(change, change), inner(tuned_OI, tuned_OI)]).double()
        by_layer[layer] = _cosine(three)
        products += three
    return Carried(_cosine(products), by_layer)


def _cosine(products: torch.Tensor) -> float:
    """The cosine of two vectors by their inner product and their two squared lengths."""
    product, one, other = products.tolist()
    return float(product / (one * other) ** 0.5) if one and other else 0.0
