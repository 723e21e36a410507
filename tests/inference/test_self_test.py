"""How a model can be read is tried, not looked up: what reads rows together otherwise than apart reads them one by one."""

import pytest
import torch

from see_lightning.errors import ConfigError
from see_lightning.inference.forward import READING, TRAINING, extend, logits_at, one_by_one
from see_lightning.inference.kv_cache import Tree
from see_lightning.inference.self_test import choose_reading
from tests.models.zoo import random_model

TOGETHER = ["llama", "mistral", "gemma2", "gemma3", "gpt2", "gptj", "gpt_neox", "opt", "falcon", "mixtral", "phi3"]
APART = ["bloom", "falcon_alibi", "mpt"]


@pytest.mark.parametrize("kind", TOGETHER)
def test_a_model_that_takes_positions_and_masks_reads_rows_together(kind):
    model = random_model(kind)
    assert choose_reading(model, kind) is None
    assert not one_by_one(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", APART)
def test_a_model_that_counts_columns_reads_rows_one_by_one_and_says_so(kind, dtype):
    model = random_model(kind).to(dtype)
    told = choose_reading(model, kind)
    assert told is not None
    assert told.startswith(f"{kind}: ")
    assert told.endswith("so queries are processed one by one, which is exact and slower")
    assert one_by_one(model) == {READING}  # a padded batch without a cache it does take


@pytest.mark.parametrize("kind", ["roberta", "openai_gpt", "bert"])
def test_a_model_that_cannot_be_read_in_pieces_is_refused_in_one_line(kind):
    with pytest.raises(ConfigError, match=rf"model\.name={kind} \(\w+\) cannot be used, not even one by one") as told:
        choose_reading(random_model(kind), kind)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", [*APART, "llama"])
@torch.no_grad()
def test_one_by_one_gives_the_logits_of_each_row_alone_whatever_stands_beside_it(kind):
    model = random_model(kind)
    model.one_by_one = frozenset({READING, TRAINING})

    def plain(row: list[int]) -> torch.Tensor:
        return model(input_ids=torch.tensor([row])).logits[0]

    rows = [[9, 30, 77, 12, 99], [200]]
    tree = Tree((5, 6, 7), (-1, 0, -1))
    logits_BKV, read = extend(model, None, rows, tree=tree, keep=range(-5, 0))
    assert read.mask_BK.tolist() == [[True] * 5 + [False] * 3, [False] * 4 + [True] + [False] * 3]
    for found, row in zip(logits_BKV, rows, strict=True):
        torch.testing.assert_close(found[-4], plain(row)[-1])
        torch.testing.assert_close(found[-3:-1], plain([*row, 5, 6])[-2:])
        torch.testing.assert_close(found[-1], plain([*row, 7])[-1])
    mask_BK = read.mask_BK.clone()
    mask_BK[:, -1] = True  # on from the last branch; the second row has nothing to read this time
    more_BKV, read = extend(model, read.select([0, 1], mask_BK), [[40, 41], []])
    torch.testing.assert_close(more_BKV[0, -1], plain([*rows[0], 7, 40, 41])[-1])
    last_BKV, _ = extend(model, read, [[50], [51]])
    torch.testing.assert_close(last_BKV[1, -1], plain([*rows[1], 7, 51])[-1])

    ids, mask = torch.tensor([[9, 30, 77], [0, 0, 200]]), torch.tensor([[1, 1, 1], [0, 0, 1]])
    wanted = torch.tensor([[False, True, True], [False, False, True]])
    expected = torch.cat([plain([9, 30, 77])[1:], plain([200])])
    torch.testing.assert_close(logits_at(model, ids, mask, wanted), expected)
