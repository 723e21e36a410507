"""Attention for a CPU: as transformers' ``eager``, but grouped keys and values are not copied for each head.

For long rows it is torch's fused kernel, which keeps no scores for the backward pass.

Letters: B rows, H heads of queries, G heads of keys and values, Q queries, K keys, D size of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from see_lightning.errors import ConfigError

NAME = "grouped"
# Models with plain attention: no soft cap on the scores, no sink tokens, no window.
PLAIN = ("llama", "mistral", "qwen2", "qwen3")
#: Queries of a row from which on torch's fused kernel is used. With nine heads of 64, its forward and backward pass took 1.5
#: times the time of plain attention at 250 tokens in bf16; at 512 as much in bf16 and two thirds in fp32; half at 1,536.
LONG = 512
#: Words of ``model.attention``, and the names that transformers has for them.
IMPLEMENTATIONS = {"sdpa": "sdpa", "flash": "flash_attention_2", "eager": "eager", "grouped": NAME}


def grouped_attention(
    module: nn.Module,
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention in which H / G heads of queries share a head of keys and values.

    Args:
        module: the attention layer; not used.
        query_BHQD: queries.
        key_BGKD: keys.
        value_BGKD: values.
        attention_mask: added to the scores, (B, 1, Q, K).
        scaling: factor of the scores.
        dropout: probability with which an attention weight is zeroed, 0..1.

    Returns:
        The output, (B, Q, H, D), and None in place of the attention weights.
    """
    (rows, heads, queries, size), groups, keys = query_BHQD.shape, key_BGKD.shape[1], key_BGKD.shape[2]
    share = heads // groups
    if queries >= LONG:
        fused_BHQD = nn.functional.scaled_dot_product_attention(
            query_BHQD,
            key_BGKD,
            value_BGKD,
            attn_mask=None if attention_mask is None else attention_mask[:, :, :, :keys],
            dropout_p=dropout,
            is_causal=attention_mask is None,
            scale=scaling,
            enable_gqa=share > 1,
        )
        return fused_BHQD.transpose(1, 2).contiguous(), None
    query_BGMD = query_BHQD.reshape(rows, groups, share * queries, size)  # M: the queries of all heads of a group
    scores = (query_BGMD @ key_BGKD.transpose(2, 3) * scaling).view(rows, groups, share, queries, keys)
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, None, :, :keys]
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query_BHQD.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=dropout > 0)
    mixed = weights.view(rows, groups, share * queries, keys) @ value_BGKD
    return mixed.view(rows, heads, queries, size).transpose(1, 2).contiguous(), None


def attention_name(word: str, model_type: str, has_gpu: bool) -> str:
    """The name that transformers has for the attention of a model.

    Args:
        word: value of ``model.attention``.
        model_type: of the model's configuration.
        has_gpu: whether the model runs on a GPU.

    Raises:
        ConfigError: there is no such attention for this model or device.
    """
    if word == "auto":
        # On a CPU the fused kernel is slower than plain attention for short rows: by 15 to 30 % of a training step.
        return "sdpa" if has_gpu else NAME if model_type in PLAIN else "eager"
    if word == "grouped" and model_type not in PLAIN:
        raise ConfigError(
            f"model.attention=grouped is for {', '.join(PLAIN)}, whose attention is plain softmax attention; this is a"
            f" {model_type} model: choose eager or sdpa."
        )
    if word == "flash" and not has_gpu:
        raise ConfigError("model.attention=flash needs a GPU and the package flash-attn; choose auto or sdpa.")
    return IMPLEMENTATIONS[word]


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, eager_mask)
