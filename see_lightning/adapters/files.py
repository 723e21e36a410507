"""Experts on disk: plain PEFT adapter folders, which ``PeftModel.from_pretrained`` loads."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor

from see_lightning.adapters.adapted_model import IN_PEFT
from see_lightning.adapters.pool import ExpertPool
from see_lightning.errors import ConfigError, listed
from see_lightning.files.run_files import read_file
from see_lightning.files.writing import write_bytes, write_text

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's own names
THRESHOLD = "threshold.json"  # beside them, of an expert that has one
STATE = "method_state.safetensors"  # beside them, of a method that keeps more than adapters

Pairs = dict[str, tuple[Tensor, Tensor]]  # A, (R, I), and B, (O, R), of each layer


def write_tensors(tensors: Mapping[str, Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Args:
        tensors: by name.
        path: of the file.
        about: what the file says of itself.

    Raises:
        ConfigError: they hold numbers that are none; nothing is written.
    """
    _refuse_not_finite(tensors, path)
    write_bytes(path, serialized({name: tensor.contiguous() for name, tensor in tensors.items()}, about))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        ConfigError: it is damaged, or holds numbers that are none.
    """
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path} cannot be read as safetensors: {error}. Put the file back.") from error
    _refuse_not_finite(found, path)
    return found


def _refuse_not_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ConfigError(
                f"{path} is no expert: {name} holds numbers that are none (nan or inf). Train it with a lower optim.lr."
            )


def save(pool: ExpertPool, name: str, folder: Path) -> None:
    """Write an expert.

    Args:
        pool: that it is in.
        name: of the expert; of a composed voice, what a plain adapter can hold is written.
        folder: is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = _pairs(pool, name)
    adapter = pool.composites[name].adapters[0] if name in pool.composites else name
    write_tensors(_named(pairs), folder / WEIGHTS, {"format": "pt"})
    config = pool.settings(adapter)
    rank = len(next(iter(pairs.values()))[0])
    if rank != config["r"]:  # several adapters side by side, at the same scale
        config |= {"r": rank, "lora_alpha": config["lora_alpha"] * rank / config["r"]}
    config |= {"inference_mode": True, "base_model_name_or_path": pool.place, "revision": pool.revision}
    if pool.header_ids:
        config["alora_invocation_tokens"] = pool.header_ids  # what makes it an activated one for PEFT
    # PEFT keeps names in sets, whose order changes from process to process; sorted, the file does not.
    text = json.dumps(config, indent=2, sort_keys=True, default=sorted)
    write_text(folder / CONFIG, text + "\n")


def save_state(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write what a method keeps beside its adapters; no file if it keeps nothing.

    Args:
        tensors: by name; they may share memory.
        folder: of a task's adapter; made if it is not there.

    Raises:
        ConfigError: they hold numbers that are not finite.
    """
    if tensors:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, folder / STATE)


def load_state(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """Read what ``save_state`` wrote; empty if it wrote no file.

    Args:
        folder: of a task's adapter.
        device: where the tensors are put.

    Raises:
        ConfigError: the file is damaged, or holds numbers that are not finite.
    """
    if not (folder / STATE).exists():
        return {}
    return {name: tensor.to(device) for name, tensor in read_tensors(folder / STATE).items()}


def load(pool: ExpertPool, name: str, folder: Path) -> None:
    """Read an expert; attach it first if it is new.

    Args:
        pool: that it shall be in.
        name: of the expert.
        folder: as ``save`` writes it.

    Raises:
        ConfigError: as in ``read``.
    """
    if name not in pool.names:
        pool.add_expert(name, weights_seed=0)
    pool.load_weights(name, read(pool, name, folder))


def read(pool: ExpertPool, adapter: str, folder: Path) -> Pairs:
    """What an expert's folder holds.

    Args:
        pool: for which it is read.
        adapter: an adapter or composite of the pool, whose sizes they must have.
        folder: as ``save`` writes it.

    Raises:
        ConfigError: the folder's tensors are not exactly those that this pool's experts have.
    """
    found = read_tensors(folder / WEIGHTS)
    wanted = _named(_pairs(pool, adapter))
    differing = [
        key for key in found.keys() | wanted.keys()
        if key not in found or key not in wanted or found[key].shape != wanted[key].shape
    ]  # fmt: skip
    if differing:
        raise ConfigError(
            f"{folder / WEIGHTS} does not hold an expert of this run: {sorted(differing)[0]} differs. Such are"
            f" {_sizes(found, differing)}; this run's {_sizes(wanted, differing)}."
        )
    acts_from = read_file(folder / CONFIG).get("alora_invocation_tokens") or []
    if acts_from != pool.header_ids:
        raise ConfigError(
            f"{folder} holds an expert that acts from the tokens {acts_from or 'of the beginning'} on, this run's"
            f" from {pool.header_ids or 'the beginning'}."
        )
    return {layer: (found[_name(layer, "A")], found[_name(layer, "B")]) for layer in pool.layers}


def _pairs(pool: ExpertPool, name: str) -> Mapping[str, tuple[Tensor, Tensor]]:
    """A and B of an adapter; of a composite, what a plain adapter can hold of it."""
    composite = pool.composites.get(name)
    return {layer: composite.pair(layer) for layer in pool.layers} if composite else pool.pairs(name)


def _sizes(tensors: Mapping[str, Tensor], names: Iterable[str]) -> str:
    return listed((f"{name} {list(tensors[name].shape)}" for name in sorted(names) if name in tensors), most=3)


def _named(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Layers' matrices under the names that PEFT gives them in its files."""
    return {
        _name(layer, which): matrix for layer, pair in pairs.items() for which, matrix in zip("AB", pair, strict=True)
    }


def _name(layer: str, which: str) -> str:
    return f"{IN_PEFT}{layer}.lora_{which}.weight"
