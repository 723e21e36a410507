"""O-LoRA: the penalty by hand, what is trained and what rests, and what a folder holds."""

import pytest
import torch
from torch import Tensor

from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.olora import OLora, overlap
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.methods.fixed import waves
from tests.methods.learning import learn, task_named

IDS = torch.arange(3, 43).view(2, 20)
TARGETS = ["q_proj", "down_proj"]
DEFAULT = {"orthogonality": 0.5, "l2": 0.0, "entries": "absolute"}


def olora(*, rank: int = 4, **settings) -> OLora:
    pool = small.pool(rank=rank, targets=TARGETS)
    return OLora(Setup(pool, small.TEMPLATE, OptimConfig(), 0), **DEFAULT | settings)


def weights(pool: ExpertPool, adapter: str) -> list[Tensor]:
    return [weight.detach().clone() for layer in pool.layers for weight in pool.pair(layer, adapter)]


def logits(model) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("entries", ["absolute", "squared"])
def test_the_penalty_is_the_sum_over_earlier_tasks_layers_and_pairs_of_rows(entries):
    method = olora(orthogonality=0.3, l2=0.1, entries=entries)
    for task in ("sky", "sea", "ice"):
        learn(method, task)
    by_hand = 0.0
    for layer in method.pool.layers:
        new_a, new_b = method.pool.pair(layer, "ice")
        for old in ("sky", "sea"):
            for row in method.pool.pair(layer, old)[0]:
                for other in new_a:
                    product = torch.dot(row, other).item()
                    by_hand += 0.3 * (abs(product) if entries == "absolute" else product**2)
        by_hand += 0.1 * (new_a.square().sum().sqrt() + new_b.square().sum().sqrt()).item()
    assert method.penalty().item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(
    ("orthogonality", "l2", "value", "of_a", "of_b"),
    [
        (0.5, 0.0, 139.67173226, [0.57143976, 1.47182951, -0.9498956, -0.27858937], [0.0, 0.0]),
        (0.3, 0.2, 93.8625003, [0.35856343, 0.87799106, -0.5943328, -0.15191186], [0.03261493, 0.03118204]),
    ],
)
def test_the_penalty_and_its_gradients_are_those_of_the_authors_code(orthogonality, l2, value, of_a, of_b):
    """Those of ``training_step`` in src/uie_trainer_lora.py of cmnfriend/O-LoRA at 07117e1, with a loss of 0."""
    method = olora(rank=2, orthogonality=orthogonality, l2=l2)
    for number, task in enumerate(("sky", "sea", "ice")):
        method.begin_task(task_named(task), Memory(0))
        for layer, pair in enumerate(method.pool.pairs(task).values()):
            for place, weight in enumerate(pair):
                with torch.no_grad():
                    weight.copy_(waves(*weight.shape, phase=layer + 10 * number + 5 * place))
    penalty = method.penalty()
    penalty.backward()
    assert penalty.item() == pytest.approx(value, rel=1e-5)
    a, b = list(method.pool.pairs("ice").values())[1]
    torch.testing.assert_close(a.grad[0, :4], torch.tensor(of_a), atol=1e-4, rtol=0)
    found = torch.zeros(2) if b.grad is None else b.grad[0]
    torch.testing.assert_close(found, torch.tensor(of_b), atol=1e-6, rtol=0)


def test_the_gradient_of_the_overlap_is_that_of_its_closed_form():
    draw = torch.Generator().manual_seed(0)
    old, new = torch.randn(3, 8, generator=draw), torch.randn(2, 8, generator=draw).requires_grad_()
    for entries, expected in (
        ("squared", 2 * new @ old.T @ old),
        ("absolute", (new @ old.T).sign() @ old),
    ):
        (found,) = torch.autograd.grad(overlap(old, new, entries), new)
        torch.testing.assert_close(found, expected)


def test_orthogonal_directions_cost_nothing_and_the_penalty_finds_them():
    method = olora(orthogonality=1.0, entries="squared")
    learn(method, "sky")
    method.begin_task(task_named("sea"), Memory(0))
    trained = [weight for weight in method.parameters() if weight.requires_grad]
    before = method.penalty().item()
    # Each layer's overlap is quadratic in A: a step of half the inverse of its largest curvature descends.
    largest = max(torch.linalg.matrix_norm(method.pool.pair(layer, "sky")[0], 2) for layer in method.pool.layers)
    optimizer = torch.optim.SGD(trained, lr=0.5 / largest.item() ** 2)
    for _ in range(300):
        optimizer.zero_grad()
        method.penalty().backward()
        optimizer.step()
    assert method.penalty().item() < 1e-4 * before
    assert all(a.detach().any() for a, _ in method.pool.pairs("sea").values()), "directions remain"


def test_the_first_task_is_sequential_fine_tuning_bit_for_bit():
    ours = olora()
    theirs = SeqFt(Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(), 0))
    # First weights are drawn by an adapter's name; that of sequential fine-tuning is "shared".
    ours.ADAPTER = "sum"
    assert learn(ours, "shared") == learn(theirs, "shared")
    pairs = zip(weights(ours.pool, "shared"), weights(theirs.pool, "shared"), strict=True)
    assert all(torch.equal(here, there) for here, there in pairs)
    assert ours.penalty().item() == 0


def test_norms_of_a_matrix_of_zeros_have_a_gradient():
    method = olora(l2=0.1)
    learn(method, "sky")
    assert all(weight.isfinite().all() for weight in weights(method.pool, "sky"))


def test_earlier_adapters_rest_and_act_in_training_and_in_answering():
    method = olora()
    learn(method, "sky")
    rested = weights(method.pool, "sky")
    (first, *_) = learn(method, "sea", steps=1)
    alone = olora()
    (other, *_) = learn(alone, "sea", steps=1)
    assert abs(first - other) > 1e-3, "the first adapter is in the loss of the second"
    assert all(torch.equal(here, there) for here, there in zip(weights(method.pool, "sky"), rested, strict=True))
    trained = {id(parameter) for parameter in method.parameters() if parameter.requires_grad}
    assert trained == {id(weight) for pair in method.pool.pairs("sea").values() for weight in pair}
    merged = small.pool(targets=TARGETS).model
    with torch.no_grad():
        for layer in method.pool.layers:
            for task in ("sky", "sea"):
                merged.get_submodule(layer).weight += method.pool.delta(layer, task)
    with method.pool.use_adapter("shared") as model:
        torch.testing.assert_close(logits(model), logits(merged), atol=1e-4, rtol=1e-4)


def test_a_folder_is_the_sum_for_peft_and_gives_each_task_its_own_adapter_back(tmp_path):
    method, fresh = olora(), olora()
    for task in ("sky", "sea"):
        learn(method, task)
        method.save(task, tmp_path / task)
        fresh.restore(task, tmp_path / task)
    for task in ("sky", "sea"):
        pairs = zip(weights(fresh.pool, task), weights(method.pool, task), strict=True)
        assert all(torch.equal(here, there) for here, there in pairs)
    loaded = small.by_peft(method.pool, "shared", tmp_path)
    with method.pool.use_adapter("shared") as model:
        torch.testing.assert_close(logits(model), logits(loaded), atol=1e-4, rtol=1e-4)
    size = method.pool.adapter_bytes("sky")
    assert method.storage() == {"pool": size, "weights": 2 * size}
    assert learn(method, "ice") == learn(fresh, "ice")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"orthogonality": -0.1}, r"method\.orthogonality must be at least 0"),
        ({"l2": float("nan")}, r"method\.l2 must be at least 0"),
        ({"entries": "cubed"}, r"method\.entries must be one of absolute, squared"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        olora(**settings)
