"""Experts: named LoRA adapters around one frozen base model, kept in order of birth."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from see_lightning.config import AdapterConfig, ConfigError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's own names


def _in_peft(name: str) -> str:
    """An expert's name inside PEFT.

    There it is part of parameters' names and of torch containers, so a task called ``0`` or ``layers`` would take other
    experts' weights for its own, and one called ``train`` or ``keys`` would be refused. None of it reaches a file.
    """
    return f"expert_{name}"


class ExpertPool(nn.Module):
    """The base model and its experts. At any moment one expert is active, or none.

    Args:
        base: a frozen causal language model.
        adapter: rank, scale, dropout and targets of every expert.
        base_id: the base model's name in the experts' files.
        revision: its revision there.
    """

    def __init__(
        self, base: PreTrainedModel, adapter: AdapterConfig, base_id: str, revision: str | None = None
    ) -> None:
        super().__init__()
        self.model: PreTrainedModel | PeftModel = base
        self.adapter, self.base_id, self.revision = adapter, base_id, revision
        self.names: list[str] = []

    def attach(self, name: str, weights_seed: int) -> None:
        """Add a new expert, make it the active one and the only one that can be trained.

        Args:
            name: unique in the pool.
            weights_seed: draws its first weights, so they do not hang on what was drawn before.
        """
        if name in self.names:
            raise ConfigError(f"there is an expert named {name!r} already; experts are {', '.join(self.names)}.")
        config = LoraConfig(
            r=self.adapter.rank,
            lora_alpha=self.adapter.alpha,  # type: ignore[arg-type]  # PEFT divides by it: any number serves
            lora_dropout=self.adapter.dropout,
            target_modules=self.adapter.targets,
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            # PEFT asks transformers by a name that the latter gives up.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            torch.manual_seed(weights_seed)
            if isinstance(self.model, PeftModel):
                self.model.add_adapter(_in_peft(name), config)
            else:
                self.model = get_peft_model(self.model, config, adapter_name=_in_peft(name))
        self.names.append(name)
        self.train_only(name)

    def train_only(self, name: str) -> None:
        """Make an expert the active and the only trainable one, and switch dropout on."""
        assert isinstance(self.model, PeftModel)
        self.model.set_adapter(_in_peft(name))
        self.model.train()

    @contextmanager
    def active(self, name: str) -> Iterator[nn.Module]:
        """The model with one expert, frozen."""
        if name not in self.names:
            raise KeyError(f"no expert named {name!r}; experts are {', '.join(self.names) or '(none)'}")
        assert isinstance(self.model, PeftModel)
        self.model.set_adapter(_in_peft(name), inference_mode=True)
        yield self.model

    @contextmanager
    def base(self) -> Iterator[nn.Module]:
        """The base model with every adapter off."""
        if isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                yield self.model
        else:
            yield self.model

    def save(self, name: str, folder: Path) -> None:
        """Write an expert as a plain PEFT adapter folder, which ``PeftModel.from_pretrained`` loads."""
        assert isinstance(self.model, PeftModel)
        folder.mkdir(parents=True, exist_ok=True)
        weights = get_peft_model_state_dict(self.model, adapter_name=_in_peft(name), save_embedding_layers=False)
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / WEIGHTS, {"format": "pt"})
        (folder / WEIGHTS).chmod(0o644)  # safetensors writes 0600 whatever the umask
        config = self.model.peft_config[_in_peft(name)].to_dict()
        config |= {"inference_mode": True, "base_model_name_or_path": self.base_id, "revision": self.revision}
        # PEFT keeps names in sets, whose order changes from process to process; sorted, the file does not.
        text = json.dumps(config, indent=2, sort_keys=True, default=sorted)
        (folder / CONFIG).write_text(text + "\n")

    def load(self, name: str, folder: Path) -> None:
        """Read an expert's weights from its folder; attach it first if it is new.

        Raises:
            ConfigError: the folder's tensors are not exactly those that this pool's experts have.
        """
        if name not in self.names:
            self.attach(name, weights_seed=0)
        assert isinstance(self.model, PeftModel)
        found = load_file(folder / WEIGHTS)
        wanted = get_peft_model_state_dict(self.model, adapter_name=_in_peft(name), save_embedding_layers=False)
        differing = [
            key for key in found.keys() | wanted.keys()
            if key not in found or key not in wanted or found[key].shape != wanted[key].shape
        ]  # fmt: skip
        if differing:
            raise ConfigError(
                f"{folder / WEIGHTS} does not hold an expert of this run: {sorted(differing)[0]} differs."
            )
        set_peft_model_state_dict(self.model, found, adapter_name=_in_peft(name))
