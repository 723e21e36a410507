"""Reading in pieces, in batches and in branches, against Hugging Face's plain forward of each row alone."""

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from see_lightning.inference import forward
from see_lightning.inference.forward import common_start, extend, prefill_common_prefix
from see_lightning.inference.kv_cache import KVCache, Tree, join
from see_lightning.models.tiny import tiny_model

MODEL = tiny_model().eval()


def tokens(draw: random.Random, length: int) -> list[int]:
    return [draw.randint(3, 258) for _ in range(length)]


def ragged(case: int, rows: int = 4, shortest: int = 1, longest: int = 20) -> list[list[int]]:
    draw = random.Random(case)
    return [tokens(draw, draw.randint(shortest, longest)) for _ in range(rows)]


def plain(row: list[int]) -> Tensor:
    """The oracle: logits (S, V) of one row alone, without padding or cache."""
    with torch.inference_mode():
        return MODEL(input_ids=torch.tensor([row])).logits[0]


def go_on(read: KVCache | None, rows: list[list[int]], model: nn.Module = MODEL, **more) -> tuple[Tensor, KVCache]:
    with torch.inference_mode():
        return extend(model, read, rows, **more)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", range(4))
def test_rows_read_together_have_the_logits_of_each_row_alone(case):
    rows = ragged(case)
    logits_BKV, read = go_on(None, rows)
    assert logits_BKV.shape == (4, 1, 259)
    assert read.mask_BK.sum(dim=1).tolist() == list(map(len, rows))
    for logits_KV, row in zip(logits_BKV, rows, strict=True):
        same(logits_KV[0], plain(row)[-1])


@pytest.mark.parametrize("case", range(4))
def test_what_is_read_in_pieces_is_what_is_read_at_once(case):
    rows, draw = ragged(case, shortest=3), random.Random(case)
    cuts = [sorted(draw.sample(range(1, len(row)), 2)) for row in rows]
    parts = [
        [row[start:end] for start, end in pairwise((0, *cut, len(row)))] for row, cut in zip(rows, cuts, strict=True)
    ]
    read = None
    for part in zip(*parts, strict=True):
        before = [(k.clone(), v.clone()) for k, v in read.layers] if read else []
        held = read
        logits_BKV, read = go_on(read, list(part))
        if held:
            assert all(
                torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(before, held.layers, strict=True)
            )
    for logits_KV, row in zip(logits_BKV, rows, strict=True):
        same(logits_KV[0], plain(row)[-1])


def test_one_row_may_have_nothing_of_its_own_to_read():
    rows = ragged(0, shortest=2)
    _, read = go_on(None, [rows[0], *[row[:-1] for row in rows[1:]]])
    logits_BKV, read = go_on(read, [[], *[row[-1:] for row in rows[1:]]])
    for logits_KV, row in zip(logits_BKV[1:], rows[1:], strict=True):
        same(logits_KV[0], plain(row)[-1])
    more_BKV, _ = go_on(read, [[9]] * len(rows))
    same(more_BKV[0, 0], plain([*rows[0], 9])[-1])


def test_a_start_that_is_repeated_is_read_once_for_all_rows():
    start, rows = ragged(7, rows=1)[0], ragged(8)
    _, read = go_on(None, [start])
    repeated = read.repeat(len(rows))
    assert {k.data_ptr() for k, _ in repeated.layers} == {k.data_ptr() for k, _ in read.layers}, "it was copied"
    logits_BKV, _ = go_on(repeated, rows)
    for logits_KV, row in zip(logits_BKV, rows, strict=True):
        same(logits_KV[0], plain(start + row)[-1])


def test_logits_come_from_the_columns_that_are_asked_for():
    rows = ragged(1, shortest=4)
    logits_BKV, _ = go_on(None, rows, keep=(-4, -1, -2))
    for logits_KV, row in zip(logits_BKV, rows, strict=True):
        same(logits_KV, plain(row)[[-4, -1, -2]])


#       3 - 4 - 5
#     /   \
#  row      6
#     \
#       7
TREE = Tree((33, 44, 55, 66, 77), (-1, 0, 1, 0, -1))
PATHS = [[33], [33, 44], [33, 44, 55], [33, 66], [77]]


@pytest.mark.parametrize(("before", "own"), [(False, True), (True, False), (True, True)])
def test_every_branch_of_a_tree_has_the_logits_of_its_own_path_alone(before, own):
    starts = ragged(2) if before else [[]] * 4
    rows = ragged(3) if own else [[]] * 4
    read = go_on(None, starts)[1] if before else None
    logits_BKV, after = go_on(read, rows, tree=TREE, keep=range(-own - len(TREE), 0))
    for place, (start, row) in enumerate(zip(starts, rows, strict=True)):
        if own:
            same(logits_BKV[place, 0], plain(start + row)[-1])
        for branch, path in enumerate(PATHS):
            same(logits_BKV[place, own + branch], plain(start + row + path)[-1])
    assert after.mask_BK.shape[1] == after.layers[0][0].shape[2]
    assert after.mask_BK.sum(dim=1).tolist() == [len(start) + len(row) for start, row in zip(starts, rows, strict=True)]


def test_a_row_goes_on_from_whichever_branch_its_mask_chooses():
    rows = ragged(4, rows=len(PATHS))
    _, read = go_on(None, rows, tree=TREE)
    end = read.mask_BK.shape[1] - len(TREE)
    mask_BK = read.mask_BK.clone()
    for place, path in enumerate(PATHS):
        mask_BK[place, [end + TREE.ids.index(token) for token in path]] = True
    order = [3, 0, 4, 1, 2]
    chosen = read.select(order, mask_BK[order])
    assert chosen.mask_BK.sum(dim=1).tolist() == [len(rows[n]) + len(PATHS[n]) for n in order]
    logits_BKV, _ = go_on(chosen, [[8, 9]] * len(order))
    for logits_KV, n in zip(logits_BKV, order, strict=True):
        same(logits_KV[0], plain([*rows[n], *PATHS[n], 8, 9])[-1])


def test_trees_side_by_side_see_nothing_of_each_other():
    twice = TREE.times(2)
    assert (twice.ids, twice.parents) == (TREE.ids * 2, (-1, 0, 1, 0, -1, -1, 5, 6, 5, -1))
    assert TREE.times(1) == TREE
    assert torch.equal(twice.sees_TT, torch.block_diag(TREE.sees_TT, TREE.sees_TT).bool())
    rows = ragged(5)
    logits_BKV, _ = go_on(None, rows, tree=twice, keep=range(-10, 0))
    same(logits_BKV[:, :5], logits_BKV[:, 5:])
    same(logits_BKV[1, 7], plain([*rows[1], *PATHS[2]])[-1])


def test_a_token_of_a_tree_sees_its_forebears_and_itself():
    for place, path in enumerate(PATHS):
        assert [TREE.ids[n] for n in TREE.sees_TT[place].nonzero().flatten().tolist()] == path
    assert len(Tree()) == 0


@pytest.mark.parametrize("chosen", [[0], [1, 3], [3, 2, 1, 0], [2, 2], [1]])
def test_selected_rows_go_on_as_if_they_had_always_been_alone(chosen):
    rows = [[5] * 2 + [6], list(range(10, 30)), [40, 41], list(range(50, 61))]
    _, read = go_on(None, rows)
    some = read.select(chosen)
    assert len(some) == len(chosen)
    assert some.mask_BK.shape[1] == max(len(rows[n]) for n in chosen), "a column without a token is left"
    logits_BKV, _ = go_on(some, [[7, 8]] * len(chosen))
    for logits_KV, n in zip(logits_BKV, chosen, strict=True):
        same(logits_KV[0], plain([*rows[n], 7, 8])[-1])


def test_joined_rows_go_on_as_if_they_had_always_been_alone():
    groups = [ragged(1, 2, 3, 9), ragged(2, 1, 15, 20), ragged(3, 3, 1, 4)]
    joined = join([go_on(None, group)[1] for group in groups])
    rows = [row for group in groups for row in group]
    assert joined.mask_BK.sum(dim=1).tolist() == list(map(len, rows))
    logits_BKV, _ = go_on(joined, [[7]] * len(rows))
    for logits_KV, row in zip(logits_BKV, rows, strict=True):
        same(logits_KV[0], plain([*row, 7])[-1])
    single = go_on(None, groups[0])[1]
    assert join([single]) is single


@pytest.mark.parametrize("case", range(40))
def test_the_common_start_is_the_longest_that_leaves_each_row_a_token(case):
    draw = random.Random(case)
    rows = [[draw.randint(0, 1) for _ in range(draw.randint(1, 6))] for _ in range(draw.randint(1, 4))]
    shared = max(n for n in range(min(map(len, rows))) if len({tuple(row[:n]) for row in rows}) == 1)
    assert common_start(rows) == shared


@pytest.mark.parametrize(
    ("shared", "rows", "pays"),
    [(64, 3, True), (63, 3, False), (128, 2, True), (127, 2, False), (500, 1, False), (0, 9, False)],
)
def test_a_common_start_is_read_apart_only_where_that_saves_enough(shared, rows, pays):
    assert forward.WORTH_SHARING == 128
    draw = random.Random(0)
    start = tokens(draw, shared)
    prompts = [[*start, 3 + n, *tokens(draw, n)] for n in range(rows)]
    with torch.inference_mode():
        found, read = prefill_common_prefix(MODEL, prompts)
    if not pays:
        assert (found, read) == (0, None)
        return
    assert (found, len(read), read.mask_BK.shape[1]) == (shared, 1, shared)
    logits_BKV, _ = go_on(read.repeat(rows), [prompt[shared:] for prompt in prompts])
    for logits_KV, prompt in zip(logits_BKV, prompts, strict=True):
        same(logits_KV[0], plain(prompt)[-1])
