"""Rows written together against Hugging Face's own decoding, one row at a time and unpadded."""

import copy
import random
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from see_lightning.inference.decoder import BatchDecoder, Decoded, RowState
from see_lightning.inference.forward import extend
from see_lightning.models.tiny import tiny_model

MODEL = tiny_model().eval()
ADAPTERS = {"plain": MODEL, "other": tiny_model().eval()}
with torch.no_grad():
    for parameter in ADAPTERS["other"].parameters():
        parameter.add_(0.02)


def prompts(case: int, rows: int = 7) -> list[list[int]]:
    draw = random.Random(case)
    return [[draw.randint(3, 258) for _ in range(draw.randint(1, 40))] for _ in range(rows)]


def alone(prompt: list[int], limit: int, eos_ids: set[int], model: nn.Module = MODEL) -> Decoded:
    """The oracle: ``generate`` on one prompt."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit,
            eos_token_id=sorted(eos_ids) or None, pad_token_id=0,
        )  # fmt: skip
    new = out[0, len(prompt) :].tolist()
    return Decoded(new[:-1], True) if new[-1] in eos_ids else Decoded(new, False)


def together(
    rows: list[list[int]],
    limit: int | list[int],
    eos_ids: set[int],
    *,
    stop: Callable[[int, list[int]], bool] = lambda key, ids: False,
    places: int = 100,
    portion: int = 100,
    model: nn.Module = MODEL,
) -> list[Decoded]:
    """At most ``places`` rows at once, which join in portions as soon as there is room for one."""
    limits = limit if isinstance(limit, list) else [limit] * len(rows)
    decoder = BatchDecoder(lambda adapters: nullcontext(model), eos_ids)
    with torch.inference_mode():
        for start in range(0, len(rows), portion):
            part = rows[start : start + portion]
            decoder.decode_until(places - len(part))
            assert len(decoder.rows) <= places - len(part)
            logits_BKV, read = extend(model, None, part)
            numbers = range(start, start + len(part))
            new = [RowState(n, None, [], limits[n], partial(stop, n)) for n in numbers]
            decoder.start(logits_BKV[:, -1], read, new)
        decoder.decode_until(0)
    assert (decoder.rows, decoder.read) == ([], None), "rows that left are still held"
    return [decoder.done[n] for n in range(len(rows))]


def common(rows: list[list[int]], limit: int, number: int) -> set[int]:
    """End tokens that end some rows early and others not: a few of those that the model writes somewhere."""
    written = [set(alone(row, limit, set()).ids) for row in rows]
    every = sorted(set.union(*written))
    return set(random.Random(number).sample(every, number))


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize(("ends", "places", "portion"), [(0, 4, 2), (1, 3, 1), (4, 100, 100), (4, 5, 3), (12, 1, 1)])
def test_rows_written_together_are_word_for_word_those_decoded_alone(case, ends, places, portion):
    rows = prompts(case)
    eos_ids = common(rows, 12, ends)
    assert together(rows, 12, eos_ids, places=places, portion=portion) == [alone(row, 12, eos_ids) for row in rows]


def test_the_cases_above_have_rows_that_end_at_different_times_and_rows_that_are_cut():
    decoded = [row for case in range(4) for row in together(prompts(case), 12, common(prompts(case), 12, 4))]
    assert len({len(row.ids) for row in decoded if row.ended}) >= 4
    assert {len(row.ids) for row in decoded if not row.ended} == {12}
    assert 5 <= sum(row.ended for row in decoded) <= len(decoded) - 5


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_row_is_longer_than_the_limit_and_one_cut_there_has_not_ended(limit):
    rows = prompts(0)
    assert together(rows, limit, set()) == [Decoded(alone(row, limit, set()).ids, ended=False) for row in rows]
    assert {len(row.ids) for row in together(rows, limit, set())} == {limit}


def test_each_row_has_a_limit_of_its_own():
    rows, limits = prompts(0), [3, 1, 9, 2, 5, 1, 4]
    expected = [alone(row, limit, set()) for row, limit in zip(rows, limits, strict=True)]
    assert together(rows, limits, set(), places=4, portion=2) == expected


def test_a_row_whose_first_token_ends_it_is_empty_and_has_ended_and_is_never_computed():
    rows = prompts(1)
    first = together(rows, 1, set())
    assert together(rows, 5, {first[2].ids[0]})[2] == Decoded([], ended=True)
    assert together(rows[2:3], 5, {first[2].ids[0]}) == [Decoded([], ended=True)]


def test_an_end_token_at_the_limit_is_an_end():
    row = prompts(1)[0]
    ids = alone(row, 3, set()).ids
    assert ids[2] not in ids[:2]
    assert together([row], 3, {ids[2]}) == [Decoded(ids[:2], ended=True)]


def test_stop_ends_its_own_row_after_the_token_it_saw_and_no_other_row():
    rows = prompts(2)
    whole = together(rows, 9, set())
    seen: list[tuple[Hashable, tuple[int, ...]]] = []

    def stop(row: int, ids: list[int]) -> bool:
        seen.append((row, tuple(ids)))
        return len(ids) == row + 1

    stopped = together(rows, 9, set(), stop=stop, places=4, portion=2)
    assert stopped == [Decoded(one.ids[: row + 1], ended=False) for row, one in enumerate(whole)]
    # Asked once after every token, with all tokens of its row so far.
    assert sorted(seen) == sorted(
        (row, tuple(one.ids[:count])) for row, one in enumerate(stopped) for count in range(1, len(one.ids) + 1)
    )


def test_stop_is_not_asked_about_an_end_token():
    rows = prompts(1)
    eos_ids = common(rows, 9, 4)
    seen: list[int] = []
    together(rows, 9, eos_ids, stop=lambda row, ids: bool(seen.append(ids[-1])))
    assert seen
    assert not eos_ids & set(seen)


def test_rows_that_bring_several_tokens_and_stand_in_any_order_go_on_from_their_own_columns():
    """As accepted queries do: the verdict's tokens were read beside others that do not count."""
    rows = prompts(3, rows=4)
    begun = [alone(row, 3, set()).ids for row in rows]
    order = [2, 0, 3]  # row 1 does not join
    with torch.inference_mode():
        _, read = extend(MODEL, None, [row + ids[:2] + [77, 78] for row, ids in zip(rows, begun, strict=True)])
        mask_BK = read.mask_BK.clone()
        mask_BK[:, -2:] = False  # the last two tokens were tried in vain
        decoder = BatchDecoder(lambda adapters: nullcontext(MODEL), set())
        decoder.join(read, [RowState(n, None, list(begun[n]), 8) for n in order], order, mask_BK[order])
        decoder.decode_until(0)
    assert decoder.done == {n: alone(rows[n], 8, set()) for n in order}


def test_the_model_is_asked_for_with_the_voices_of_the_rows_there_are():
    """Each voice is a model here; rows of one are written on their own and compared with it."""
    rows, limits = prompts(5, rows=4), [6, 2, 4, 3]
    adapters = ["plain", "other", "other", "plain"]
    asked: list[list[str | None]] = []

    class Mixed(nn.Module):
        """Computes each row by its own model, and picks."""

        def forward(self, **given: object) -> object:
            outs = {
                name: model(**copy.deepcopy(given)) for name, model in ADAPTERS.items()
            }  # each adds to its own cache
            chosen = outs["plain"]
            rows = [n for n, name in enumerate(asked[-1]) if name == "other"]
            chosen.logits[rows] = outs["other"].logits[rows]
            for layer, other in zip(chosen.past_key_values.layers, outs["other"].past_key_values.layers, strict=True):
                layer.keys[rows], layer.values[rows] = other.keys[rows], other.values[rows]
            return chosen

        def parameters(self, recurse: bool = True):
            return MODEL.parameters()

    def use_adapter(adapters):
        asked.append(list(adapters))
        return nullcontext(Mixed())

    decoder = BatchDecoder(use_adapter, set())
    with torch.inference_mode():
        for n, row in enumerate(rows):
            logits_BKV, read = extend(ADAPTERS[adapters[n]], None, [row])
            decoder.start(logits_BKV[:, -1], read, [RowState(n, adapters[n], [], limits[n])])
        decoder.decode_until(0)
    assert decoder.done == {n: alone(row, limits[n], set(), ADAPTERS[adapters[n]]) for n, row in enumerate(rows)}
    assert asked == [adapters, ["plain", "other", "plain"], ["plain", "other"], ["plain"], ["plain"]]


class Counting(nn.Module):
    """A model that notes the shape of everything it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MODEL
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, **given: object) -> object:
        self.shapes.append(tuple(given["input_ids"].shape))
        return self.inner(**given)


def test_the_prompt_is_read_once_and_a_row_that_left_is_computed_no_more():
    rows, model = prompts(4), Counting()
    eos_ids = common(rows, 10, 4)
    decoded = together(rows, 10, eos_ids, model=model)
    computed = [len(row.ids) + row.ended for row in decoded]
    assert len(set(computed)) > 2
    assert model.shapes == [(len(rows), max(map(len, rows)))] + [
        (sum(n > step for n in computed), 1) for step in range(1, max(computed))
    ]
