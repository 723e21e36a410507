"""Folders of LoRA adapters that PEFT has saved, whatever base model they belong to: their changes, and a new one.

Letters: R a rank, I and O the sizes of a layer's input and output.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from see_lightning.adapters.adapted_model import IN_PEFT
from see_lightning.adapters.files import CONFIG, EXPERT_FILE, WEIGHTS, has_weights, read_weights, write_tensors
from see_lightning.adapters.foreign import check_plain, scale_of
from see_lightning.errors import ConfigError, listed
from see_lightning.files.reading import sha256
from see_lightning.files.run_files import read_file
from see_lightning.files.writing import write_text
from see_lightning.merging.changes import LowRank

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class PeftFolder:
    """A LoRA adapter in a folder.

    Args:
        folder: that PEFT has saved.
    """

    folder: Path

    def __post_init__(self) -> None:
        for name, is_there in ((CONFIG, (self.folder / CONFIG).is_file()), (WEIGHTS, has_weights(self.folder))):
            if not is_there:
                raise ConfigError(
                    f"{self.folder} has no {name}; give the folder of a LoRA adapter that PEFT has saved."
                )
        check_plain(self.folder, self.settings)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The content of ``adapter_config.json``."""
        return read_file(self.folder / CONFIG)

    @cached_property
    def about(self) -> dict[str, Any]:
        """The content of ``expert.json``; empty if the adapter is none of this package's."""
        path = self.folder / EXPERT_FILE
        return read_file(path) if path.is_file() else {}

    def made_for(self) -> dict[str, Any]:
        """What adapters that are merged must have in common, in words."""
        tokenizer = self.folder / TOKENIZER
        return {
            "the base model": self.settings.get("base_model_name_or_path"),
            "the revision of the base model": self.settings.get("revision"),
            "the tokens from which on they act": self.settings.get("alora_invocation_tokens") or None,
            "the tokenizer": sha256(tokenizer)[:12] if tokenizer.is_file() else None,
            "the prompt template": self.about.get("template_sha256"),
        }

    def changes(self) -> dict[str, LowRank]:
        """What the adapter changes at each layer, in fp32.

        Raises:
            ConfigError: a tensor is missing, or is none of a LoRA adapter of this rank.
        """
        path, rank, scale = self.folder, int(self.settings["r"]), scale_of(self.settings)
        given = {name.removeprefix(IN_PEFT).removesuffix(".weight"): one for name, one in read_weights(path).items()}
        found: dict[str, LowRank] = {}
        for layer in dict.fromkeys(name.rpartition(".lora_")[0] for name in given if ".lora_" in name):
            a_RI, b_OR = (given.pop(f"{layer}.lora_{which}", None) for which in "AB")
            if a_RI is None or b_OR is None or (len(a_RI), b_OR.shape[1]) != (rank, rank):
                raise ConfigError(f"{path}: {layer} has no lora_A and lora_B of rank {rank}; the file is damaged.")
            found[layer] = LowRank(scale * b_OR.float(), a_RI.float())
        if given:
            raise ConfigError(f"{path} holds {listed(sorted(given), most=3)}, which no LoRA adapter has.")
        return found


def check_one_model(one: PeftFolder, other: PeftFolder) -> None:
    """Refuse two adapters that were not trained for the same model and prompts.

    Raises:
        ConfigError: they differ in a point that both name.
    """
    ours, theirs = one.made_for(), other.made_for()
    for point, value in ours.items():
        needed = point.startswith("the tokens") or (value is not None and theirs[point] is not None)
        if needed and value != theirs[point]:
            raise ConfigError(
                f"{one.folder} and {other.folder} differ in {point}: {value} and {theirs[point]}. Only adapters of one base"
                f" model are merged."
            )


def write_adapter(
    folder: Path, changes: Mapping[str, LowRank], like: PeftFolder, *, base: str, revision: str | None = None
) -> None:
    """Write changes as the files of a LoRA adapter, with the rank of the layer that has the highest.

    Args:
        folder: exists.
        changes: by layer.
        like: an adapter of the same base model and layers, whose further settings are taken over.
        base: name or folder of the base model.
        revision: of the base model.
    """
    rank = max(1, *(len(change.a_RI) for change in changes.values()))  # zeros have no rank, and an adapter has one
    about = {"base_model_name_or_path": base, "revision": revision}
    settings = {**like.settings, **about, "r": rank, "lora_alpha": rank, "use_rslora": False, "inference_mode": True}
    write_tensors_of(folder, changes, rank)
    write_text(folder / CONFIG, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def write_tensors_of(folder: Path, changes: Mapping[str, LowRank], rank: int) -> None:
    """Write the weights of a LoRA adapter whose scale is 1; lower ranks are filled with zeros."""
    tensors: dict[str, Tensor] = {}
    for layer, change in changes.items():
        more = rank - len(change.a_RI)
        tensors[f"{IN_PEFT}{layer}.lora_A.weight"] = pad(change.a_RI, (0, 0, 0, more)).contiguous()
        tensors[f"{IN_PEFT}{layer}.lora_B.weight"] = pad(change.b_OR, (0, more)).contiguous()
    write_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
