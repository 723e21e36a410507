"""OSFT: what is protected, no change of it under AdamW, the merged model, and what is kept."""

from types import SimpleNamespace

import pytest
import torch
from peft.tuners.osf.utils import decompose_weight_matrix, project_gradient_to_orthogonal_space
from torch import Tensor, nn

from see_lightning.adapters.factored_layers import FactoredLayers, without
from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.osft import Osft, shares, similarity
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.methods.fixed import waves
from tests.methods.learning import ended, fit, learn, task_named
from tests.methods.test_whole_layers import BASES

DEFAULT = {"min_retained": 0.2, "target_retained": 0.6, "rows": 300}


def osft(kind: str = "llama", optim: OptimConfig | None = None, **settings) -> Osft:
    make, targets = BASES[kind]
    pool = small.pool(full=True, targets=targets, base=make())
    return Osft(Setup(pool, small.TEMPLATE, optim or OptimConfig(), 0), **DEFAULT | settings)


def matrices(method) -> dict[str, Tensor]:
    return {layer: one.detach().clone() for layer, one in method.pool.composites["shared"].matrices().items()}


@pytest.mark.parametrize("kind", BASES)
def test_changes_have_no_component_in_protected_directions_under_adamw(kind):
    method = ended(osft(kind, min_retained=0.1, target_retained=0.3), "sky")
    before = matrices(method)
    losses = learn(method, "sea", steps=40)
    counts = {layer: len(kept.left_KM) for layer, kept in method.learning.protected.items()}
    with torch.no_grad():
        method.end_task(task_named("sea"), Memory(0))
    assert losses[-1] < losses[0]
    for layer, old in before.items():
        change = (matrices(method)[layer] - old).double()
        u, _, v = torch.linalg.svd(old.double())  # of our own, without the method's factors
        left, right = u[:, : counts[layer]], v[: counts[layer]]
        assert 0 < counts[layer] < min(old.shape)
        assert change.norm() > 0.1 * old.norm()
        assert (left.T @ change).norm() + (change @ right.T).norm() < 1e-5 * change.norm()


def test_projecting_gradients_alone_would_leak(monkeypatch):
    method = osft()
    monkeypatch.setattr(method, "after_step", lambda: None)
    learn(method, "sky", steps=40)
    leaked, moved = 0.0, 0.0
    for layer, (low, _, _) in method.learning.factors.items():
        left = method.learning.protected[layer].left_KM
        leaked += (left @ low).norm().item()
        moved += low.norm().item()
    assert leaked > 0.01 * moved


def factored() -> FactoredLayers:
    """A layer of five outputs and four inputs, two directions of which are protected."""
    whole = SimpleNamespace(matrices=lambda: {"q": nn.Parameter(waves(5, 4).float())})
    return FactoredLayers(whole, {"q": 2})


def test_steps_of_adamw_are_those_of_the_authors_code():
    """Of mini_trainer 0.9.0 (PyPI: rhai-innovation-mini-trainer), mini_trainer/osft_utils.py, in fp64: the matrix after one
    step and after five, whose gradients and factors are projected.
    """
    theirs = {
        0: [
            [0.47911903, 0.77275598, 0.34936963, -0.83511767],
            [0.7152813, -0.85836605, 0.91416087, 0.27621108],
            [-0.59222045, -1.06871463, -1.03043054, -0.66140273],
            [0.41744698, 0.79607133, -0.99166878, 0.95401689],
            [-0.50859975, -0.02291063, 0.87223523, 0.65350503],
        ],
        4: [
            [0.75015521, 0.57067812, 0.24647675, -0.65739348],
            [0.96049525, -1.20384519, 0.76071195, 0.73227658],
            [-0.22067725, -1.37662425, -1.1829439, -0.36168648],
            [0.77380075, 0.43944789, -1.16069546, 1.35276437],
            [-0.08508951, -0.24465397, 0.74634698, 0.76053878],
        ],
    }
    layers, aim = factored(), waves(5, 4, phase=1.0).float()
    optimizer = torch.optim.AdamW(layers.factors["q"], lr=0.1, weight_decay=0.1)
    for step in range(5):
        optimizer.zero_grad()
        (layers.matrix("q") - aim).square().sum().backward()
        layers.project_gradients()
        optimizer.step()
        layers.project()
        if step in theirs:
            found = layers.matrix("q").detach()
            torch.testing.assert_close(found, torch.tensor(theirs[step]), atol=1e-4, rtol=0)


def test_a_step_along_the_projected_gradient_is_that_of_pefts_osf():
    layers, aim = factored(), waves(5, 4, phase=1.0).float()
    (layers.matrix("q") - aim).square().sum().backward()
    layers.project_gradients()
    low_MR, low_R, low_RN = (factor.detach() - 0.1 * factor.grad for factor in layers.factors["q"])
    theirs = decompose_weight_matrix(waves(5, 4).float(), 2)
    names = ("U_low", "S_low", "V_low")
    kept = (theirs["U_high"] * theirs["S_high"]) @ theirs["V_high"]
    (kept + (theirs["U_low"] * theirs["S_low"]) @ theirs["V_low"] - aim).square().sum().backward()
    before = [theirs[name].grad.clone() for name in names]
    project_gradient_to_orthogonal_space(theirs)
    assert (theirs["U_low"].grad - before[0]).norm() > 0.1, "there is something to project"
    u, s, v = (theirs[name].detach() - 0.1 * theirs[name].grad for name in names)
    torch.testing.assert_close((low_MR * low_R) @ low_RN, (u * s) @ v, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", BASES)
def test_the_merged_model_is_the_factored_one(kind):
    method = osft(kind)
    learn(method, "sky", steps=5)
    (batch,) = method.batches(task_named("sea").train, 3)
    factored = method.pool.logits(batch, method.FACTORS)
    explicit = {}
    for layer, old in matrices(method).items():
        u, s, v = torch.linalg.svd(old.double(), full_matrices=False)
        k = len(method.learning.protected[layer].left_KM)
        low_MR, low_R, low_RN = (part.detach().double() for part in method.learning.factors[layer])
        explicit[layer] = (u[:, :k] * s[:k]) @ v[:k] + low_MR @ low_R.diag() @ low_RN
    before = method.pool.logits(batch, method.ADAPTER)
    with torch.no_grad():
        method.end_task(task_named("sky"), Memory(0))
    assert torch.equal(method.pool.logits(batch, method.ADAPTER), factored)
    assert (factored - before).abs().max() > 0.01
    for layer, matrix in matrices(method).items():
        torch.testing.assert_close(matrix.double(), explicit[layer], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", BASES)
def test_a_task_begins_with_the_model_of_the_one_before(kind):
    method = ended(osft(kind), "sky")
    (batch,) = method.batches(task_named("sea").train, 3)
    before = method.pool.logits(batch, method.ADAPTER)
    method.begin_task(task_named("sea"), Memory(0))
    torch.testing.assert_close(method.pool.logits(batch, method.FACTORS), before, atol=1e-5, rtol=1e-5)
    trained = {id(weight) for weight in method.trained_weights()}
    assert trained == {id(factor) for some in method.learning.factors.values() for factor in some}


def test_gradients_of_the_factors_are_those_of_the_product_and_are_projected():
    """By the chain rule from the gradient of the whole matrix, without a layer's factors."""
    method, whole = osft(), small.pool(full=True, targets=BASES["llama"][1], base=BASES["llama"][0]())
    whole.add_expert("shared", weights_seed=0)
    method.begin_task(task_named("sky"), Memory(0))
    (batch,) = method.batches(task_named("sky").train, 3)
    method.loss(batch).backward()
    wanted = batch.labels_BS[batch.labels_BS != -100]
    logits = whole.eval()(batch.input_ids_BS, batch.attention_mask_BS, batch.labels_BS)
    torch.nn.functional.cross_entropy(logits, wanted).backward()
    method.edit_gradients()
    for layer, copy in whole.composites["shared"].matrices().items():
        low_MR, low_R, low_RN = (factor.detach() for factor in method.learning.factors[layer])
        kept = method.learning.protected[layer]
        of_left, of_values, of_right = (factor.grad for factor in method.learning.factors[layer])
        left = torch.eye(len(low_MR)) - kept.left_KM.T @ kept.left_KM
        right = torch.eye(low_RN.shape[1]) - kept.right_KN.T @ kept.right_KN
        for found, expected in (
            (of_left, left @ copy.grad @ (low_R[:, None] * low_RN).T),
            (of_values, (low_MR.T @ copy.grad @ low_RN.T).diagonal()),
            (of_right, (low_MR * low_R).T @ copy.grad @ right),
        ):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_the_share_that_is_protected_follows_the_similarity_of_inputs_and_outputs():
    """Against a loop over tokens; layers whose sizes differ compare the first entries."""
    method = osft()
    task = task_named("sky")
    method.begin_task(task, Memory(0))
    found, seen = method.protected, {}

    def note(layer, x, y):
        for x_I, y_O in zip(x.flatten(0, -2), y.flatten(0, -2), strict=True):
            size = min(len(x_I), len(y_O))
            a, b = x_I[:size], y_O[:size]
            seen.setdefault(layer, []).append(float(a @ b / (a.norm() * b.norm())))

    for row in method.batches(task.train, 1):
        with method.pool.observe(note, outputs=True):
            method.pool.logits(row, method.ADAPTER)
    means = {layer: sum(some) / len(some) for layer, some in seen.items()}
    average = sum(max(0, one) for one in means.values()) / len(means)
    for layer, matrix in matrices(method).items():
        size = min(matrix.shape)
        share = min(1.0, 0.2 + 0.4 * max(0, means[layer]) / average)
        assert found[layer] == min(round(share * size), size - 1) / size
    assert len(set(found.values())) > 1
    assert method.report() == {"protected_share": round(sum(found.values()) / len(found), 4)}


def test_cosines_and_ranks_are_those_of_the_formula_in_the_authors_repository():
    """Of the commented lines in notebooks/finetune_svd.py of orthogonal-subspace-learning at a5f91f6, whose least share is
    a half and whose target is all.
    """
    sizes, found = {"q": (4, 4), "up": (6, 4), "down": (4, 6), "gate": (6, 4)}, {}
    for number, (layer, (o, i)) in enumerate(sizes.items()):
        sign, part = (-1, 0.6) if layer == "gate" else (1, 0.9)
        matrix = 0.8 * sign * torch.eye(o, i) + part * waves(o, i, phase=number)
        x = waves(5, i, phase=10.0 + number)
        found[layer] = float(similarity(x, x @ matrix.T) / 5)
    theirs = {"q": 0.3016048554, "up": 0.5558074866, "down": 0.6943187046, "gate": -0.4807386766}
    assert found == pytest.approx(theirs, abs=1e-6)
    positive = {layer: found[layer] for layer in ("q", "up", "down")}
    assert {layer: round(share * 4) for layer, share in shares(positive, 0.5, 1.0).items()} == {
        "q": 3,
        "up": 4,
        "down": 4,
    }
    # Of all four, theirs are 4, 4, 4 and 1: a negative cosine lowers the mean, and its own rank below the least one.
    assert round(shares(found, 0.5, 1.0)["gate"] * 4) == 2


def test_without_any_similarity_all_layers_have_the_target():
    assert shares({"q": -0.1, "v": 0.0}, 0.1, 0.8) == {"q": 0.8, "v": 0.8}
    assert shares({"q": 1.0, "v": 0.0}, 0.5, 0.9) == {"q": 1.0, "v": 0.5}


def test_some_direction_of_each_layer_is_always_free():
    method = osft(min_retained=1.0, target_retained=1.0)
    method.begin_task(task_named("sky"), Memory(0))
    assert all(len(low) == 1 for _, low, _ in method.learning.factors.values())
    free = osft(min_retained=0.0, target_retained=0.0)
    free.begin_task(task_named("sky"), Memory(0))
    assert free.report() == {"protected_share": 0.0}
    assert all(len(kept.left_KM) == 0 for kept in free.learning.protected.values())


def test_fewer_rows_are_drawn_by_the_seed():
    one, same, other = (osft(rows=rows) for rows in (1, 1, 2))
    for method in (one, same, other):
        method.begin_task(task_named("sky"), Memory(0))
    assert one._similarities(task_named("sky")) == same._similarities(task_named("sky"))
    assert one._similarities(task_named("sky")) != other._similarities(task_named("sky"))


def test_ranks_measure_importance_together():
    alone, task = osft(), task_named("sky")
    alone.begin_task(task, Memory(0))
    expected, parts = alone._similarities(task), []
    for rank in (0, 1):
        pool = small.pool(full=True, targets=BASES["llama"][1], base=BASES["llama"][0]())
        part = Osft(Setup(pool, small.TEMPLATE, OptimConfig(), 0, rank, 2), **DEFAULT)
        pool.add_expert("shared", weights_seed=0)
        noted: list[Tensor] = []
        part.average = lambda both, noted=noted: noted.append(both) or both
        part._similarities(task)
        parts.append(noted)
    for (layer, mean), first, second in zip(expected.items(), *parts, strict=True):
        cosines, tokens = first + second
        assert float(cosines / tokens) == pytest.approx(mean, abs=1e-6), layer


def test_a_restored_method_goes_on_as_one_that_was_not_interrupted(tmp_path):
    method, fresh = osft(), osft()
    for number, task in enumerate(("sky", "sea")):
        fit(method, task, past=("sky",) * number, lr=1e-2)
        with torch.no_grad():
            method.end_task(task_named(task), Memory(0))
        method.save(task, tmp_path / task)
        fresh.restore(task, tmp_path / task)
        assert all(torch.equal(matrices(fresh)[layer], one) for layer, one in matrices(method).items())
    size = sum(copy.nbytes for copy in method.pool.composites["shared"].weights())
    assert method.storage() == fresh.storage() == {"pool": size, "weights": size}
    assert fit(method, "ice", lr=1e-2) == fit(fresh, "ice", lr=1e-2)
    for ours, theirs in zip(method.trained_weights(), fresh.trained_weights(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_projection_takes_whole_directions_out_and_leaves_the_others():
    draw = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(9, 4, generator=draw).double()).Q.T
    rows = torch.randn(5, 9, generator=draw).double()
    left = without(rows, directions)
    assert (left @ directions.T).abs().max() < 1e-12
    torch.testing.assert_close(left + rows @ directions.T @ directions, rows)


def test_biases_and_the_base_model_stay():
    method = ended(osft("gpt2"), "sky")
    given = BASES["gpt2"][0]().state_dict()
    assert all(torch.equal(weight, given[name]) for name, weight in method.pool.model.state_dict().items())
    copies = method.pool.composites["shared"].named()
    assert all(torch.equal(copy, given[name]) for name, copy in copies.items() if name.endswith("bias"))
    assert not any(isinstance(one, FactoredLayers) for one in method.pool.composites.values())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"min_retained": -0.1}, r"method\.min_retained must be between 0 and 1"),
        ({"target_retained": 0.1}, r"method\.target_retained must be between 0\.2 and 1"),
        ({"rows": 0}, r"method\.rows must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        osft(**settings)


def test_a_pool_of_lora_adapters_is_refused():
    with pytest.raises(ConfigError, match="adapter=full"):
        Osft(Setup(small.pool(), small.TEMPLATE, OptimConfig(), 0), **DEFAULT)
