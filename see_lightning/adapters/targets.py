"""The layers that experts adapt: given by name, PEFT's defaults for the architecture, or all linear layers."""

import re
from collections.abc import Sequence

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS_OWN
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from see_lightning.config.schema import ALL_LINEAR
from see_lightning.errors import ConfigError, nearest

ADAPTABLE = (nn.Linear, Conv1D)  # Conv1D is GPT-2's linear layer


def resolve_targets(targets: Sequence[str] | str | None, model: PreTrainedModel, name: str) -> list[str]:
    """The names of the adapted layers, checked: each must name linear layers.

    Args:
        targets: names, or suffixes of names after a dot, as in PEFT; ``all-linear`` for all linear layers except the
            vocabulary head; None for ``q_proj`` and ``v_proj``, or PEFT's default if the model has no layers of these names.
        model: with or without weights.
        name: of the model in messages.

    Raises:
        ConfigError: a name does not name linear layers, or PEFT has no default for the model.
    """
    if targets == ALL_LINEAR:
        return _all_linear(model)
    linear = dict.fromkeys(path.rsplit(".", 1)[-1] for path in _linear(model))
    if targets is None:
        targets = ["q_proj", "v_proj"] if {"q_proj", "v_proj"} <= linear.keys() else _pefts_own(model)
        if not targets:
            raise ConfigError(
                f"PEFT has no default layers for {name} ({model.config.model_type}); give adapter.targets=all-linear, or name"
                f" some. {_choices(linear)}"
            )
    for target in targets:
        _check(target, model, name, linear)
    return list(targets)


def target_layers(model: PreTrainedModel, targets: Sequence[str] | str | None) -> dict[str, nn.Module]:
    """The layers that match the targets by name, in the model's order.

    Args:
        model: without adapters.
        targets: from ``resolve_targets``. An unresolved setting (None or ``all-linear``) gives no layers: it occurs only
            where no adapter is added.
    """
    if targets is None or isinstance(targets, str):
        return {}
    return {
        path: layer for path, layer in model.named_modules()
        if isinstance(layer, ADAPTABLE) and any(_ends(path, target) for target in targets)
    }  # fmt: skip


def _check(target: str, model: PreTrainedModel, name: str, linear: Sequence[str] | dict[str, None]) -> None:
    matching = {path: layer for path, layer in model.named_modules() if _ends(path, target)}
    other = next((layer for layer in matching.values() if not isinstance(layer, ADAPTABLE)), None)
    if other is not None:
        raise ConfigError(
            f"adapter.targets names {target!r}, which is a {type(other).__name__} in {name}; experts adapt linear layers."
            f" {_choices(linear)}"
        )
    if not matching:
        is_weight = any(_ends(path, target) for path, _ in model.named_parameters())
        kind = "a weight but no layer" if is_weight else "no layer"
        raise ConfigError(
            f"adapter.targets names {target!r}, which is {kind} of {name}.{nearest(target, linear)} {_choices(linear)}"
        )


def _choices(linear: Sequence[str] | dict[str, None]) -> str:
    return f"Linear layers are {', '.join(sorted(linear))}."


def _ends(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _linear(model: PreTrainedModel) -> list[str]:
    return [path for path, layer in model.named_modules() if isinstance(layer, ADAPTABLE)]


def _pefts_own(model: PreTrainedModel) -> list[str]:
    defaults = PEFTS_OWN.get(model.config.model_type, [])
    if isinstance(defaults, str):  # a regular expression for whole names
        return [path for path in _linear(model) if re.fullmatch(defaults, path)]
    return [str(target) for target in defaults]


def _all_linear(model: PreTrainedModel) -> list[str]:
    """The last part of each linear layer's name, or the whole name if a layer that is not adapted has the same last part."""
    head = model.get_output_embeddings()
    wanted = [path for path, layer in model.named_modules() if isinstance(layer, ADAPTABLE) and layer is not head]
    others = [path for path, _ in model.named_modules() if path not in set(wanted)]
    taken = {path.rsplit(".", 1)[-1] for path in others}
    return list(dict.fromkeys(path if (last := path.rsplit(".", 1)[-1]) in taken else last for path in wanted))
