"""Rules against other code and closed forms: PEFT's ``merge_utils``, the dense algorithm of OPCM, and hand computation."""

import math

import pytest
import torch
from peft.utils import merge_utils

from see_lightning.merging import changes
from see_lightning.merging.opcm import Opcm
from see_lightning.merging.rule import TaskVector
from see_lightning.merging.slerp import slerp
from see_lightning.merging.sparsify import at_random, largest
from tests.merging.test_changes import low
from tests.merging.test_rules import in_dense, vector
from tests.merging.test_rules import made as rule


def vectors(number=4):
    return [vector(place) for place in range(number)]


def stacked(layer, several):
    return [changes.dense(one.changes[layer]) for one in several]


@pytest.mark.parametrize("layer", ["up", "down"])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_ties_and_magnitude_pruning_are_those_of_peft(layer, density):
    tensors, ones = stacked(layer, vectors()), torch.ones(4, dtype=torch.float64)
    ours = changes.dense(rule("ties", density=density).merge(vectors())[layer])
    torch.testing.assert_close(ours, merge_utils.ties(tensors, ones, density=density, majority_sign_method="total"))
    ours = changes.dense(rule("magnitude_prune", density=density).merge(vectors())[layer])
    torch.testing.assert_close(ours, merge_utils.magnitude_prune(tensors, ones / 4, density=density))


@pytest.mark.parametrize("layer", ["up", "down"])
def test_task_arithmetic_is_that_of_peft(layer):
    ours = changes.dense(rule("task_arithmetic", scale=0.3).merge(vectors())[layer])
    weights = torch.full((4,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(ours, merge_utils.task_arithmetic(stacked(layer, vectors()), weights))


def test_dare_keeps_the_given_share_and_the_mean():
    ones = torch.ones(400, 300)
    for density in (0.1, 0.5):
        kept = at_random(ones, density, draw=3)
        assert kept.unique().tolist() == pytest.approx([0, 1 / density])
        assert float((kept != 0).float().mean()) == pytest.approx(density, abs=0.01)
        assert float(kept.mean()) == pytest.approx(1, abs=0.05)
    assert not torch.equal(at_random(ones, 0.5, 0), at_random(ones, 0.5, 1))


def test_dare_draws_other_entries_in_each_layer_and_vector():
    alike = changes.dense(low())
    several = [TaskVector({"a": alike, "b": alike}, draw) for draw in (0, 1)]
    dropped = [rule("dare_linear", scale=1).merge([one]) for one in several]
    patterns = [one[layer] != 0 for one in dropped for layer in ("a", "b")]
    assert all(not torch.equal(patterns[i], patterns[j]) for i in range(4) for j in range(i))


def test_dare_ties_elects_among_the_entries_that_were_drawn():
    several = vectors(3)
    merged = rule("dare_ties", density=0.5, scale=1).merge(several)["up"]
    single = [rule("dare_linear", density=0.5, scale=1).merge([one])["up"] for one in several]
    expected = merge_utils.disjoint_merge(
        torch.stack(single), merge_utils.calculate_majority_sign_mask(torch.stack(single), "total")
    )
    torch.testing.assert_close(merged, expected)


def test_the_largest_entries_are_as_many_as_peft_keeps():
    delta = changes.dense(low())
    torch.testing.assert_close(largest(delta, 0.3), merge_utils.prune(delta, 0.3, "magnitude"))


def test_magmax_takes_the_entry_of_largest_magnitude_of_all_vectors():
    merged = rule("magmax", scale=1).merge(vectors())["up"]
    several = torch.stack(stacked("up", vectors()))
    expected = several.gather(0, several.abs().argmax(0, keepdim=True))[0]
    torch.testing.assert_close(merged, expected)


def test_the_average_of_a_stream_is_that_of_all_at_once():
    merged = in_dense(rule("average").merge(vectors(5)))
    torch.testing.assert_close(merged["down"], torch.stack(stacked("down", vectors(5))).mean(0))
    half = in_dense(rule("wise_ft").merge(vectors(5)))
    torch.testing.assert_close(half["down"], merged["down"] / 2)


def test_the_moving_average_weighs_a_vector_by_its_age():
    merged = in_dense(rule("moving_average", weight=0.3).merge(vectors(3)))["up"]
    first, second, third = stacked("up", vectors(3))
    torch.testing.assert_close(merged, 0.7 * (0.7 * first + 0.3 * second) + 0.3 * third)


def test_slerp_keeps_lengths_and_angles():
    one, other = (
        torch.nn.functional.normalize(changes.dense(low(seed=n)).flatten(), dim=0).view(12, 9) for n in (0, 1)
    )
    angle = math.acos(float((one * other).sum()))
    for share in (0.0, 0.25, 0.5, 1.0):
        point = slerp(one, other, share)
        assert float(point.norm()) == pytest.approx(1)
        assert math.acos(min(1.0, float((one * point).sum()))) == pytest.approx(share * angle, abs=1e-6)
    torch.testing.assert_close(slerp(one, 2 * one, 0.5), 1.5 * one)


def dense_opcm(deltas, alpha):
    """The algorithm as the paper writes it, on dense matrices with full decompositions."""
    merged, scale, lengths = dict(deltas[0]), 1.0, [norm(deltas[0])]
    for new in deltas[1:]:
        lengths.append(norm(new))
        raw = {}
        for layer, delta in new.items():
            u, s, vh = torch.linalg.svd(merged[layer], full_matrices=True)
            rank = int((s > 1e-12 * s[0]).sum())
            split = int((s.cumsum(0) / s.sum() > alpha).float().argmax())
            projected = u.T @ delta @ vh.T
            projected.diagonal()[:rank] = 0  # beyond the rank, the basis is any
            projected[:split, :split] = 0
            raw[layer] = scale * merged[layer] + u @ projected @ vh
        scale = norm(raw) / (sum(lengths) / len(lengths))
        merged = {layer: one / scale for layer, one in raw.items()}
    return merged, scale


def norm(deltas):
    return float(torch.cat([delta.flatten() for delta in deltas.values()]).norm())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("form", [lambda change: change, changes.dense], ids=["factors", "dense"])
def test_opcm_is_the_dense_algorithm(alpha, form):
    several = [vector(number, form=form) for number in range(5)]
    merged = None
    for one in several:
        merged = Opcm(alpha=alpha).add(merged, one)
    expected, scale = dense_opcm([in_dense(one.changes) for one in several], alpha)
    found = in_dense(Opcm(alpha=alpha).result(merged))
    for layer, delta in expected.items():
        torch.testing.assert_close(found[layer], delta, rtol=1e-9, atol=1e-9)
    assert merged.numbers["scale"] == pytest.approx(scale)


def test_opcm_is_as_long_as_its_vectors_are_on_average():
    several = vectors(6)
    merged = Opcm(alpha=0.5).merge(several)
    mean = sum(float(changes.norm(one.changes)) for one in several) / 6
    assert float(changes.norm(merged)) == pytest.approx(mean)


def test_what_opcm_adds_has_no_part_in_the_main_directions():
    from see_lightning.merging.opcm import joined

    old, new = low(rank=4, seed=5), low(rank=2, seed=6)
    added = changes.dense(joined(old, new, 1.0, 0.6)) - changes.dense(old)
    u_OK, s_K, v_IK = changes.spectrum(old)
    main = int((s_K.cumsum(0) <= 0.6 * s_K.sum()).sum())
    assert main
    seen = u_OK.T @ added @ v_IK
    assert float(seen[:main, :main].abs().max()) < 1e-12
    assert float(seen.diagonal().abs().max()) < 1e-12
