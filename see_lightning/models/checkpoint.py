"""The weights of a model's folder, read one tensor at a time."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from see_lightning.errors import ConfigError
from see_lightning.files.reading import sha256
from see_lightning.files.run_files import read_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """A causal language model that transformers has saved as safetensors, in one file or several.

    Args:
        folder: of the model.

    Raises:
        ConfigError: the folder has no such files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / INDEX).is_file():
            self.files: dict[str, str] = read_file(folder / INDEX)["weight_map"]
        elif (folder / SINGLE).is_file():
            with self._open(SINGLE) as file:
                self.files = dict.fromkeys(file.keys(), SINGLE)
        else:
            raise ConfigError(f"{folder} has no {SINGLE}; give the folder of a model that transformers has saved.")

    def _open(self, name: str) -> safe_open:
        try:
            return safe_open(self.folder / name, "pt")
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{self.folder / name} cannot be read: {error}") from error

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name, in fp32."""
        with self._open(self.files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor.float()

    def matrices(self) -> Iterator[tuple[str, bool]]:
        """The linear layers whose weights are in the files, and whether a weight is (inputs, outputs), as GPT-2's."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.folder))
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | Conv1D) and f"{name}.weight" in self.files:
                yield name, isinstance(module, Conv1D)

    def check_tokenizer(self, other: "Checkpoint") -> None:
        """Refuse another model with another tokenizer; one without ``tokenizer.json`` is not compared.

        Raises:
            ConfigError: the tokenizers differ.
        """
        ours, theirs = (one.folder / "tokenizer.json" for one in (self, other))
        if ours.is_file() and theirs.is_file() and sha256(ours) != sha256(theirs):
            raise ConfigError(
                f"{self.folder} and {other.folder} have different tokenizers, so a token of one means another in the other."
            )
