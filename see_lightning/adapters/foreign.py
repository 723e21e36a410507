"""Adapters that other programs have trained: a PEFT folder's LoRA weights in the sizes of a pool's experts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from see_lightning.adapters.adapted_model import IN_PEFT
from see_lightning.adapters.files import CONFIG, WEIGHTS, Pairs, has_weights, read_weights
from see_lightning.config.schema import AdapterConfig
from see_lightning.errors import ConfigError, listed
from see_lightning.files.run_files import read_file

#: Settings of PEFT's LoRA under which an update is not the scale times B A x, and the values that do not change it.
PLAIN: dict[str, tuple[Any, ...]] = {
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # others change the base model's weights
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
    "lora_ga_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}


def read_foreign(
    folder: Path, layers: Mapping[str, nn.Module], adapter: AdapterConfig, header_ids: Sequence[int] | None
) -> Pairs:
    """A, (R, I), and B, (O, R), of each layer, with the update of a folder's adapter under a run's rank and scale.

    A lower rank is filled with zeros, another scale is multiplied into B, and a layer that the adapter lacks gets zeros.

    Args:
        folder: a PEFT folder with a LoRA adapter.
        layers: that the run's experts adapt, by name.
        adapter: rank and alpha of the run's experts.
        header_ids: tokens from which on they act, empty for the whole prompt; None compares only whether there are some.

    Raises:
        ConfigError: it holds no LoRA adapter, or one that an expert of this run cannot be.
    """
    for name, is_there in ((CONFIG, (folder / CONFIG).is_file()), (WEIGHTS, has_weights(folder))):
        if not is_there:
            raise ConfigError(f"{folder} has no {name}; give the folder of a LoRA adapter that PEFT has saved.")
    settings, tensors = read_file(folder / CONFIG), read_weights(folder)
    _check_settings(folder, settings, adapter, header_ids)
    given = {name.removeprefix(IN_PEFT).removesuffix(".weight"): tensor for name, tensor in tensors.items()}
    rank, pairs = int(settings["r"]), {}
    for layer, module in layers.items():
        a, b = (given.pop(f"{layer}.lora_{which}", None) for which in "AB")
        in_size, out_size = _sizes(module)
        if a is None and b is None:
            pairs[layer] = torch.zeros(adapter.rank, in_size), torch.zeros(out_size, adapter.rank)
            continue
        for which, tensor, expected in (("A", a, (rank, in_size)), ("B", b, (out_size, rank))):
            found = None if tensor is None else tuple(tensor.shape)
            if found != expected:
                raise ConfigError(
                    f"{folder}: {layer}.lora_{which} has the shape {found}, and this base model with rank {rank}"
                    f" needs {expected}; it was trained on another base model, or a file is damaged."
                )
        assert a is not None
        assert b is not None
        more, factor = adapter.rank - rank, scale_of(settings) * adapter.rank / adapter.alpha
        pairs[layer] = pad(a.float(), (0, 0, 0, more)), pad(b.float() * factor, (0, more))
    if given:
        others = sorted({name.rpartition(".lora_")[0] or name for name in given})
        raise ConfigError(
            f"{folder} adapts {listed(others, most=3)}, which this run's experts do not; import it into a run with these"
            f" layers in adapter.targets."
        )
    return pairs


def _check_settings(
    folder: Path, settings: Mapping[str, Any], adapter: AdapterConfig, header_ids: Sequence[int] | None
) -> None:
    """Refuse an adapter whose update is computed otherwise than that of the run's experts."""
    check_plain(folder, settings)
    rank = settings["r"]
    if rank > adapter.rank:
        raise ConfigError(
            f"{folder} has rank {rank}, and this run's experts have {adapter.rank}; import it into a run with"
            f" adapter.rank={rank} or more."
        )
    header = settings.get("alora_invocation_tokens") or []
    alike = bool(header) == adapter.activated if header_ids is None else header == list(header_ids)
    if not alike:
        theirs, ours = (f"from {some or 'the header of a prompt'} on" for some in (header, header_ids))
        raise ConfigError(
            f"{folder} acts {theirs if header else 'on the whole prompt'}, but this run's experts act"
            f" {ours if adapter.activated else 'on the whole prompt'}."
        )


def check_plain(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse an adapter whose update is not a scale times B A x.

    Args:
        folder: of the adapter, for messages.
        settings: of its ``adapter_config.json``.

    Raises:
        ConfigError: it is no LoRA adapter, or a variant.
    """
    place = folder / CONFIG
    if settings.get("peft_type") != "LORA":
        raise ConfigError(f"{place}: peft_type is {settings.get('peft_type')}; only LoRA adapters are read.")
    for name, plain in PLAIN.items():
        if name in settings and settings[name] not in plain:
            raise ConfigError(
                f"{place}: with {name}={settings[name]!r} the update is not that of plain LoRA, which experts have; save the"
                f" adapter as plain LoRA (PEFT: save_pretrained's path_initial_model_for_weight_conversion) or train another."
            )
    rank = settings.get("r")
    if not isinstance(rank, int) or rank < 1 or not isinstance(settings.get("lora_alpha"), int | float):
        raise ConfigError(f"{place} has no rank r and lora_alpha.")


def scale_of(settings: Mapping[str, Any]) -> float:
    """The factor of B A: alpha over the rank, or over its root with rank-stabilised LoRA (arXiv 2312.03732)."""
    rank = float(settings["r"])
    return float(settings["lora_alpha"]) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Sizes of the input and output of a linear layer, or of ``Conv1D``, GPT-2's linear layer.

    >>> _sizes(nn.Linear(4, 6)), _sizes(Conv1D(6, 4))
    ((4, 6), (4, 6))
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, Conv1D)
    return int(layer.nx), int(layer.nf)
