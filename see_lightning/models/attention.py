"""Attention for a CPU: as transformers' ``eager``, but grouped keys and values are not copied for each head.

Letters: B rows, H heads of queries, G heads of keys and values, Q queries, K keys, D size of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "grouped"
# Models with plain attention: no soft cap on the scores, no sink tokens, no window.
PLAIN = ("llama", "mistral", "qwen2", "qwen3")


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
    query_BGMD = query_BHQD.reshape(rows, groups, share * queries, size)  # M: the queries of all heads of a group
    scores = (query_BGMD @ key_BGKD.transpose(2, 3) * scaling).view(rows, groups, share, queries, keys)
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, None, :, :keys]
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query_BHQD.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=dropout > 0)
    mixed = weights.view(rows, groups, share * queries, keys) @ value_BGKD
    return mixed.view(rows, heads, queries, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, eager_mask)
