"""N-LoRA: the penalty by explicit products, its gradient, and what is trained and kept."""

import pytest
import torch

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods import nlora as module
from see_lightning.methods.nlora import NLora, sparsity
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from tests.adapters import small
from tests.methods.fixed import waves
from tests.methods.learning import equal, learn, weights

TARGETS = ["k_proj", "down_proj"]  # neither is square


def nlora(*, weight: float = 1e-3) -> NLora:
    return NLora(Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(), 0), sparsity=weight)


def test_the_penalty_is_the_sum_of_the_absolute_entries_of_the_new_update_alone():
    method = nlora(weight=0.3)
    for task in ("sky", "sea"):
        learn(method, task)
    by_hand = 0.0
    for layer in method.pool.layers:
        a, b = (weight.detach() for weight in method.pool.pair(layer, "sea"))
        assert b.shape[0] != a.shape[1], "a layer that is not square"
        for row in b:
            for column in a.T:
                by_hand += 0.3 * method.pool.adapter.alpha / 4 * abs(torch.dot(row, column).item())
    assert method.penalty().item() == pytest.approx(by_hand, rel=1e-5)
    assert by_hand > 0


def test_the_authors_code_measures_the_product_of_a_and_b_in_the_other_order():
    """``training_step`` in src/uie_trainer_lora.py of PKU-YuanGroup/N-LoRA at 7301afe gave the number, with a loss of 0.

    Two layers of four inputs and outputs, weight 0.5, no scale. A layer that is not square ends that code in an error.
    """
    pairs = [(waves(2, 4, phase=20.0 + layer), waves(4, 2, phase=25.0 + layer)) for layer in (0, 1)]
    assert 0.5 * sum(sparsity(b, a).item() for a, b in pairs) == pytest.approx(3.60894745, abs=1e-6)
    assert 0.5 * sum(sparsity(a, b).item() for a, b in pairs) == pytest.approx(
        0.5 * sum((b @ a).abs().sum().item() for a, b in pairs)
    )
    assert 0.5 * sum(sparsity(a, b).item() for a, b in pairs) > 1.5 * 3.60894745


@pytest.mark.parametrize("rows", [1, 3, 1024])
def test_the_gradient_is_that_of_its_closed_form_however_many_rows_are_computed_at_a_time(monkeypatch, rows):
    monkeypatch.setattr(module, "SLICE", rows)
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 8, generator=draw).requires_grad_(), torch.randn(5, 2, generator=draw).requires_grad_()
    found = torch.autograd.grad(sparsity(a, b), (a, b))
    signs = (b @ a).detach().sign()
    torch.testing.assert_close(found, (b.detach().T @ signs, signs @ a.detach().T))


def test_the_stronger_it_is_the_fewer_entries_have_most_of_the_update():
    shares = []
    for weight in (0.0, 3e-3):
        method = nlora(weight=weight)
        learn(method, "sky", steps=40)
        deltas = [method.pool.delta(layer, "sky").abs() for layer in method.pool.layers]
        # 1 for equal entries, and near 0 if one entry has it all
        shares.append(sum(float(one.sum() ** 2 / one.square().sum() / one.numel()) for one in deltas) / len(deltas))
    assert shares[1] < 0.9 * shares[0]


def test_without_a_weight_the_first_task_is_sequential_fine_tuning_bit_for_bit():
    ours = nlora(weight=0.0)
    theirs = SeqFt(Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(), 0))
    ours.ADAPTER = "sum"  # first weights are drawn by an adapter's name
    assert learn(ours, "shared") == learn(theirs, "shared")
    assert equal(weights(ours, "shared"), weights(theirs, "shared"))


def test_it_acts_in_the_first_task_too():
    method = nlora()
    learn(method, "sky")
    assert method.penalty().item() > 0


def test_earlier_adapters_rest_and_a_folder_gives_each_task_its_own_back(tmp_path):
    method, fresh = nlora(), nlora()
    learn(method, "sky")
    rested = weights(method, "sky")
    method.save("sky", tmp_path / "sky")
    fresh.restore("sky", tmp_path / "sky")
    assert learn(method, "sea") == learn(fresh, "sea")
    assert equal(weights(method, "sky"), rested)
    assert equal(weights(fresh, "sea"), weights(method, "sea"))


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigError, match=r"method\.sparsity must be at least 0"):
        nlora(weight=-1e-3)
