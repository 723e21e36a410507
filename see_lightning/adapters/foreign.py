"""Adapters that other programs have trained: a PEFT folder's LoRA weights in the sizes of a pool's experts."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from see_lightning.adapters.adapted_model import IN_PEFT
from see_lightning.adapters.files import CONFIG, WEIGHTS, Pairs, read_tensors
from see_lightning.adapters.pool import ExpertPool
from see_lightning.errors import ConfigError, listed
from see_lightning.files.run_files import read_file

#: Settings of PEFT's LoRA under which an update is not the scale times B A x, and the values that do not change it.
PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False,),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None,),
    "modules_to_save": (None, []),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "arrow_config": (None,),
    "corda_config": (None,),
}


def read_foreign(pool: ExpertPool, adapter: str, folder: Path) -> Pairs:
    """A, (R, I), and B, (O, R), of each layer of a pool, with the update of the folder's adapter.

    A lower rank is filled with zeros, another scale is multiplied into B, and a layer that the adapter lacks gets zeros.

    Args:
        pool: whose experts the result fits.
        adapter: an adapter of the pool, with the sizes and the scale of the result.
        folder: a PEFT folder with a LoRA adapter, activated ones from the header of the pool's experts on.

    Raises:
        ConfigError: it holds no LoRA adapter, or one that experts of this pool cannot have.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} has no {name}; give the folder of a LoRA adapter that PEFT has saved.")
    settings, tensors = read_file(folder / CONFIG), read_tensors(folder / WEIGHTS)
    _check_settings(pool, folder, settings)
    given = {name.removeprefix(IN_PEFT).removesuffix(".weight"): tensor for name, tensor in tensors.items()}
    rank, pairs = int(settings["r"]), {}
    for layer, (down_RI, up_OR) in pool.pairs(adapter).items():
        a, b = (given.pop(f"{layer}.lora_{which}", None) for which in "AB")
        if a is None and b is None:
            pairs[layer] = torch.zeros_like(down_RI), torch.zeros_like(up_OR)
            continue
        expected = {"A": (rank, down_RI.shape[1]), "B": (up_OR.shape[0], rank)}
        for which, tensor in (("A", a), ("B", b)):
            found = None if tensor is None else tuple(tensor.shape)
            if found != expected[which]:
                raise ConfigError(
                    f"{folder / WEIGHTS}: {layer}.lora_{which} has the shape {found}, and this base model with rank {rank}"
                    f" needs {expected[which]}; it was trained on another base model, or a file is damaged."
                )
        more, factor = len(down_RI) - rank, _scale(settings) / pool.scale(layer, adapter)
        pairs[layer] = pad(_float(a), (0, 0, 0, more)), pad(_float(b) * factor, (0, more))
    if given:
        layers = sorted({name.rpartition(".lora_")[0] or name for name in given})
        raise ConfigError(
            f"{folder} adapts {listed(layers, most=3)}, which this run's experts do not; import it into a run with these"
            f" layers in adapter.targets."
        )
    return pairs


def _check_settings(pool: ExpertPool, folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse an adapter whose update is computed otherwise than that of the pool's experts."""
    place = folder / CONFIG
    if settings.get("peft_type") != "LORA":
        raise ConfigError(f"{place}: peft_type is {settings.get('peft_type')}; only LoRA adapters can be imported.")
    for name, plain in PLAIN.items():
        if name in settings and settings[name] not in plain:
            raise ConfigError(f"{place}: {name}={settings[name]!r} changes the update, and experts have none of it.")
    rank = settings.get("r")
    if not isinstance(rank, int) or rank < 1 or not isinstance(settings.get("lora_alpha"), int | float):
        raise ConfigError(f"{place} has no rank r and lora_alpha.")
    if rank > pool.adapter.rank:
        raise ConfigError(
            f"{folder} has rank {rank}, and this run's experts have {pool.adapter.rank}; import it into a run with"
            f" adapter.rank={rank} or more."
        )
    header = settings.get("alora_invocation_tokens") or []
    if header != pool.header_ids:
        kinds = {True: f"from the tokens {header or pool.header_ids} on", False: "on the whole prompt"}
        raise ConfigError(
            f"{folder} acts {kinds[bool(header)]}, but this run's experts act {kinds[bool(pool.header_ids)]}."
        )


def _scale(settings: Mapping[str, Any]) -> float:
    """The factor of B A: alpha over the rank, or over its root with rank-stabilised LoRA (arXiv 2312.03732)."""
    rank = float(settings["r"])
    return float(settings["lora_alpha"]) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _float(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.float()
