"""Prompts kept as read: each once, within a budget, and as good as read anew."""

import random

import pytest
import torch

from see_lightning.inference.forward import extend
from see_lightning.inference.kv_cache import KVCache
from see_lightning.inference.prefix_cache import PrefillCache, PromptCache
from see_lightning.models.tiny import tiny_model

START = [30 + n % 200 for n in range(150)]  # what prompts of one task begin with
BYTES = 2 * 2 * 2 * 8 * 4  # of a token: two layers, keys and values, two heads of eight numbers


@pytest.mark.parametrize("size", [1, 2, 9, 20])
def test_what_prompts_begin_with_is_read_once_and_each_prompt_once_however_often_it_comes(size):
    model, kept = tiny_model().eval(), PromptCache(1.0)
    prompts = [[*START, 3 + n, *range(3, 3 + n)] for n in range(size)]
    own = sum(len(prompt) for prompt in prompts)
    with torch.no_grad():
        kept.fill(model, prompts + prompts[:1])
        read = own if size == 1 else own - len(START) * (size - 1)
        assert kept.tokens_read == read
        assert kept.held == own * BYTES
        kept.fill(model, prompts)
        for chosen in (prompts, prompts[::-1], prompts[:1] * 3):
            found = kept.batch(model, chosen)
            logits, _ = extend(model, found, [[7]] * len(chosen))
            for logits_KV, prompt in zip(logits, chosen, strict=True):
                alone = model(input_ids=torch.tensor([[*prompt, 7]])).logits[0, -1]
                torch.testing.assert_close(logits_KV[0], alone, atol=1e-5, rtol=1e-5)
        assert kept.tokens_read == read
        kept.batch(model, [[5, 6, 7], prompts[0]])
        assert kept.tokens_read == read + 3
        kept.clear()
        assert (kept.held, len(kept._kept)) == (0, 0)
        kept.batch(model, prompts)
    assert kept.tokens_read == read + 3 + own


@pytest.mark.parametrize("tokens_kept", [0, 1, 155, 320, 10_000])
def test_the_budget_is_never_exceeded_and_what_does_not_fit_is_read_again_each_time(tokens_kept):
    model, kept = tiny_model().eval(), PromptCache(tokens_kept * BYTES / 1e9)
    prompts = [[*START, 3 + n, *range(3, 3 + n)] for n in range(12)]
    random.Random(0).shuffle(prompts)
    with torch.no_grad():
        kept.fill(model, prompts)
        assert kept.held <= kept.budget
        read, missing = kept.tokens_read, [prompt for prompt in prompts if tuple(prompt) not in kept._kept]
        assert kept.held == BYTES * sum(map(len, kept._kept))
        assert (len(missing) == 0) == (tokens_kept == 10_000)
        for time in (1, 2):
            found = kept.batch(model, prompts)
            assert kept.tokens_read == read + time * sum(map(len, missing))
        logits, _ = extend(model, found, [[7]] * len(prompts))
        for logits_KV, prompt in zip(logits, prompts, strict=True):
            alone = model(input_ids=torch.tensor([[*prompt, 7]])).logits[0, -1]
            torch.testing.assert_close(logits_KV[0], alone, atol=1e-5, rtol=1e-5)
    assert kept.held <= kept.budget


def test_batches_of_queries_are_read_once_while_there_is_room_and_the_others_each_time():
    model = tiny_model().eval()
    batches = [[[5, 6, 7], [8]], [[9, 9]], [[5, 6, 7]]]  # as wide as 6, 2 and 3 tokens
    kept, made = PrefillCache(8 * BYTES / 1e9), []

    def read(prompts: list[list[int]]) -> KVCache:
        made.append(prompts)
        with torch.no_grad():
            return extend(model, None, prompts)[1]

    first = [kept.get(batch, lambda batch=batch: read(batch)) for batch in batches]
    again = [kept.get(batch, lambda batch=batch: read(batch)) for batch in batches]
    assert made == [*batches, batches[2]]
    assert kept.held == kept.budget == 8 * BYTES
    assert [here is there for here, there in zip(first, again, strict=True)] == [True, True, False]
