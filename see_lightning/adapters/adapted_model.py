"""A frozen base model whose linear layers are hooked: LoRA adapters beside them, and observers of what passes through.

PEFT makes the adapters and PEFT's own layers stay switched off: what is added to a layer's output is decided by the hook,
which stands on the base model's layer itself and so is there without any adapter.

Letters: R rank, I and O the sizes of a layer's input and output.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from see_lightning.adapters.targets import target_layers
from see_lightning.adapters.weight_cache import WeightCache
from see_lightning.config.schema import AdapterConfig

#: A layer's name, its input and its output; gives the output with what is added to it.
Apply = Callable[[str, Tensor, Tensor], Tensor]
Observer = Callable[..., object]
#: What stands before a layer's name in PEFT's model and files.
IN_PEFT = "base_model.model."


def _in_peft(name: str) -> str:
    """An expert's name inside PEFT.

    There it is part of parameters' names and of torch containers, so a task called ``0`` or ``layers`` would take other
    experts' weights for its own, and one called ``train`` or ``keys`` would be refused. None of it reaches a file.
    """
    return f"expert_{name}"


class AdaptedModel(nn.Module):
    """The base model, its hooked layers and the LoRA adapters beside them.

    Args:
        base: a frozen causal language model.
        adapter: rank, scale, dropout and targets of every adapter.
    """

    def __init__(self, base: PreTrainedModel, adapter: AdapterConfig) -> None:
        super().__init__()
        self.model: PreTrainedModel | PeftModel = base
        self.adapter = adapter
        #: The base model's layers that adapters adapt, by their names in it, in its order.
        self.layers: dict[str, nn.Module] = target_layers(base, adapter.targets)
        self.cache = WeightCache()
        self._apply_now: Apply | None = None
        self._observers: list[tuple[Observer, bool]] = []
        self._lora: dict[str, LoraLayer] = {}
        for name, layer in self.layers.items():
            layer.register_forward_hook(partial(self._hook, name))

    # ------------------------------------------------------------------------------------------ layers

    def _hook(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._apply_now is not None:
            output = self._apply_now(name, inputs[0], output)
        for observer, outputs in self._observers:
            observer(name, inputs[0], output) if outputs else observer(name, inputs[0])
        return output

    @contextmanager
    def _with(self, apply: Apply | None) -> Iterator[nn.Module]:
        before, self._apply_now = self._apply_now, apply
        try:
            yield self.model
        finally:
            self._apply_now = before

    @contextmanager
    def observe(self, observer: Observer, outputs: bool = False) -> Iterator[None]:
        """Hand over what passes through the adapted layers, in every pass within the context.

        Args:
            observer: called with a layer's name and its input, (B, S, I), and with its output, (B, S, O), if ``outputs``:
                the output as the next layer gets it, with what an adapter adds. Padding is part of both. The tensors are
                those of the pass, with their gradients: detach what is kept.
            outputs: whether outputs are handed over too.
        """
        entry = (observer, outputs)
        self._observers.append(entry)
        try:
            yield
        finally:
            self._observers = [other for other in self._observers if other is not entry]

    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def is_exact(self) -> bool:
        """Whether the precision is such that no row of a batch sways what another's most probable token is."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype == torch.float32

    # ------------------------------------------------------------------------------------------ LoRA adapters

    def add_adapter(self, adapter: str, weights_seed: int, times: int = 1) -> None:
        """Add a LoRA adapter; it does not act by itself.

        Args:
            adapter: unique among all adapters and experts.
            weights_seed: draws its first weights, which depend on nothing else.
            times: how often the configured rank stands side by side in it, each with the configured scale.
        """
        config = LoraConfig(
            r=times * self.adapter.rank,
            lora_alpha=times * self.adapter.alpha,  # type: ignore[arg-type]  # PEFT divides by it: any number serves
            lora_dropout=self.adapter.dropout,
            target_modules=self.adapter.targets,
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            # PEFT asks transformers by a name that the latter gives up.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT sets it right by itself
            torch.manual_seed(weights_seed)
            if isinstance(self.model, PeftModel):
                self.model.add_adapter(_in_peft(adapter), config)
            else:
                self.model = get_peft_model(self.model, config, adapter_name=_in_peft(adapter))
                found = ((name, self.model.get_submodule(IN_PEFT + name)) for name in self.layers)
                self._lora = {name: layer for name, layer in found if isinstance(layer, LoraLayer)}
            self.model.base_model.disable_adapter_layers()  # the hook adds what adapters add

    def load_weights(self, adapter: str, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Give an adapter other weights: A and B of each layer, which are copied."""
        with torch.no_grad():
            for layer, values in pairs.items():
                for parameter, value in zip(self.pair(layer, adapter), values, strict=True):
                    parameter.copy_(value)

    def settings(self, adapter: str) -> dict[str, Any]:
        """PEFT's settings of an adapter."""
        assert isinstance(self.model, PeftModel)
        settings: dict[str, Any] = self.model.peft_config[_in_peft(adapter)].to_dict()
        return settings

    def _train_adapter(self, adapter: str) -> None:
        """Make an adapter the only trainable one."""
        assert isinstance(self.model, PeftModel)
        self.model.set_adapter(_in_peft(adapter))

    def pair(self, layer: str, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """An adapter's parameters at a layer: A, (R, I), and B, (O, R)."""
        at, name = self._lora[layer], _in_peft(adapter)
        return at.lora_A[name].weight, at.lora_B[name].weight

    def pairs(self, adapter: str) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """An adapter's parameters at every layer, by the layers' names."""
        return {layer: self.pair(layer, adapter) for layer in self.layers}

    def weights_of(self, adapters: Iterable[str], layers: Iterable[str] | None = None) -> list[nn.Parameter]:
        """A and B of some adapters at some layers, or at all."""
        layers = self.layers if layers is None else layers
        return [weight for layer in layers for adapter in adapters for weight in self.pair(layer, adapter)]

    def scale(self, layer: str, adapter: str) -> float:
        """Factor of an adapter's update."""
        return float(self._lora[layer].scaling[_in_peft(adapter)])

    def delta(self, layer: str, adapter: str) -> Tensor:
        """The change of a layer's weight that an adapter amounts to, scale times B A, (O, I), in full precision."""
        a, b = self.pair(layer, adapter)
        return self.scale(layer, adapter) * (b.detach().float() @ a.detach().float())

    def adapter_bytes(self, adapter: str) -> int:
        """How much an adapter's weights take."""
        return sum(weight.nbytes for weight in self.weights_of([adapter]))

    def dropout(self) -> float:
        """Share of a layer's input that an adapter in training leaves out, 0..1."""
        return self.adapter.dropout if self.training else 0.0
