"""Hooked layers: by the names of targets, before there is any adapter, observed in every pass, and merged."""

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from see_lightning.adapters import files
from see_lightning.adapters.composites import Dense, Sum
from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.weight_cache import WeightCache
from see_lightning.config.schema import AdapterConfig
from see_lightning.errors import ConfigError
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.batches import IGNORED, Batch
from tests.adapters import small

IDS = torch.arange(3, 43).view(2, 20)


def batch() -> Batch:
    labels = IDS.masked_fill(torch.arange(20) < 15, IGNORED)
    return Batch(IDS, torch.ones_like(IDS), labels, ["a", "b"])


def said(pool: ExpertPool, adapter) -> Tensor:
    with torch.no_grad(), pool.use_adapter(adapter) as model:
        return model(input_ids=IDS).logits


def test_layers_are_the_base_models_by_name_and_in_order_with_and_without_adapters():
    pool = small.pool(targets=["v_proj", "q_proj"])
    base = dict(pool.model.named_modules())
    expected = [f"model.layers.{n}.self_attn.{name}" for n in range(2) for name in ("q_proj", "v_proj")]
    assert list(pool.layers) == expected
    assert all(pool.layers[name] is base[name] for name in expected)
    before = dict(pool.layers)
    pool.add_expert("qa", 0)
    assert pool.layers == before
    assert list(pool.pairs("qa")) == expected


def test_layers_of_gpt_2_are_hooked_too():
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    base = GPT2LMHeadModel(config).requires_grad_(False).eval()
    pool = ExpertPool(base, AdapterConfig(rank=2, dropout=0.0, targets=["c_attn"]), "gpt2")
    assert list(pool.layers) == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    pool.add_expert("qa", 0)
    for _, up in pool.pairs("qa").values():
        nn.init.normal_(up, std=0.3)
    pool.eval()
    x = torch.randint(64, (1, 8))
    dense = Dense({layer: pool.delta(layer, "qa") for layer in pool.layers})
    with torch.no_grad(), pool.use_adapter("qa") as model:
        one = model(input_ids=x).logits
    with torch.no_grad(), pool.use_adapter(dense) as model:
        torch.testing.assert_close(model(input_ids=x).logits, one)
    assert not torch.allclose(one, base(input_ids=x).logits, atol=1e-3)


@pytest.mark.parametrize("names", [(), ("qa",)])
def test_observers_get_every_layers_input_and_output_in_order(names):
    pool = small.pool(*names)
    seen: dict[str, Tensor] = {}
    with pool.observe(lambda layer, x, y: seen.update({layer: (x, y)}), outputs=True):
        said(pool, None)
    assert list(seen) == list(pool.layers)
    for layer, (x, y) in seen.items():
        torch.testing.assert_close(y, x @ pool.layers[layer].weight.T)
    if names:
        with pool.observe(lambda layer, x, y: seen.update({layer: (x, y)}), outputs=True):
            said(pool, "qa")
        for layer, (x, y) in seen.items():
            torch.testing.assert_close(y, x @ (pool.layers[layer].weight + pool.delta(layer, "qa")).T)


def test_a_covariance_is_that_of_the_layers_inputs_and_nothing_is_observed_outside():
    pool = small.pool("qa")
    layer = small.first(pool)
    inputs: list[Tensor] = []
    handle = pool.layers[layer].register_forward_hook(lambda _, given, __: inputs.append(given[0]))
    sums = torch.zeros(2 * (pool.layers[layer].in_features,))

    def covariance(name: str, x: Tensor) -> None:
        if name == layer:
            flat = x.flatten(0, -2)
            sums.add_(flat.T @ flat)

    said(pool, "qa")
    with pool.observe(covariance):
        said(pool, "qa")
        said(pool, None)
    said(pool, "qa")
    handle.remove()
    assert len(inputs) == 4
    rows = torch.cat([x.flatten(0, -2) for x in inputs[1:3]])
    torch.testing.assert_close(sums, rows.T @ rows)


def test_observers_stand_within_each_other_and_leave_when_a_pass_fails():
    pool, outer, inner = small.pool(), [], []
    with pool.observe(lambda layer, x: outer.append(layer)):
        with pool.observe(lambda layer, x: inner.append(layer)):
            said(pool, None)
        with pytest.raises(KeyError), pool.observe(lambda layer, x: inner.append({}[layer])):
            said(pool, None)
        said(pool, None)
    said(pool, None)
    assert len(inner) == len(pool.layers)
    assert len(outer) == 2 * len(pool.layers) + 1


@pytest.mark.parametrize("activated", [False, True])
def test_logits_under_any_adapter_are_forwards_without_gradients(activated):
    pool = small.pool("qa", "qg", activated=activated)
    ids = [*range(3, 20), *small.HEADER]
    rows = torch.tensor([[*ids, 7, 8], [*reversed(range(3, 20)), *small.HEADER, 9, 5]])
    labels = rows.masked_fill(torch.arange(rows.shape[1]) < len(ids), IGNORED)
    given = Batch(rows, torch.ones_like(rows), labels, ["a", "b"])
    for name in ("qa", "qg"):
        pool.train_only(name)
        pool.eval()
        expected = pool(rows, given.attention_mask_BS, labels)
        pool.train()  # nothing is left out at random, and the model goes on training
        found = pool.logits(given, name)
        assert pool.training
        assert pool.model.training
        assert not found.requires_grad
        torch.testing.assert_close(found, expected)
        assert pool.logits(given, name, grad=True).requires_grad
        pool.eval()
    with torch.no_grad(), pool.use_adapter(None) as model:
        whole = model(input_ids=rows).logits
    said_rows = whole[:, len(ids) - 1 : -1].flatten(0, 1)
    torch.testing.assert_close(pool.logits(given), said_rows)


def test_an_adapter_that_is_no_expert_is_a_teacher_and_adding_it_freezes_the_others():
    pool = small.pool("qa", "qg")
    assert any(weight.requires_grad for weight in pool.parameters())
    assert not pool.has_adapter("teacher")
    pool.add_adapter("teacher", 0)
    assert pool.has_adapter("teacher")
    assert not any(weight.requires_grad for weight in pool.parameters())
    pool.load_weights("teacher", pool.pairs("qa"))
    assert pool.names == ["qa", "qg"]
    torch.testing.assert_close(said(pool, "teacher"), said(pool, "qa"))
    with pytest.raises(KeyError, match="no expert named 'techer'"):
        said(pool, "techer")


def test_a_sum_of_adapters_is_the_dense_change_of_their_summed_deltas():
    pool = small.pool("qa", "qg", "sa")
    pool.add_adapter("wide", 1, times=2)
    for _, up in pool.pairs("wide").values():
        nn.init.normal_(up, std=0.3)
    names, factors = ("qa", "wide", "sa"), (0.5, -0.25, 2.0)
    merged = Sum(pool, names, factors)
    deltas = {
        layer: sum(w * pool.delta(layer, name) for w, name in zip(factors, names, strict=True)) for layer in pool.layers
    }
    dense = Dense(deltas)
    for layer, of in pool.layers.items():
        x = torch.randn(3, of.in_features) * of.in_features**-0.5
        found, expected = merged.add(layer, x), dense.add(layer, x)
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6
        torch.testing.assert_close(merged.learn(layer, x, expected), 2 * expected)
        torch.testing.assert_close(dense.learn(layer, x, expected), 2 * expected)
    pool.register("merged", merged)
    pool.register("dense", dense)
    torch.testing.assert_close(said(pool, "merged"), said(pool, "dense"), rtol=1e-4, atol=1e-4)
    mixed = said(pool, ["merged", "qg"])
    torch.testing.assert_close(mixed[0], said(pool, "merged")[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[1], said(pool, "qg")[1], rtol=1e-4, atol=1e-4)


def test_merged_adapters_follow_their_weights_and_so_do_their_digests():
    pool = small.pool("qa", "qg")
    layer = small.first(pool)
    merged, dense = Sum(pool, ("qa", "qg"), (0.5, 0.5)), Dense({name: pool.delta(name, "qa") for name in pool.layers})
    pool.register("merged", merged)
    pool.register("dense", dense)
    x = torch.ones(1, pool.layers[layer].in_features)
    for name, adapter, weight in (("merged", merged, pool.pair(layer, "qg")[1]), ("dense", dense, dense.deltas[layer])):
        before, digest = adapter.add(layer, x), pool.digest(name)
        with torch.no_grad():
            weight.mul_(2)
        assert not torch.equal(adapter.add(layer, x), before)
        assert pool.digest(name) != digest


def test_a_sum_is_written_as_a_plain_adapter_of_all_its_ranks(tmp_path):
    pool = small.pool("qa", "qg")
    pool.register("merged", Sum(pool, ("qa", "qg"), (0.5, 1.5)))
    theirs = small.by_peft(pool, "merged", tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=IDS).logits, said(pool, "merged"), rtol=1e-4, atol=1e-4)
    pool.register("dense", Dense({name: pool.delta(name, "qa") for name in pool.layers}))
    with pytest.raises(ConfigError, match="full rank"):
        files.save(pool, "dense", tmp_path / "dense")


def test_sums_want_a_weight_for_each_adapter():
    with pytest.raises(ValueError, match="1 adapters and 2 weights"):
        Sum(small.pool("qa"), ("qa",), (1.0, 2.0))


def test_a_value_is_made_once_until_a_weight_changes_and_can_carry_gradients():
    cache, weight, made = WeightCache(), torch.ones(3), []

    def make() -> Tensor:
        made.append(1)
        return weight * 2

    with torch.inference_mode():
        first = cache.get("k", lambda: (weight,), make)
        assert cache.get("k", lambda: (weight,), make) is first
    (torch.ones(3, requires_grad=True) * first).sum().backward()
    weight.add_(1)
    assert cache.get("k", lambda: (weight,), make).tolist() == [4.0] * 3
    assert len(made) == 2
    cache.forget("k")
    cache.get("k", lambda: (weight,), make)
    assert len(made) == 3


def test_a_pool_adapts_nothing_where_targets_are_left_open():
    assert ExpertPool(tiny_model(), AdapterConfig(rank=2, targets="all-linear"), "tiny").layers == {}
