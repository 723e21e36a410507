"""Masks: which numbers are chosen, what gradient the scores get, and single bits that come back."""

import numpy as np
import pytest
import torch

from see_lightning.methods.subnetworks.masks import favouring, pack, straight_through, top_share, unpack


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 1.0])
def test_the_share_with_the_largest_scores_of_each_row_is_chosen(share):
    scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    chosen = top_share(scores, share)
    for row, mask in zip(scores.numpy(), chosen.numpy(), strict=True):
        expected = set(np.argsort(-np.abs(row))[: round(share * 40)].tolist())
        assert set(np.nonzero(mask)[0].tolist()) == expected


def test_of_equal_scores_no_more_than_the_share_and_of_few_at_least_one_is_chosen():
    assert top_share(torch.ones(2, 10), 0.3).sum(1).tolist() == [3, 3]
    assert top_share(torch.tensor([[1.0, 2.0]]), 0.01).tolist() == [[False, True]]


def test_the_gradient_passes_straight_through_to_the_scores_size():
    """The oracle is WSN's own rule: the gradient of the masked weight, times the weight, times the sign of the score."""
    draw = torch.Generator().manual_seed(1)
    scores = torch.randn(4, 5, generator=draw, requires_grad=True)
    weight, upstream = torch.randn(4, 5, generator=draw), torch.randn(4, 5, generator=draw)
    mask = top_share(scores, 0.4)
    masked = weight * straight_through(scores, mask)
    assert torch.equal(masked != 0, mask)
    masked.backward(upstream)
    torch.testing.assert_close(scores.grad, upstream * weight * scores.detach().sign())


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 7), (2, 5, 13)])
def test_a_mask_takes_a_bit_a_number_and_comes_back(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.4
    packed = pack(mask)
    assert packed.numpy().tolist() == np.packbits(mask.numpy().ravel(), bitorder="little").tolist()
    assert torch.equal(unpack(packed, mask.shape), mask)


@pytest.mark.parametrize("shape", [(10,), (4, 10), (3, 7)])
def test_scores_that_favour_a_mask_choose_it_and_are_else_the_same(shape):
    draw = torch.Generator().manual_seed(3)
    scores = torch.randn(shape, generator=draw)
    mask = top_share(torch.rand(1, scores.numel(), generator=draw), 0.3).view(shape)
    dealt = favouring(scores, mask)
    assert torch.equal(top_share(dealt.view(1, -1), 0.3).view(shape), mask)
    assert torch.equal(dealt.flatten().sort().values, scores.flatten().sort().values), "no score is new"
    for part in (mask, ~mask):
        assert torch.equal(dealt[part].abs().argsort(), scores[part].abs().argsort()), "their order stays"
    assert torch.equal(favouring(scores, top_share(scores.view(1, -1), 0.3).view(shape)), scores)


@pytest.mark.parametrize(
    ("share", "kept"),
    [(0.1, [20, 21, 27]), (0.3, [0, 4, 6, 7, 8, 20, 21, 26, 27]), (0.9, [*range(12), *range(14, 30)])],
)
def test_masks_are_those_of_the_authors_code_of_exssnet(share, kept):
    """Run on these scores: ``GetSubnet`` of models/module_util.py, prateeky2806/exessnet, commit 1e768f8.

    It computes 1 - 0.9 as 0.0999..., so it keeps 28 of 30 numbers instead of 27.
    """
    scores = torch.randn(3, 10, generator=torch.Generator().manual_seed(50))
    found = top_share(scores.flatten()[None], share)[0].nonzero().flatten().tolist()
    if share == 0.9:
        assert len(kept) == 28
        (smallest,) = set(kept) - set(found)
        assert smallest == min(kept, key=lambda place: scores.flatten()[place].abs().item())
    else:
        assert found == kept


def test_the_gradient_is_that_of_the_authors_code_of_exssnet():
    """Run on these tensors: ``GetSubnet`` of models/module_util.py, prateeky2806/exessnet, commit 1e768f8."""
    scores, weight, upstream = (torch.randn(3, 10, generator=torch.Generator().manual_seed(n)) for n in (50, 51, 52))
    scores.requires_grad_()
    mask = top_share(scores.flatten()[None], 0.1).view(3, 10)
    (found,) = torch.autograd.grad((weight * straight_through(scores, mask) * upstream).sum(), scores)
    expected = [
        -0.13343045115470886, 2.160409688949585, 0.03691261261701584, 0.2614758610725403, 0.9736455678939819,
        -1.3965932130813599, 0.6814485788345337, -0.17830969393253326, 3.965395450592041, -0.012667433358728886,
    ]  # fmt: skip
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)
