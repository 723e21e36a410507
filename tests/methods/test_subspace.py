"""The protected subspace: its size by SVD of the inputs, its two forms, and the inputs that are recorded."""

import pytest
import torch
from torch import Tensor

from see_lightning.config.schema import OptimConfig
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.methods.subspace import Subspace, input_covariances, packed, unpacked
from tests.adapters import small
from tests.methods.learning import learn, task_named

SIZE = 8


def inputs(number: int, rank: int = SIZE, tokens: int = 40) -> Tensor:
    """Tokens in columns, (I, N), as in GPM; their energy falls from direction to direction."""
    draw = torch.Generator().manual_seed(number)
    directions = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=draw).double()).Q
    energies = torch.diag(2.0 ** -torch.arange(rank, dtype=torch.float64))
    return directions[:, :rank] @ energies @ torch.randn(rank, tokens, generator=draw).double()


def projector(subspace: Subspace) -> Tensor:
    """On the protected directions, (I, I)."""
    eye = torch.eye(SIZE, dtype=torch.float64)
    return eye - subspace.remove(eye)


def by_svd(known: Tensor, x: Tensor, threshold: float) -> Tensor:
    """GPM's equations 8 and 9 on the inputs themselves: a basis of the protected subspace, (I, K)."""
    left = x - known @ known.T @ x
    u, s, _ = torch.linalg.svd(left)
    energy, count = 1 - left.square().sum() / x.square().sum(), 0
    while energy < threshold and count < SIZE - known.shape[1]:
        energy, count = energy + s[count].square() / x.square().sum(), count + 1
    return torch.cat([known, u[:, :count]], dim=1)


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.97])
def test_it_grows_by_the_fewest_directions_that_hold_the_share_of_energy(threshold):
    subspace, known = Subspace.empty(SIZE, torch.device("cpu")), torch.zeros(SIZE, 0, dtype=torch.float64)
    sizes = []
    for number in range(4):
        x = inputs(number)
        subspace, known = subspace.grow(x @ x.T, threshold), by_svd(known, x, threshold)
        torch.testing.assert_close(projector(subspace), known @ known.T, atol=1e-5, rtol=0)
        assert subspace.dimension() == known.shape[1]
        assert (projector(subspace) @ x).square().sum() >= (threshold - 1e-6) * x.square().sum()
        assert subspace.basis_IK.shape[1] <= SIZE / 2, "the smaller basis is kept"
        torch.testing.assert_close(
            subspace.basis_IK.T @ subspace.basis_IK, torch.eye(subspace.basis_IK.shape[1]), atol=1e-6, rtol=0
        )
        sizes.append(subspace.dimension())
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < SIZE
    assert subspace.is_free == (threshold > 0.5), "in the end most directions are protected"


def test_a_threshold_of_one_protects_the_span_of_the_inputs_and_no_more():
    x = inputs(0, rank=3)
    subspace = Subspace.empty(SIZE, torch.device("cpu")).grow(x @ x.T, 1.0)
    assert subspace.dimension() == 3
    torch.testing.assert_close(projector(subspace) @ x, x, atol=1e-6, rtol=0)
    assert subspace.grow(x @ x.T, 1.0) is subspace, "there is nothing to add"
    whole = subspace.grow(torch.eye(SIZE), 1.0)
    assert whole.dimension() == SIZE
    assert not whole.remove(torch.ones(1, SIZE)).any()
    assert whole.grow(torch.eye(SIZE), 1.0) is whole


def test_a_threshold_of_zero_protects_nothing():
    assert Subspace.empty(SIZE, torch.device("cpu")).grow(torch.eye(SIZE), 0.0).dimension() == 0


def test_the_state_gives_both_forms_back_bit_for_bit():
    half, most = (Subspace.empty(SIZE, torch.device("cpu")).grow(torch.eye(SIZE), share) for share in (0.3, 0.9))
    assert (half.is_free, most.is_free) == (False, True)
    back = unpacked(packed({"a.b": half, "c": most}))
    for name, one in (("a.b", half), ("c", most)):
        assert torch.equal(back[name].basis_IK, one.basis_IK)
        assert back[name].is_free == one.is_free


@pytest.mark.parametrize("activated", [False, True])
def test_inputs_are_recorded_token_by_token_without_padding(activated):
    method = SeqFt(
        Setup(
            small.pool(rank=4, targets=["q_proj", "down_proj"], activated=activated), small.TEMPLATE, OptimConfig(), 0
        )
    )
    learn(method, "sky")
    examples, seen = task_named("sky").train, {}

    def note(layer, x):
        seen.setdefault(layer, []).append(x.detach().flatten(0, -2))

    with method.pool.observe(note):
        for example in examples:
            (batch,) = method.batches([example], 1)
            method.pool.logits(batch, "shared")
            if (
                activated
            ):  # the base model reads what is before the header first; an activated adapter does not act there
                for per_layer in seen.values():
                    del per_layer[-2]
    found = input_covariances(method, examples, 300)
    assert found.keys() == method.pool.layers.keys()
    for layer, covariance in found.items():
        x = torch.cat(seen[layer])
        torch.testing.assert_close(covariance, x.T @ x, atol=1e-3 * float((x.T @ x).max()), rtol=1e-3)


def test_at_most_so_many_rows_are_drawn_by_seed():
    method = SeqFt(Setup(small.pool(rank=4, targets=["q_proj"]), small.TEMPLATE, OptimConfig(), 0))
    learn(method, "sky")
    rows = task_named("sky").train
    one, again = (input_covariances(method, rows, 1) for _ in range(2))
    alone = [input_covariances(method, [row], 1) for row in rows]
    for layer, covariance in one.items():
        assert torch.equal(covariance, again[layer])
        assert sum(torch.equal(covariance, other[layer]) for other in alone) == 1


def test_every_rank_has_the_covariances_of_one_process_bit_for_bit_and_a_row_is_drawn_once():
    found, drawn = [], []
    for rank, ranks in ((0, 1), (0, 2), (1, 2)):
        method = SeqFt(Setup(small.pool(rank=4, targets=["q_proj"]), small.TEMPLATE, OptimConfig(), 0, rank, ranks))
        learn(method, "sky")
        found.append(input_covariances(method, task_named("sky").train, 300))
        drawn.append(method.drawn["sky"])
    alone, *both = found
    for layer, covariance in alone.items():
        assert all(torch.equal(one[layer], covariance) for one in both)
    assert drawn == [3, 3, 3]
