"""Answers that an adapter samples, by random numbers of each row: they do not depend on the other rows of a batch.

Letters: B rows, V vocabulary.
"""

from collections.abc import Collection, Sequence
from random import Random

import torch
from torch import Tensor

from see_lightning.adapters.pool import Adapter, ExpertPool
from see_lightning.inference.forward import extend


def drawn_tokens(logits_BV: Tensor, numbers: Sequence[float], top_k: int = 0) -> list[int]:
    """One token for each row, drawn from the softmax by the inverse of its distribution function.

    Args:
        logits_BV: of the next token.
        numbers: a random number for each row, uniform in 0..1, 1 excluded.
        top_k: only the likeliest tokens are drawn, this many and those as likely as the last of them; 0 is no limit.

    >>> logits = torch.tensor([[1.0, 2.0, 1.0]]).log().expand(4, -1)  # probabilities 1/4, 1/2, 1/4
    >>> drawn_tokens(logits, [0.2, 0.3, 0.7, 0.8])
    [0, 1, 1, 2]
    >>> drawn_tokens(logits, [0.2, 0.3, 0.7, 0.8], top_k=1)
    [1, 1, 1, 1]
    """
    if 0 < top_k < logits_BV.shape[1]:
        least_B1 = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    upto_BV = logits_BV.double().softmax(-1).cumsum(-1)
    # Rounding leaves the last sum beside 1.
    aim_B1 = torch.tensor(numbers, dtype=torch.float64, device=upto_BV.device)[:, None] * upto_BV[:, -1:]
    return [int(token) for token in torch.searchsorted(upto_BV, aim_B1, right=True)[:, 0]]


def sampled_answers(
    pool: ExpertPool,
    adapter: Adapter,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    draws: Sequence[Random],
    eos_ids: Collection[int],
    top_k: int = 0,
) -> list[list[int]]:
    """Token ids of one sampled answer to each prompt, at temperature 1; call it without gradients and dropout.

    Args:
        pool: the model and its adapters.
        adapter: that answers, by its name; None is the base model.
        prompts: token ids.
        limits: most tokens of each answer, at least 1.
        draws: random numbers of each row.
        eos_ids: tokens that end an answer.
        top_k: see ``drawn_tokens``.

    Returns:
        The answers, with the token that ends them unless the limit cut them.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    logits_BV, read = pool.prefill(adapter, prompts)
    while True:
        for row, token in zip(rows, drawn_tokens(logits_BV, [draws[row].random() for row in rows], top_k), strict=True):
            answers[row].append(token)
        places = [
            place
            for place, row in enumerate(rows)
            if answers[row][-1] not in eos_ids and len(answers[row]) < limits[row]
        ]
        if not places:
            return answers
        rows = [rows[place] for place in places]
        with pool.use_adapter(adapter) as model:
            logits_BKV, read = extend(model, read.select(places), [answers[row][-1:] for row in rows])
        logits_BV = logits_BKV[:, -1]
