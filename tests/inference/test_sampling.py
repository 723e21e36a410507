"""Sampling against the distribution that it draws from, and the same draws in every company."""

import math
from contextlib import nullcontext

import pytest
import torch

from see_lightning.inference.decoder import BatchDecoder, DecoderShare, RowState, decode_all, side_by_side
from see_lightning.inference.forward import extend
from see_lightning.inference.sampling import Sampler, nucleus
from see_lightning.models.tiny import tiny_model

MODEL = tiny_model().eval()
LOGITS = torch.tensor([2.0, 0.0, -1.0, 1.5, 0.5])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.3])
def test_tokens_are_drawn_with_the_probabilities_of_the_nucleus(temperature, top_p):
    wanted = (LOGITS.double() / temperature).softmax(-1)
    order = wanted.argsort(descending=True).tolist()
    size = next(n for n in range(1, 6) if sum(wanted[token] for token in order[:n]) >= top_p - 1e-12)
    wanted[order[size:]] = 0
    wanted /= wanted.sum()
    draws, sampler = 20_000, Sampler(temperature, top_p, seed=7)
    counts = torch.bincount(torch.tensor([sampler.choose(LOGITS) for _ in range(draws)]), minlength=5)
    for token in range(5):
        spread = math.sqrt(draws * wanted[token] * (1 - wanted[token]))
        assert abs(counts[token] - draws * wanted[token]) <= 4.5 * spread


@pytest.mark.parametrize("top_p", [1e-9, 0.2, 0.5, 0.9, 0.999, 1.0])
def test_the_nucleus_is_the_smallest_set_of_the_most_probable_tokens(top_p):
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits_V = 3 * torch.randn(12, generator=draw, dtype=torch.float64)
        probabilities = logits_V.softmax(-1)
        inside = nucleus(logits_V, top_p)
        assert inside.any()
        assert inside.all() if top_p == 1 else probabilities[inside].sum() >= top_p - 1e-12
        least = probabilities[inside].min()
        assert top_p == 1 or probabilities[inside].sum() - least < top_p, "one token fewer is not enough"
        assert inside.all() or probabilities[~inside].max() <= least


def test_of_equal_tokens_the_first_is_in_the_nucleus():
    assert nucleus(torch.zeros(4), 0.5).tolist() == [True, True, False, False]


def test_a_seed_gives_the_same_tokens_and_another_one_others():
    def drawn(seed):
        sampler = Sampler(1.0, 1.0, seed)
        return [sampler.choose(LOGITS) for _ in range(50)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_a_small_temperature_takes_the_most_probable_token():
    sampler = Sampler(1e-4, 1.0, seed=0)
    assert {sampler.choose(LOGITS) for _ in range(50)} == {0}


PROMPTS = [[5, 9, 12], [100] * 20, [7, 8, 9, 10, 11, 12, 13], [200, 3]]
SEEDS = [1, 2, 3, None]  # None: the most probable tokens


def new_row(number: int, limit: int = 9) -> RowState[int]:
    seed = SEEDS[number]
    return RowState(number, None, [], limit, sampler=None if seed is None else Sampler(1.0, 0.95, seed))


def new_decoder() -> BatchDecoder:
    return BatchDecoder(lambda adapters: nullcontext(MODEL), set())


def start(decoder, numbers: list[int]) -> None:
    logits_BKV, read = extend(MODEL, None, [PROMPTS[number] for number in numbers])
    decoder.start(logits_BKV[:, -1], read, [new_row(number) for number in numbers])


def alone(number: int) -> list[int]:
    decoder = new_decoder()
    start(decoder, [number])
    decoder.decode_until(0)
    return decoder.done[number].ids


@torch.inference_mode()
def test_a_row_with_a_seed_is_the_same_alone_and_in_company_that_comes_and_goes():
    decoder = new_decoder()
    start(decoder, [0, 1])
    decoder.step()
    start(decoder, [3, 2])
    decoder.decode_until(0)
    assert {number: decoder.done[number].ids for number in range(4)} == {number: alone(number) for number in range(4)}
    assert len({tuple(alone(number)) for number in range(4)}) == 4
    assert all(one.in_company for one in decoder.done.values())


@torch.inference_mode()
def test_a_row_that_was_never_decoded_with_another_one_was_not_in_company():
    decoder = new_decoder()
    for number in (0, 1):
        start(decoder, [number])
        decoder.decode_until(0)
    assert not any(one.in_company for one in decoder.done.values())


@torch.inference_mode()
def test_callers_that_share_a_decoder_may_have_the_same_keys_and_get_their_own_rows():
    decoder = new_decoder()
    shares = [DecoderShare(decoder), DecoderShare(decoder)]
    places = [[0, 1], [2, 3]]

    def answering(share, numbers):
        logits_BKV, read = extend(MODEL, None, [PROMPTS[number] for number in numbers])
        rows = [new_row(number, limit=4 + number) for number in numbers]
        for key, row in enumerate(rows):
            row.key = key
        share.start(logits_BKV[:, -1], read, rows)
        for ended in share.ending(2):
            yield {numbers[key]: one.ids for key, one in ended.items()}

    parts = [answering(share, numbers) for share, numbers in zip(shares, places, strict=True)]
    found = decode_all(side_by_side(parts), decoder)
    assert found == {number: alone(number)[: 4 + number] for number in range(4)}
    assert decoder.rows == []
    assert decoder.done == {}
