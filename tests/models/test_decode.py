"""Batched greedy decoding against Hugging Face's own, one row at a time and unpadded."""

import random

import pytest
import torch
from torch import nn

from see_lightning.models.decode import Decoded, greedy
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.batches import collate

MODEL = tiny_model().eval()


def prompts(case: int, rows: int = 7) -> list[list[int]]:
    draw = random.Random(case)
    return [[draw.randint(3, 258) for _ in range(draw.randint(1, 40))] for _ in range(rows)]


def alone(prompt: list[int], limit: int, eos_ids: set[int]) -> Decoded:
    """The oracle: ``generate`` on one prompt."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = MODEL.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit,
            eos_token_id=sorted(eos_ids) or None, pad_token_id=0,
        )  # fmt: skip
    new = out[0, len(prompt) :].tolist()
    return Decoded(new[:-1], True) if new[-1] in eos_ids else Decoded(new, False)


def together(rows: list[list[int]], limit: int, eos_ids: set[int], **stop: object) -> list[Decoded]:
    ids, mask = collate(rows, None, pad=0)
    with torch.inference_mode():
        return greedy(MODEL, ids, mask, max_new_tokens=limit, eos_ids=eos_ids, **stop)


def common(rows: list[list[int]], limit: int, number: int) -> set[int]:
    """End tokens that end some rows early and others not: a few of those that the model writes somewhere."""
    written = [set(alone(row, limit, set()).ids) for row in rows]
    every = sorted(set.union(*written))
    return set(random.Random(number).sample(every, number))


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("ends", [0, 1, 4, 12])
def test_rows_decoded_together_are_word_for_word_those_decoded_alone(case, ends):
    rows = prompts(case)
    eos_ids = common(rows, 12, ends)
    assert together(rows, 12, eos_ids) == [alone(row, 12, eos_ids) for row in rows]


def test_the_cases_above_have_rows_that_end_at_different_times_and_rows_that_are_cut():
    decoded = [row for case in range(6) for row in together(prompts(case), 12, common(prompts(case), 12, 4))]
    assert len({len(row.ids) for row in decoded if row.ended}) >= 4
    assert {len(row.ids) for row in decoded if not row.ended} == {12}
    assert 5 <= sum(row.ended for row in decoded) <= len(decoded) - 5


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_row_is_longer_than_the_limit_and_one_cut_there_has_not_ended(limit):
    rows = prompts(0)
    assert together(rows, limit, set()) == [Decoded(alone(row, limit, set()).ids, ended=False) for row in rows]
    assert {len(row.ids) for row in together(rows, limit, set())} == {limit}


def test_a_row_whose_first_token_ends_it_is_empty_and_has_ended():
    rows = prompts(1)
    first = together(rows, 1, set())
    assert together(rows, 5, {first[2].ids[0]})[2] == Decoded([], ended=True)


def test_stop_ends_its_own_row_after_the_token_it_saw_and_no_other_row():
    rows = prompts(2)
    whole = together(rows, 9, set())
    seen: list[tuple[int, tuple[int, ...]]] = []

    def stop(row: int, ids: list[int]) -> bool:
        seen.append((row, tuple(ids)))
        return len(ids) == row + 1

    stopped = together(rows, 9, set(), stop=stop)
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


def test_one_row_by_itself_and_one_without_padding_are_decoded_too():
    rows = prompts(3, rows=1)
    assert together(rows, 6, set()) == [alone(rows[0], 6, set())]


class Counting(nn.Module):
    """A model that notes the shape of everything it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int]] = []

    def forward(self, **given: object) -> object:
        self.shapes.append(tuple(given["input_ids"].shape))
        return MODEL(**given)


def test_the_prompt_is_read_once_and_a_row_that_left_is_computed_no_more():
    rows, model = prompts(4), Counting()
    ids, mask = collate(rows, None, pad=0)
    eos_ids = common(rows, 10, 4)
    with torch.inference_mode():
        decoded = greedy(model, ids, mask, max_new_tokens=10, eos_ids=eos_ids)
    computed = [len(row.ids) + row.ended for row in decoded]
    assert len(set(computed)) > 2
    assert model.shapes == [tuple(ids.shape)] + [
        (sum(n > step for n in computed), 1) for step in range(1, max(computed))
    ]
