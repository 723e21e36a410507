"""Logits of given answers behind prompts, under one adapter.

Letters: B rows, K tokens of an answer, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from see_lightning.adapters.pool import ExpertPool
from see_lightning.inference.forward import extend
from see_lightning.inference.kv_cache import KVCache
from see_lightning.tasks.batches import cut


def answer_logits(
    pool: ExpertPool, adapter: str | None, logits_BV: Tensor, read: KVCache, rows: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """The logits that predict each token of given answers; for each answer (K, V), in fp32.

    Args:
        pool: of the adapter.
        adapter: an expert's name; None is the base model.
        logits_BV: of the first answer token, from ``ExpertPool.prefill``.
        read: the prompts' KV cache, from the same call.
        rows: the answer of each prompt, K token ids.
    """
    width = max(map(len, rows)) - 1  # nothing is scored behind the last token
    rest_BKV = logits_BV[:, None][:, :0]
    if width > 0:
        with pool.use_adapter(adapter) as model:
            rest_BKV, _ = extend(model, read, [list(row[:-1]) for row in rows], keep=range(-width, 0))
    for place, row in enumerate(rows):
        # Answers end at the right edge; the columns before a shorter one are padding.
        yield torch.cat([logits_BV[place, None], rest_BKV[place, max(width, 0) + 1 - len(row) :]])[: len(row)].float()


@torch.no_grad()
def token_nlls(
    pool: ExpertPool, adapter: str | None, prompts: Sequence[list[int]], targets: Sequence[list[int]], *, rows: int
) -> list[Tensor]:
    """Negative log-likelihood of each token of each target, in nats, with the same forward passes as in decoding.

    Args:
        pool: with the adapter.
        adapter: an expert's name; None is the base model.
        prompts: token ids.
        targets: token ids, at least one each.
        rows: prompts in a batch.
    """
    found: dict[int, Tensor] = {}
    start = pool.prefill_prefix(adapter, prompts)
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))  # rows of a batch have similar lengths
    for portion in cut(order, rows):
        logits_BV, read = pool.prefill(adapter, [prompts[row] for row in portion], start)
        rows_of = [targets[row] for row in portion]
        for row, logits_KV in zip(portion, answer_logits(pool, adapter, logits_BV, read, rows_of), strict=True):
            target_K = torch.tensor(targets[row], device=logits_KV.device)
            found[row] = cross_entropy(logits_KV, target_K, reduction="none").cpu()
    return [found[row] for row in range(len(prompts))]


def prefix_tokens(ids: Sequence[int], prefix_ids: Sequence[int]) -> int:
    """How many tokens of an answer belong to its forced prefix alone.

    The blank behind an indicator may be one token with the start of the answer; that token belongs to the answer.

    Args:
        ids: of the prefix and the answer as one text.
        prefix_ids: of the prefix alone.

    >>> prefix_tokens([7, 8, 5, 6], [7, 8, 9])
    2
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, prefix_ids, strict=False)))
