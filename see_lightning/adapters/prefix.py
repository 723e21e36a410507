r"""Prefix tuning: trainable keys and values that stand before every row (Li and Liang, ACL 2021, arXiv 2101.00190).

Letters: L layers, P tokens of the prefix, H heads of keys and values, D size of a head.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from see_lightning.errors import ConfigError
from see_lightning.inference.kv_cache import KVCache


class VirtualTokens(nn.Module, ABC):
    """Trainable tokens before every row: their keys and values are put into the KV cache before a row's first token.

    The weights of the model stay the same. A method keeps a trained one as an attribute, so that it is moved and trained with
    the method.
    """

    adapters: tuple[str, ...] = ()

    @abstractmethod
    def start(self, model: nn.Module, rows: int) -> KVCache:
        """The KV cache that rows begin with, in the model's dtype; gradients reach the tensors that require them.

        Args:
            model: a causal language model.
            rows: size of the batch.
        """

    @abstractmethod
    def weights(self) -> Iterator[Tensor]:
        """All tensors that determine the tokens."""

    def check(self, model: PreTrainedModel | PeftModel, header_ids: Sequence[int]) -> None:
        """Refuse tokens that cannot stand before a model's rows.

        Args:
            model: a causal language model of Hugging Face's.
            header_ids: of activated experts; empty if experts act on the whole prompt.

        Raises:
            ConfigError: experts are activated.
        """
        if header_ids:
            raise ConfigError(
                "a prefix stands before the whole prompt, but activated experts act from its last tokens on, over the base"
                " model's KV cache. Use adapter=lora."
            )

    def add(self, layer: str, x: Tensor) -> Tensor:
        """Refuse to give an update of a layer's output, which a prefix does not have.

        Raises:
            ConfigError: always; a prefix acts in attention.
        """
        raise ConfigError(f"a prefix acts in the KV cache and adds nothing at {layer}; it cannot be part of a sum.")

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output, unchanged."""
        return y

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """Refuse to give A and B, which a prefix does not have.

        Raises:
            ConfigError: always; PEFT's LoRA files hold no keys and values.
        """
        raise ConfigError("a prefix has no A and B, which a LoRA file holds; return its state_dict() from state().")


class Prefix(VirtualTokens):
    """Trainable keys and values of P virtual tokens at every layer; every token of a row attends to them.

    A method returns its ``state_dict()`` from ``state``.

    Positions are those of PEFT's ``PrefixTuningConfig`` and of the paper: the virtual tokens have the positions 0 to P - 1,
    so a row's first token has position P. As in PEFT, keys are stored as attention reads them: a rotary position embedding is
    not applied to them. The MLP that the paper trains the prefix through is left out, as is PEFT's default.

    Args:
        kv: keys and values, (H, P, D) each, of each of the L layers. They are copied, in fp32. To start from the words
            ``ids``: ``[(k[0], v[0]) for k, v in pool.prefill(None, [ids])[1].layers]``.

    Raises:
        ValueError: there is no layer, or layers have different numbers of tokens.
    """

    def __init__(self, kv: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        tokens = sorted({side.shape[-2] for pair in kv for side in pair})
        if len(tokens) != 1:
            raise ValueError(f"a prefix has one number of tokens at all layers, not {tokens}.")
        self.keys, self.values = (
            nn.ParameterList(nn.Parameter(pair[side].detach().float().clone()) for pair in kv) for side in (0, 1)
        )

    def start(self, model: nn.Module, rows: int) -> KVCache:
        """The keys and values as a KV cache."""
        dtype = next(model.parameters()).dtype
        layers = [(k[None].to(dtype), v[None].to(dtype)) for k, v in zip(self.keys, self.values, strict=True)]
        first = layers[0][0]
        return KVCache(layers, torch.ones(1, first.shape[2], dtype=torch.bool, device=first.device)).repeat(rows)

    def check(self, model: PreTrainedModel | PeftModel, header_ids: Sequence[int]) -> None:
        """Refuse a prefix for activated experts, or for a model with another number of layers."""
        super().check(model, header_ids)
        expected = model.config.get_text_config().num_hidden_layers
        if len(self.keys) != expected:
            raise ConfigError(f"a prefix of {len(self.keys)} layers does not fit a model of {expected} layers.")

    def weights(self) -> Iterator[Tensor]:
        """Keys and values, (H, P, D), layer by layer."""
        for pair in zip(self.keys, self.values, strict=True):
            yield from pair
