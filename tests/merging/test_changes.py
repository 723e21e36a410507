"""Low-rank changes give what dense ones give, without being multiplied out."""

import pytest
import torch

from see_lightning.merging import changes
from see_lightning.merging.changes import LowRank


def low(outputs=12, inputs=9, rank=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(outputs, rank, generator=generator, dtype=dtype),
        torch.randn(rank, inputs, generator=generator, dtype=dtype),
    )


def test_a_sum_of_low_rank_changes_is_exact_for_unequal_ranks_and_negative_weights():
    parts, weights = [low(rank=rank, seed=rank) for rank in (1, 2, 1)], [0.5, -1.0, 2.0]
    found = changes.weighted_sum(parts, weights)
    assert isinstance(found, LowRank)
    assert found.a_RI.shape[0] == 4
    expected = sum(w * part.b_OR @ part.a_RI for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(changes.dense(found), expected, rtol=1e-12, atol=1e-12)


def test_a_sum_becomes_dense_where_that_is_smaller_and_with_a_dense_part():
    found = changes.weighted_sum([low(rank=3), low(rank=3, seed=1)], [1.0, 1.0])
    assert isinstance(found, torch.Tensor), "6 * (12 + 9) numbers, and 12 * 9 of the product"
    mixed = changes.weighted_sum([low(rank=1), changes.dense(low(seed=1))], [1.0, 2.0])
    expected = changes.dense(low(rank=1)) + 2 * changes.dense(low(seed=1))
    torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("forms", ["low low", "low dense", "dense low", "dense dense"])
def test_inner_products_are_those_of_the_products(forms):
    one, other = low(rank=2), low(rank=4, seed=1)
    expected = (changes.dense(one) * changes.dense(other)).sum()
    first, second = (
        changes.dense(change) if form == "dense" else change
        for form, change in zip(forms.split(), (one, other), strict=True)
    )
    torch.testing.assert_close(changes.inner(first, second), expected, rtol=1e-12, atol=1e-12)


def test_the_norm_is_that_of_all_layers_together():
    vector = {"up": low(seed=1), "down": changes.dense(low(seed=2))}
    expected = torch.cat([changes.dense(change).flatten() for change in vector.values()]).norm()
    torch.testing.assert_close(changes.norm(vector), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rank", [1, 5, 9])
def test_the_spectrum_of_factors_is_that_of_the_product(rank):
    change = low(rank=rank)
    u_OK, s_K, v_IK = changes.spectrum(change)
    expected = torch.linalg.svdvals(changes.dense(change))[:rank]
    torch.testing.assert_close(s_K, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(u_OK @ torch.diag(s_K) @ v_IK.T, changes.dense(change), rtol=1e-10, atol=1e-12)


def test_singular_values_that_are_rounding_are_left_out():
    one = low(rank=2)
    twice = LowRank(torch.cat([one.b_OR, one.b_OR], 1), torch.cat([one.a_RI, one.a_RI]))
    assert len(changes.spectrum(twice).s_K) == 2


def test_truncation_is_the_nearest_change_of_its_rank_and_tells_its_error():
    change = low(rank=5)
    found, error = changes.truncated(change, 2)
    whole = changes.dense(change)
    assert found.a_RI.shape[0] == 2
    u, s, vh = torch.linalg.svd(whole)
    torch.testing.assert_close(changes.dense(found), u[:, :2] @ torch.diag(s[:2]) @ vh[:2], rtol=1e-9, atol=1e-9)
    assert error == pytest.approx(float((changes.dense(found) - whole).norm() / whole.norm()))
    assert changes.truncated(change, 9)[1] == pytest.approx(0, abs=1e-9)


def test_a_change_of_zeros_is_truncated_to_zeros():
    found, error = changes.truncated(LowRank(torch.zeros(4, 2), torch.zeros(2, 3)), 2)
    assert changes.dense(found).shape == (4, 3)
    assert not changes.dense(found).any()
    assert error == 0
