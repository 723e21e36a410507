"""Experts on disk: plain PEFT adapter folders, which ``PeftModel.from_pretrained`` loads."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor

from see_lightning.adapters.adapted_model import IN_PEFT
from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.prompt_pool import PromptPool
from see_lightning.adapters.quantization import packed, relative_error, unpacked
from see_lightning.adapters.soft_prompt import SoftPrompt
from see_lightning.adapters.whole_layers import WholeLayers
from see_lightning.errors import ConfigError, listed
from see_lightning.files.run_files import read_file
from see_lightning.files.writing import write_bytes, write_text

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's own names
PROMPTS = "prompt_embeddings"  # PEFT's own name for the one tensor of virtual tokens
QUANTIZED = "quantized.safetensors"  # in place of it, for an expert in eight or four bits; PEFT reads no such file
EXPERT_FILE = "expert.json"  # in the same folder: the expert's training, model and prompts
THRESHOLD = "threshold.json"  # in the same folder, for an expert with a threshold
STATE = "method_state.safetensors"  # in the same folder, for a method with more state than adapters

Pairs = dict[str, tuple[Tensor, Tensor]]  # A, (R, I), and B, (O, R), of each layer


def write_tensors(tensors: Mapping[str, Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Args:
        tensors: by name.
        path: of the file.
        about: the file's metadata.

    Raises:
        ConfigError: a tensor holds nan or inf; nothing is written.
    """
    _refuse_not_finite(tensors, path)
    write_bytes(path, serialized({name: tensor.contiguous() for name, tensor in tensors.items()}, about))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        ConfigError: the file is damaged, or a tensor holds nan or inf.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path} cannot be read as safetensors: {error}. Put the file back.") from error
    _refuse_not_finite(tensors, path)
    return tensors


def _refuse_not_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ConfigError(
                f"{path}: {name} holds nan or inf, so it is no usable expert. Train it with a lower optim.lr."
            )


def save(pool: ExpertPool, name: str, folder: Path) -> None:
    """Write an expert as a PEFT adapter folder.

    Args:
        pool: holds the expert.
        name: of the expert or composite; of a composite, the part is written that a LoRA adapter can hold (``pair``).
        folder: created if it does not exist.

    Raises:
        ConfigError: a weight is nan or inf, or the composite has no LoRA form.
    """
    folder.mkdir(parents=True, exist_ok=True)
    composite = pool.composites.get(name)
    if isinstance(composite, SoftPrompt):
        tensors, config = _soft_prompt(pool, composite)
    elif isinstance(composite, PromptPool):
        tensors, config = _prompt_pool(composite)
    elif isinstance(composite, WholeLayers):
        tensors, config = _whole(pool, composite)
    else:
        tensors, config = _lora(pool, name)
    if pool.adapter.quantization == "none":
        write_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
    else:
        write_tensors(packed(tensors, pool.adapter.quantization), folder / QUANTIZED)
    config |= {"inference_mode": True, "base_model_name_or_path": pool.place, "revision": pool.revision}
    # PEFT keeps names in sets, whose order differs between processes; sorted, the file is always the same.
    text = json.dumps(config, indent=2, sort_keys=True, default=sorted)
    write_text(folder / CONFIG, text + "\n")


def _lora(pool: ExpertPool, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of an adapter in PEFT's form of LoRA."""
    pairs = _pairs(pool, name)
    config = pool.settings(pool.composites[name].adapters[0] if name in pool.composites else name)
    rank = len(next(iter(pairs.values()))[0])
    if rank != config["r"]:  # several adapters concatenated, at the same scale
        config |= {"r": rank, "lora_alpha": config["lora_alpha"] * rank / config["r"]}
    if pool.header_ids:
        config["alora_invocation_tokens"] = pool.header_ids  # by this PEFT recognises an activated adapter
    return _named(pairs), config


def _soft_prompt(pool: ExpertPool, prompt: SoftPrompt) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of a soft prompt as a prefix of PEFT: the keys and values that it has in this model."""
    rows_PK = prompt.key_values(pool.model)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(rows_PK))
    return {PROMPTS: rows_PK}, config.to_dict()


def _prompt_pool(prompts: PromptPool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All prompts of a pool, one after the other, in PEFT's form of prompt tuning, which has no keys."""
    rows_PH = prompts.prompts_MPH.detach().flatten(0, 1)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(rows_PH))
    return {PROMPTS: rows_PH}, config.to_dict()


def _whole(pool: ExpertPool, layers: WholeLayers) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of whole layers: PEFT replaces modules of the base model, and adds no LoRA adapter."""
    config = LoraConfig(
        target_modules=DUMMY_TARGET_MODULES, modules_to_save=list(pool.layers), task_type="CAUSAL_LM"
    ).to_dict()
    return _in_file(layers), config


def _in_file(layers: WholeLayers) -> dict[str, Tensor]:
    """The weights of whole layers under their names in PEFT's files."""
    return {f"{IN_PEFT}{name}": weight.detach() for name, weight in layers.named().items()}


def save_state(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write a method's state to a task's folder; no file if the state is empty.

    Args:
        tensors: by name; they may share memory.
        folder: of the task's adapter; created if it does not exist.

    Raises:
        ConfigError: a tensor holds nan or inf.
    """
    if tensors:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, folder / STATE)


def load_state(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """Read a method's state from a task's folder; empty if there is none.

    Args:
        folder: of the task's adapter.
        device: where the tensors are put.

    Raises:
        ConfigError: the file is damaged, or a tensor holds nan or inf.
    """
    if not (folder / STATE).exists():
        return {}
    return {name: tensor.to(device) for name, tensor in read_tensors(folder / STATE).items()}


def load(pool: ExpertPool, name: str, folder: Path) -> None:
    """Load an expert's weights into the pool; an expert that is new is added first.

    Args:
        pool: gets the expert.
        name: of the expert.
        folder: a PEFT adapter folder.

    Raises:
        ConfigError: the folder does not hold an expert of this pool's sizes and header, or is damaged.
    """
    if name not in pool.names:
        pool.add_expert(name, weights_seed=0)
    composite = pool.composites.get(name)
    if isinstance(composite, WholeLayers):
        tensors = _checked(_in_file(composite), folder)
        composite.load({one.removeprefix(IN_PEFT): tensor for one, tensor in tensors.items()})
    else:
        pool.load_weights(name, read(pool, name, folder))


def read(pool: ExpertPool, adapter: str, folder: Path) -> Pairs:
    """A, (R, I), and B, (O, R), of each layer from an adapter folder.

    Args:
        pool: whose experts the folder must fit.
        adapter: an adapter or composite of the pool with the expected sizes.
        folder: a PEFT adapter folder.

    Raises:
        ConfigError: the tensors differ in name or size from those of ``adapter``, the header is another one, or a file is
            damaged.
    """
    tensors = _checked(_named(_pairs(pool, adapter)), folder)
    acts_from = read_file(folder / CONFIG).get("alora_invocation_tokens") or []
    if acts_from != pool.header_ids:
        raise ConfigError(
            f"{folder} holds an expert that acts {_start_of(acts_from)}, but this run's experts act"
            f" {_start_of(pool.header_ids)}."
        )
    return {layer: (tensors[_name(layer, "A")], tensors[_name(layer, "B")]) for layer in pool.layers}


def has_weights(folder: Path) -> bool:
    """Whether a folder has the weights of an adapter, quantised or not."""
    return any((folder / name).is_file() for name in (WEIGHTS, QUANTIZED))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in an adapter's folder by their names in PEFT's files; those of a quantised expert in fp32.

    Raises:
        ConfigError: the file is damaged, or a tensor holds nan or inf.
    """
    path = folder / QUANTIZED
    if not path.is_file():
        return read_tensors(folder / WEIGHTS)
    try:
        return unpacked(read_tensors(path))
    except (KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path} holds no quantised expert: {error}. Put the file back.") from error


def quantize_folder(folder: Path, kind: str) -> float:
    """Replace the weights in an adapter's folder by quantised ones.

    Args:
        folder: with weights in fp32.
        kind: ``int8`` or ``nf4``.

    Returns:
        Their relative error, see ``quantization.relative_error``.
    """
    exact = read_tensors(folder / WEIGHTS)
    stored = packed(exact, kind)
    write_tensors(stored, folder / QUANTIZED)
    (folder / WEIGHTS).unlink()
    return relative_error(exact, unpacked(stored))


def _checked(expected: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's weights, which must have the names and sizes of the expected ones."""
    tensors = read_weights(folder)
    differing = [
        key for key in tensors.keys() | expected.keys()
        if key not in tensors or key not in expected or tensors[key].shape != expected[key].shape
    ]  # fmt: skip
    if differing:
        raise ConfigError(
            f"{folder / WEIGHTS} does not hold an expert of this run: {sorted(differing)[0]} differs. The file has"
            f" {_sizes(tensors, differing)}; this run's experts have {_sizes(expected, differing)}."
        )
    return tensors


def _pairs(pool: ExpertPool, name: str) -> Mapping[str, tuple[Tensor, Tensor]]:
    """A and B of an adapter at each layer; of a composite, those of its LoRA form."""
    composite = pool.composites.get(name)
    return {layer: composite.pair(layer) for layer in pool.layers} if composite else pool.pairs(name)


def _start_of(header_ids: Sequence[int]) -> str:
    return f"from the tokens {list(header_ids)} on" if header_ids else "on the whole prompt"


def _sizes(tensors: Mapping[str, Tensor], names: Iterable[str]) -> str:
    return listed((f"{name} {list(tensors[name].shape)}" for name in sorted(names) if name in tensors), most=3)


def _named(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """A and B of each layer under their names in PEFT's files."""
    return {
        _name(layer, which): matrix for layer, pair in pairs.items() for which, matrix in zip("AB", pair, strict=True)
    }


def _name(layer: str, which: str) -> str:
    return f"{IN_PEFT}{layer}.lora_{which}.weight"
