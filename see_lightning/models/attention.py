"""Attention for a CPU: that of transformers' ``eager``, without copying shared keys and values once per head.

Letters: B rows, H heads of queries, G heads of keys and values, Q queries, K keys, D size of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "grouped"
# Models whose attention is no more than this: no cap on the scores, no sink, no window.
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
        module: of the model, not used.
        query_BHQD: queries.
        key_BGKD: keys.
        value_BGKD: values.
        attention_mask: added to the scores, (B, 1, Q, K).
        scaling: of the scores.
        dropout: share of the weights dropped.

    Returns:
        (B, Q, H, D), and no weights.
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
