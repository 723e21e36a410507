"""The difference of two checkpoints as a LoRA adapter: ``see-lightning extract``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from see_lightning.adapters.files import CONFIG
from see_lightning.adapters.peft_folder import write_tensors_of
from see_lightning.errors import ConfigError, listed
from see_lightning.files.writing import check_new, write_new_folder, write_text
from see_lightning.merging.changes import LowRank, truncated
from see_lightning.models.checkpoint import Checkpoint


class Extracted(NamedTuple):
    """What was written.

    Args:
        rank: of the adapter.
        error: what the rank leaves out of the changes of linear layers, as a share of their Frobenius norm, 0..1.
        left_out: changed tensors that no LoRA adapter holds: embeddings, norms, biases.
        left_out_share: of the Frobenius norm of all changes, 0..1.
        layers: that have changed.
    """

    rank: int
    error: float
    left_out: list[str]
    left_out_share: float
    layers: int


def extract(out: Path, tuned: Path, base: Path, *, rank: int | None, error: float | None) -> Extracted:
    """Write the difference of a tuned model and its base model as a PEFT adapter, one layer in memory at a time.

    Args:
        out: the folder to write; new or empty.
        tuned: folder of the tuned model.
        base: folder of the base model.
        rank: of the adapter; None takes the smallest whose error is small enough.
        error: largest relative error of all layers together, 0..1, if ``rank`` is None.

    Raises:
        ConfigError: the models have other tensors or tokenizers, do not differ, or ``out`` has files.
    """
    check_new(out)
    ours, theirs = Checkpoint(tuned), Checkpoint(base)
    _check(ours, theirs)
    with torch.inference_mode():
        left_out = _differing_others(ours, theirs)
        spectra = {layer: torch.linalg.svdvals(delta).double() ** 2 for layer, delta in _deltas(ours, theirs)}
        spectra = {layer: squares_K for layer, squares_K in spectra.items() if squares_K.sum() > 0}
        if not spectra:
            raise ConfigError(f"{tuned} and {base} do not differ in any linear layer.")
        found = rank or smallest_rank(list(spectra.values()), error or 0.0)
        whole = float(sum(squares_K.sum() for squares_K in spectra.values()))
        lost = float(sum(squares_K[found:].sum() for squares_K in spectra.values()))
        low: dict[str, LowRank] = {
            layer: truncated(delta, found)[0] for layer, delta in _deltas(ours, theirs) if layer in spectra
        }

    def fill(folder: Path) -> None:
        write_tensors_of(folder, low, found)
        settings = _settings(base, sorted(low), found, is_transposed=any(one for _, one in ours.matrices()))
        write_text(folder / CONFIG, json.dumps(settings, indent=2, sort_keys=True) + "\n")

    write_new_folder(out, fill)
    others = sum(left_out.values())
    share = (others / (others + whole)) ** 0.5
    return Extracted(found, max(0.0, lost / whole) ** 0.5, sorted(left_out), share, len(low))


def smallest_rank(squares: list[Tensor], error: float) -> int:
    """The smallest rank at which what is left out of all layers together is small enough.

    Args:
        squares: of each layer's singular values, the largest first.
        error: largest Frobenius norm that is left out, as a share of the whole, 0..1.

    >>> smallest_rank([torch.tensor([9.0, 1.0]), torch.tensor([6.0, 4.0, 0.0])], 0.5), smallest_rank([torch.ones(3)], 0.0)
    (1, 3)
    """
    longest = max(map(len, squares))
    tails = torch.zeros(longest + 1, dtype=torch.float64)  # by rank: the squares that it leaves out
    for one in squares:
        tails[: len(one)] += one.double().flip(0).cumsum(0).flip(0)
    enough = tails <= error**2 * tails[0]
    return max(1, int(enough.double().argmax()))


def _check(ours: Checkpoint, theirs: Checkpoint) -> None:
    """Refuse two models that are not one model before and after training."""
    if apart := sorted(ours.files.keys() ^ theirs.files.keys()):
        raise ConfigError(
            f"only one of {ours.folder} and {theirs.folder} has {listed(apart, most=3)}; they are two models."
        )
    ours.check_tokenizer(theirs)


def _deltas(ours: Checkpoint, theirs: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """The change of each linear layer, (O, I)."""
    for layer, is_transposed in ours.matrices():
        delta = _difference(ours, theirs, f"{layer}.weight")
        yield layer, delta.T if is_transposed else delta


def _differing_others(ours: Checkpoint, theirs: Checkpoint) -> dict[str, float]:
    """The squared Frobenius norms of the changes of tensors that are no linear layer's matrix."""
    matrices = {f"{layer}.weight" for layer, _ in ours.matrices()}
    changes = ((name, _difference(ours, theirs, name)) for name in ours.files if name not in matrices)
    return {name: float(change.double().norm() ** 2) for name, change in changes if change.any()}


def _difference(ours: Checkpoint, theirs: Checkpoint, name: str) -> Tensor:
    one, other = ours.tensor(name), theirs.tensor(name)
    if one.shape != other.shape:
        sizes = f"{tuple(one.shape)} and {tuple(other.shape)}"
        raise ConfigError(f"{name} has the sizes {sizes} in {ours.folder} and {theirs.folder}; they are two models.")
    return one - other


def _settings(base: Path, layers: list[str], rank: int, *, is_transposed: bool) -> dict[str, object]:
    """``adapter_config.json``, as PEFT reads it."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": rank,
        "target_modules": layers,
        "bias": "none",
        "fan_in_fan_out": is_transposed,
        "inference_mode": True,
    }
