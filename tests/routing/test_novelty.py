"""Descriptors of tasks against numpy, and against what a linear auto-encoder is known to find."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from see_lightning.adapters.embeddings import from_the_others
from see_lightning.routing import novelty
from see_lightning.routing.novelty import APART, DESCRIPTORS, AutoEncoder, Gaussian

KINDS = pytest.mark.parametrize("kind", list(DESCRIPTORS.values()), ids=list(DESCRIPTORS))


@pytest.fixture
def quick(monkeypatch):
    """An auto-encoder that need not be good."""
    monkeypatch.setattr(novelty, "STEPS", 20)


def cloud(prompts: int, hidden: int, number: int = 0, shift: float = 0.0) -> torch.Tensor:
    """Prompts that spread unevenly over the hidden states."""
    draw = torch.Generator().manual_seed(number)
    spread = torch.linspace(0.1, 3, hidden)
    return torch.randn(prompts, hidden, generator=draw) * spread + torch.arange(hidden) + shift


def by_numpy(point: np.ndarray, others: np.ndarray, level: float, shrinkage: float) -> float:
    """Squared Mahalanobis distance of a point from others, whose covariance is shrunk to a level."""
    covariance = (1 - shrinkage) * np.cov(others.T, bias=True) + shrinkage * level * np.eye(len(point))
    apart = point - others.mean(0)
    return float(apart @ np.linalg.inv(covariance) @ apart)


@pytest.mark.parametrize("prompts", [2, 4, 9, 40], ids="{} prompts".format)
@pytest.mark.parametrize("shrinkage", [0.1, 0.5])
def test_a_prompt_is_as_far_from_the_others_as_if_they_had_been_described_without_it(prompts, shrinkage):
    states = cloud(prompts, 6).double()
    rows, level = states.numpy(), float(np.cov(states.numpy().T, bias=True).diagonal().mean())
    expected = [by_numpy(rows[i], np.delete(rows, i, axis=0), level, shrinkage) for i in range(prompts)]
    assert from_the_others(states, shrinkage).tolist() == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_the_closed_form_is_mahalanobis_measured_by_own_prompts_held_apart():
    own, other = cloud(12, 5), cloud(7, 5, number=1, shift=1.0)
    rows, level = own.double().numpy(), float(np.cov(own.double().numpy().T, bias=True).diagonal().mean())
    apart = [by_numpy(rows[i], np.delete(rows, i, axis=0), level, 0.1) ** 0.5 for i in range(12)]
    distances = [by_numpy(row, rows, level, 0.1) ** 0.5 for row in other.double().numpy()]
    expected = (np.array(distances) - np.mean(apart)) / np.std(apart, ddof=1)
    assert Gaussian.of(own, 0).z(other).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


@KINDS
def test_prompts_of_the_task_are_near_and_others_far(kind):
    known = kind.of(cloud(200, 32), 0)
    assert abs(float(known.z(cloud(500, 32, number=1)).mean())) < 0.5
    assert known.z(cloud(20, 32, number=2, shift=3.0)).min() > 4


def test_the_auto_encoder_loses_what_principal_components_lose():
    """The best linear auto-encoder is principal component analysis (Baldi and Hornik, 1989)."""
    draw = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=draw)).Q
    strengths = torch.tensor([2.0] * 8 + [0.1] * 24)
    own, new = ((torch.randn(300, 32, generator=draw) * strengths) @ basis.T + 5 for _ in range(2))
    shown = own[torch.arange(300) % APART != 0].numpy()
    *_, components = np.linalg.svd(shown - shown.mean(0), full_matrices=False)
    apart = new.numpy() - shown.mean(0)
    lost = apart - apart @ components[:8].T @ components[:8]
    expected = (lost**2).mean(1) / np.square(shown - shown.mean(0)).mean()
    found = AutoEncoder.of(own, 0).distances(new).numpy()
    assert found.mean() == pytest.approx(expected.mean(), rel=0.15)
    assert np.corrcoef(found, expected)[0, 1] > 0.95


def test_the_auto_encoder_is_not_shown_the_prompts_that_set_its_measure(quick):
    own = cloud(23, 16)
    is_apart = torch.arange(23) % APART == 0
    moved = torch.where(is_apart[:, None], own + 5, own)
    one, two = AutoEncoder.of(own, 3), AutoEncoder.of(moved, 3)
    changed = {name for name in one.tensors if not torch.equal(one.tensors[name], two.tensors[name])}
    assert changed == {"mean", "std"}
    lost = two.distances(moved[is_apart]).double().numpy()
    assert float(two.tensors["mean"]) == pytest.approx(lost.mean(), rel=1e-5)
    assert float(two.tensors["std"]) == pytest.approx(lost.std(ddof=1), rel=1e-4)


def test_the_auto_encoder_hangs_on_its_own_seed_alone(quick):
    own = cloud(8, 16)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = AutoEncoder.of(own, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = AutoEncoder.of(own, 0), AutoEncoder.of(own, 1)
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)
    assert not torch.equal(first.tensors["0.weight"], other.tensors["0.weight"])
    with torch.no_grad():  # as at the end of a task
        assert torch.equal(AutoEncoder.of(own, 0).tensors["0.weight"], first.tensors["0.weight"])


@KINDS
def test_a_descriptor_out_of_its_file_says_the_same(kind, tmp_path, quick):
    known, other = kind.of(cloud(8, 16), 0), cloud(5, 16, number=1)
    save_file(known.tensors, tmp_path / "known")
    assert torch.equal(kind(load_file(tmp_path / "known")).z(other), known.z(other))


@KINDS
def test_own_prompts_that_lie_equally_far_do_not_put_all_others_infinitely_far(kind, quick):
    corners = torch.eye(4).repeat(1, 2)
    assert kind.of(corners, 0).z(torch.cat([corners, corners + 1])).abs().max() < 1e5


def test_errors_of_an_auto_encoder_and_their_measure_are_those_of_the_authors_code():
    """Run on these tensors: ``AE`` and ``Records`` of backbone/sema_components.py, huiyiwang01/SEMA-CL, commit 5a45512.

    z is that of ``get_z_score_deviation`` in backbone/sema_block.py, which takes its size: the first three prompts, which are
    reconstructed better than own ones, are as novel there as if they had been reconstructed worse.
    """

    def drawn(number: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(number), dtype=dtype)

    coder = {
        "0.weight": drawn(80, 2, 6) / 2, "0.bias": drawn(81, 2), "1.weight": drawn(82, 6, 2) / 2, "1.bias": drawn(83, 6) / 2,
        "centre": torch.zeros(6), "scale": torch.ones(()),
    }  # fmt: skip
    own, new = drawn(84, 5, 3, 6, dtype=torch.float32), 1.5 * drawn(85, 4, 2, 6, dtype=torch.float32)
    distances = AutoEncoder(coder).distances(own.mean(1))
    expected = [0.5199244022369385, 1.0827555656433105, 0.3508628308773041, 1.3254303932189941, 0.5574779510498047]
    assert distances.tolist() == pytest.approx(expected, rel=1e-5)
    measure = novelty._measure(distances)
    assert {name: float(one) for name, one in measure.items()} == pytest.approx(
        {"mean": 0.7672902345657349, "std": 0.41522934086099467}, rel=1e-5
    )
    z = AutoEncoder(coder | measure).z(new.mean(1))
    sizes = [0.851142406463623, 0.8109678626060486, 0.9687681794166565, 5.80559778213501]
    assert z.abs().tolist() == pytest.approx(sizes, rel=1e-4)
    assert z.sign().tolist() == [-1, -1, -1, 1]
