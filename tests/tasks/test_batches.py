"""Batches: padding on the left, labels at the right edge, and each row once an epoch."""

import random
from itertools import pairwise

import pytest

from see_lightning.tasks.batches import IGNORED, collate, left_pad, plan_batches


def ragged(draw: random.Random, rows: int, shortest: int, longest: int) -> list[list[int]]:
    return [[draw.randint(3, 258) for _ in range(draw.randint(shortest, longest))] for _ in range(rows)]


@pytest.mark.parametrize("case", range(20))
def test_a_padded_row_ends_at_the_right_edge_and_holds_nothing_else(case):
    draw = random.Random(case)
    rows = ragged(draw, draw.randint(1, 6), 1, 9)
    padded = left_pad(rows, 0).tolist()
    longest = max(map(len, rows))
    for row, got in zip(rows, padded, strict=True):
        assert len(got) == longest
        assert got[longest - len(row) :] == row
        assert got[: longest - len(row)] == [0] * (longest - len(row))


def test_a_wider_tensor_is_padded_to_the_width_asked_for():
    assert left_pad([[5], [6, 7]], -1, width=4).tolist() == [[-1, -1, -1, 5], [-1, -1, 6, 7]]


@pytest.mark.parametrize("case", range(20))
def test_labels_are_the_answers_at_the_right_edge_and_nowhere_else(case):
    draw = random.Random(case)
    size = draw.randint(1, 6)
    prompts, targets = ragged(draw, size, 1, 12), ragged(draw, size, 1, 5)
    ids, mask, labels = collate(prompts, targets, pad=0)
    for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        assert ids[i][mask[i].bool()].tolist() == prompt + target
        assert labels[i, -len(target) :].tolist() == target
        assert (labels[i, : -len(target)] == IGNORED).all()
        assert mask[i].tolist() == sorted(mask[i].tolist())
    assert ids.shape == mask.shape == labels.shape
    assert ids.shape[1] == max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True))


def test_a_padding_token_inside_a_prompt_is_no_padding():
    _, mask, _ = collate([[0, 0, 4], [4]], [[0], [5]], pad=0)
    assert mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize("case", range(60))
def test_an_epoch_sees_each_row_once_in_full_batches_but_for_one_and_twice_the_same(case):
    draw = random.Random(case)
    lengths = [draw.randint(1, 300) for _ in range(draw.choice([0, 1, 2, draw.randint(3, 900)]))]
    size = draw.choice([1, 2, 3, 8, 32, 1000])
    plan = plan_batches(lengths, size, draw=case)
    assert sorted(row for step in plan for row in step) == list(range(len(lengths)))
    assert len(plan) == -(-len(lengths) // size), "an epoch has more steps than it needs"
    assert sorted(map(len, plan))[1:] == [size] * (len(plan) - 1) if plan else not lengths
    assert plan_batches(lengths, size, draw=case) == plan


def efficiency(lengths: list[int], plan: list[list[int]]) -> float:
    """Share of the computed tokens that are not padding."""
    return sum(lengths) / sum(len(step) * max(lengths[row] for row in step) for step in plan)


@pytest.mark.parametrize("size", [4, 16, 32])
def test_rows_of_like_length_come_together_so_that_little_is_padding(size):
    draw = random.Random(size)
    lengths = [max(4, round(draw.lognormvariate(4.5, 0.7))) for _ in range(2000)]
    rows = draw.sample(range(2000), 2000)
    at_random = [rows[i : i + size] for i in range(0, 2000, size)]
    assert efficiency(lengths, at_random) < 0.6
    assert efficiency(lengths, plan_batches(lengths, size, draw=0)) > 0.75


def test_batches_come_neither_sorted_by_length_nor_with_the_same_company_every_epoch():
    lengths = list(range(1, 1025))
    first, second = (plan_batches(lengths, 8, draw=draw) for draw in (0, 1))
    longest = [max(lengths[row] for row in step) for step in first]
    rises = sum(before < after for before, after in pairwise(longest))
    assert 0.35 < rises / (len(longest) - 1) < 0.65, "a sorted order would only rise or only fall"
    assert len({frozenset(step) for step in first} & {frozenset(step) for step in second}) < 3
