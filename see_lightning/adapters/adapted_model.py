"""A frozen base model with a forward hook on each adapted layer, which applies LoRA adapters and calls observers.

PEFT creates the adapters, and PEFT's own layers stay disabled: the hook adds an adapter's update to the layer's output. The
hook sits on the base model's layer itself, so it also works before any adapter is added.

Letters: R rank, I and O the sizes of a layer's input and output.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel

from see_lightning.adapters.quantization import packed, packed_bytes, relative_error, unpacked
from see_lightning.adapters.targets import target_layers
from see_lightning.adapters.weight_cache import WeightCache
from see_lightning.config.schema import AdapterConfig
from see_lightning.errors import ConfigError
from see_lightning.models.architecture import decoder_layers

#: Takes a layer's name, its input and its output, and returns the output with an adapter's update added.
Apply = Callable[[str, Tensor, Tensor], Tensor]
Observer = Callable[..., object]
#: Prefix of a layer's name in PEFT's model and files.
IN_PEFT = "base_model.model."


def _in_peft(name: str) -> str:
    """An expert's name inside PEFT.

    PEFT puts an adapter's name into the names of parameters and into torch containers. Without a prefix, an expert called
    ``0`` or ``layers`` would match other experts' weights, and one called ``train`` or ``keys`` would be refused. The prefix
    is not written to files.
    """
    return f"expert_{name}"


class AdaptedModel(nn.Module):
    """The base model, its hooked layers, and the LoRA adapters on them.

    Args:
        base: a frozen causal language model.
        adapter: rank, scale, dropout and targets of every adapter.
    """

    def __init__(self, base: PreTrainedModel, adapter: AdapterConfig) -> None:
        super().__init__()
        self.model: PreTrainedModel | PeftModel = base
        self.adapter = adapter
        #: The adapted layers of the base model by name, in the model's order.
        self.layers: dict[str, nn.Module] = target_layers(base, adapter.targets)
        self.cache = WeightCache()
        self._apply_now: Apply | None = None
        self._observers: list[tuple[Observer, bool]] = []
        self._lora: dict[str, LoraLayer] = {}
        self._prefix_acts = False
        base.base_model.register_forward_pre_hook(self._check_prefix, with_kwargs=True)
        for name, layer in self.layers.items():
            layer.register_forward_hook(partial(self._hook, name))

    # ------------------------------------------------------------------------------------------ layers

    def _hook(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._apply_now is not None:
            output = self._apply_now(name, inputs[0], output)
        for observer, outputs in self._observers:
            observer(name, inputs[0], output) if outputs else observer(name, inputs[0])
        return output

    def _check_prefix(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._prefix_acts and named.get("past_key_values") is None:
            raise ConfigError("a prefix acts from the KV cache, and this pass has none: begin it with pool.prefill.")

    @contextmanager
    def _with(self, apply: Apply | None, prefix: bool = False) -> Iterator[nn.Module]:
        """The model with an adapter; ``prefix``: it acts from the KV cache, in some rows at least."""
        before = self._apply_now, self._prefix_acts
        self._apply_now, self._prefix_acts = apply, prefix
        try:
            yield self.model
        finally:
            self._apply_now, self._prefix_acts = before

    @contextmanager
    def observe(self, observer: Observer, outputs: bool = False) -> Iterator[None]:
        """Call a function with the input of every adapted layer, in every forward pass inside the context.

        Args:
            observer: called with a layer's name and its input, (B, S, I), and with its output, (B, S, O), if ``outputs``.
                The output includes the adapter's update. Both include padding. The tensors are those of the forward pass,
                with their gradients: detach them before you store them.
            outputs: whether the observer gets outputs too.
        """
        entry = (observer, outputs)
        self._observers.append(entry)
        try:
            yield
        finally:
            self._observers = [other for other in self._observers if other is not entry]

    def checkpoint_gradients(self) -> None:
        """Keep only the input of each decoder layer for the backward pass, in which the rest is computed again.

        Gradients are the same. Passes over a KV cache are left as they are: computed again, they would extend it twice.

        Raises:
            ConfigError: the model's class does not name its decoder layers.
        """
        layers = decoder_layers(self.model)
        if not layers:
            raise ConfigError(
                f"{type(self.model).__name__} does not name its decoder layers, so none can be computed again; write"
                f" model.gradient_checkpointing=off."
            )
        for layer in layers:
            layer.forward = partial(self._checkpointed, layer.forward)

    def _checkpointed(self, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled() or any(isinstance(one, Cache) for one in (*inputs, *named.values())):
            return forward(*inputs, **named)
        apply, prefix, states = self._apply_now, self._prefix_acts, self._of_pass()

        @contextmanager
        def again() -> Iterator[None]:
            now, observers = self._of_pass(), self._observers
            self._observers = []  # they have seen this pass
            self._set_of_pass(states)
            try:
                with self._with(apply, prefix):
                    yield
            finally:  # it may end by an exception, when all that is needed is computed
                self._set_of_pass(now)
                self._observers = observers

        return checkpoint(
            partial(forward, **named), *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), again())
        )

    def _of_pass(self) -> list[tuple[Any, Any]]:
        """What a forward pass depends on besides weights and inputs, with the objects that hold it as ``of_pass``."""
        return []

    @staticmethod
    def _set_of_pass(states: Iterable[tuple[Any, Any]]) -> None:
        for holder, state in states:
            holder.of_pass = state

    def device(self) -> torch.device:
        """The device that the model is on."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def is_exact(self) -> bool:
        """Whether a row's most probable tokens are the same in every batch: so in fp32, not in bf16."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype == torch.float32

    # ------------------------------------------------------------------------------------------ LoRA adapters

    def add_adapter(self, adapter: str, weights_seed: int, times: int = 1) -> None:
        """Add a LoRA adapter. It has no effect until ``use_adapter`` or ``train_only`` selects it.

        It freezes all other adapters, so ``train_only`` is called after it. Unlike an expert it is not in ``names``: such an
        adapter answers no query and is not counted in a method's ``storage``, for instance a teacher.

        Args:
            adapter: unique among all adapters and experts.
            weights_seed: seed of its initial weights, which depend on nothing else.
            times: its rank as a multiple of the configured rank; the scale stays the configured one.
        """
        config = LoraConfig(
            r=times * self.adapter.rank,
            lora_alpha=times * self.adapter.alpha,  # type: ignore[arg-type]  # PEFT annotates int, but accepts any number
            lora_dropout=self.adapter.dropout,
            target_modules=self.adapter.targets,
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            # PEFT calls transformers by a deprecated name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT corrects it itself
            torch.manual_seed(weights_seed)
            if isinstance(self.model, PeftModel):
                self.model.add_adapter(_in_peft(adapter), config)
            else:
                self.model = get_peft_model(self.model, config, adapter_name=_in_peft(adapter))
                modules = ((name, self.model.get_submodule(IN_PEFT + name)) for name in self.layers)
                self._lora = {name: layer for name, layer in modules if isinstance(layer, LoraLayer)}
            self.model.base_model.disable_adapter_layers()  # the hook adds the update

    def has_adapter(self, adapter: str) -> bool:
        """Whether ``add_adapter`` has added an adapter of this name."""
        return isinstance(self.model, PeftModel) and _in_peft(adapter) in self.model.peft_config

    def load_weights(self, adapter: str, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Overwrite an adapter's weights with copies of A, (R, I), and B, (O, R), of each layer."""
        with torch.no_grad():
            for layer, values in pairs.items():
                for parameter, value in zip(self.pair(layer, adapter), values, strict=True):
                    parameter.copy_(value)

    def settings(self, adapter: str) -> dict[str, Any]:
        """PEFT's configuration of an adapter, as written to ``adapter_config.json``."""
        assert isinstance(self.model, PeftModel)
        settings: dict[str, Any] = self.model.peft_config[_in_peft(adapter)].to_dict()
        return settings

    def _train_adapter(self, adapter: str | None) -> None:
        """Make an adapter the only trainable one; None freezes all."""
        if adapter is None:
            self.model.requires_grad_(False)
        else:
            assert isinstance(self.model, PeftModel)
            self.model.set_adapter(_in_peft(adapter))

    def pair(self, layer: str, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """An adapter's parameters at a layer: A, (R, I), and B, (O, R)."""
        lora, name = self._lora[layer], _in_peft(adapter)
        return lora.lora_A[name].weight, lora.lora_B[name].weight

    def pairs(self, adapter: str) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """An adapter's parameters at every layer, by the layers' names."""
        return {layer: self.pair(layer, adapter) for layer in self.layers}

    def matrices(self, adapter: str) -> dict[str, nn.Parameter]:
        """An adapter's parameters by the names ``LAYER.A`` and ``LAYER.B``."""
        pairs = self.pairs(adapter).items()
        return {f"{layer}.{name}": weight for layer, pair in pairs for name, weight in zip("AB", pair, strict=True)}

    def weights_of(self, adapters: Iterable[str], layers: Iterable[str] | None = None) -> list[nn.Parameter]:
        """A and B of some adapters, layer by layer, at the given layers or at all."""
        layers = self.layers if layers is None else layers
        return [weight for layer in layers for adapter in adapters for weight in self.pair(layer, adapter)]

    def scale(self, layer: str, adapter: str) -> float:
        """Factor s of an adapter's update s B A: alpha divided by the rank."""
        return float(self._lora[layer].scaling[_in_peft(adapter)])

    def delta(self, layer: str, adapter: str) -> Tensor:
        """The change of a layer's weight that equals an adapter's update: scale times B A, (O, I), in fp32."""
        a, b = self.pair(layer, adapter)
        return self.scale(layer, adapter) * (b.detach().float() @ a.detach().float())

    def adapter_bytes(self, adapter: str) -> int:
        """Bytes that an adapter's weights take where they are stored."""
        kind = self.adapter.quantization
        return sum(
            weight.nbytes if kind == "none" else packed_bytes(weight.shape, kind)
            for weight in self.weights_of([adapter])
        )

    def quantize(self, adapter: str) -> float:
        """Round an adapter's weights to what is stored of them by ``adapter.quantization``; return their relative error."""
        exact = {
            f"{layer}.lora_{which}.weight": matrix.detach().clone()
            for layer, pair in self.pairs(adapter).items()
            for which, matrix in zip("AB", pair, strict=True)
        }
        stored = unpacked(packed(exact, self.adapter.quantization))
        names = {layer: (f"{layer}.lora_A.weight", f"{layer}.lora_B.weight") for layer in self.layers}
        self.load_weights(adapter, {layer: (stored[a], stored[b]) for layer, (a, b) in names.items()})
        return relative_error(exact, stored)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context without dropout, the base model's and the adapters'."""
        pool, model = self.training, self.model.training
        self.eval()
        try:
            yield
        finally:
            self.train(pool)
            self.model.train(model)

    def dropout(self) -> float:
        """Dropout probability on the input of an adapter: the configured one in training, else 0."""
        return self.adapter.dropout if self.training else 0.0
