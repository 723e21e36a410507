"""Greedy decoding of a batch whose rows leave one by one.

Letters: B rows, S tokens so far.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one row generated.

    Args:
        ids: generated tokens, without the end-of-sequence token.
        ended: whether it ended by itself; False if it was cut at the limit or stopped from outside.
    """

    ids: list[int]
    ended: bool


def greedy(
    model: nn.Module,
    input_ids_BS: Tensor,
    attention_mask_BS: Tensor,
    *,
    max_new_tokens: int,
    eos_ids: Collection[int],
    stop: Callable[[int, list[int]], bool] = lambda row, ids: False,
) -> list[Decoded]:
    """The most probable token, again and again, until each row ends.

    The prompt is read once; a row that ends leaves the batch and takes its part of the cache along.

    Args:
        model: a causal language model of Hugging Face's interface.
        input_ids_BS: prompts, padded on the left.
        attention_mask_BS: 1 on tokens, 0 on padding.
        max_new_tokens: most tokens generated per row, at least 1.
        eos_ids: tokens that end a row.
        stop: asked after each new token, with the row's number and its tokens so far; True ends the row.
    """
    generated: list[list[int]] = [[] for _ in range(len(input_ids_BS))]
    ended = [False] * len(generated)
    live = list(range(len(generated)))
    mask_BS, feed_BS, cache = attention_mask_BS, input_ids_BS, None
    position_BS = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)
    while True:
        out = model(
            input_ids=feed_BS,
            attention_mask=mask_BS,
            position_ids=position_BS,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        next_B = out.logits[:, -1].argmax(dim=-1)
        stays = []
        for place, (row, token) in enumerate(zip(live, next_B.tolist(), strict=True)):
            if token in eos_ids:
                ended[row] = True
                continue
            generated[row].append(token)
            if not stop(row, generated[row]) and len(generated[row]) < max_new_tokens:
                stays.append(place)
        if not stays:
            return [Decoded(ids, end) for ids, end in zip(generated, ended, strict=True)]
        if len(stays) < len(live):
            kept = torch.tensor(stays, device=mask_BS.device)
            cache.batch_select_indices(kept)
            next_B, mask_BS, position_BS = next_B[kept], mask_BS[kept], position_BS[kept]
            live = [live[place] for place in stays]
        feed_BS = next_B[:, None]
        position_BS = position_BS[:, -1:] + 1
        mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(live), 1)], dim=1)
