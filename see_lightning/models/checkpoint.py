"""The weights of a model's folder, read one tensor at a time."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from see_lightning.config.schema import ModelConfig
from see_lightning.errors import ConfigError
from see_lightning.files.reading import sha256
from see_lightning.files.run_files import read_file
from see_lightning.models.digest import model_folder
from see_lightning.models.smollm2 import converted_folder
from see_lightning.models.tiny import tiny_model

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


def exact_weights(config: ModelConfig, cache: Path) -> Callable[[str], Tensor]:
    """The function that gives the weight of a linear layer by its name, in fp32, as the model's files have it.

    It is (O, I), or (I, O) for a layer such as GPT-2's; a name that the files lack is refused.

    Args:
        config: which model.
        cache: where converted models are kept.

    Raises:
        ConfigError: it is not saved as safetensors on this machine.
    """
    if config.source == "tiny":
        model = tiny_model()
        return lambda path: model.get_parameter(f"{path}.weight").detach()
    folder = converted_folder(cache) if config.source == "package" else model_folder(config)
    if folder is None:
        raise ConfigError(f"the files of {config.name} are not on this machine.")
    files = Checkpoint(folder)

    def exact(path: str) -> Tensor:
        names = [f"{path}.weight", f"{path.partition('.')[2]}.weight"]  # files may lack the prefix of the base model
        if not (name := next((one for one in names if one in files.files), None)):
            raise ConfigError(f"{folder} has no {names[0]}.")
        return files.tensor(name)

    return exact
