"""A self-activated mixture of ranks: what is trained, what rests, what goes, and where it is plain LoRA."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.rank_mixture import MixtureOfRanks
from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.moram import MoRAM
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.methods.learning import learn, task_named
from tests.runs import toy

IDS = torch.arange(3, 43).view(2, 20)
TARGETS = ["q_proj", "down_proj"]
DEFAULT = {"budget": 4, "temperature": 0.03, "threshold": 0.2, "prune": 0.0}


def moram(*, rank: int = 4, activated: bool = False, **settings) -> MoRAM:
    pool = small.pool(rank=rank, targets=TARGETS, activated=activated)
    return MoRAM(Setup(pool, small.TEMPLATE, OptimConfig(), 0), **DEFAULT | settings)


def weights(pool: ExpertPool, adapter: str) -> list[Tensor]:
    return [weight.detach().clone() for layer in pool.layers for weight in pool.pair(layer, adapter)]


def logits(pool: ExpertPool) -> Tensor:
    with torch.inference_mode(), pool.use_adapter("shared") as model:
        return model(input_ids=IDS).logits


def test_a_first_task_of_a_single_rank_is_sequential_fine_tuning_bit_for_bit():
    ours = moram(rank=1, budget=1, threshold=0.0)
    theirs = SeqFt(Setup(small.pool(rank=1, targets=TARGETS), small.TEMPLATE, OptimConfig(), 0))
    # First weights are drawn by an adapter's name; that of sequential fine-tuning is "shared".
    assert learn(ours, "shared") == learn(theirs, "shared")
    pairs = zip(weights(ours.pool, "shared"), weights(theirs.pool, "shared"), strict=True)
    assert all(torch.equal(here, there) for here, there in pairs)
    torch.testing.assert_close(logits(ours.pool), logits(theirs.pool), atol=1e-5, rtol=1e-5)


def test_all_ranks_of_a_first_task_at_an_endless_temperature_are_plain_lora_of_an_rth_of_the_scale():
    pool = small.pool("sky", rank=4, alpha=16.0, targets=TARGETS)
    pool.register("shared", MixtureOfRanks(pool, ("sky",), budget=4, temperature=1e9, threshold=0.0))
    plain = small.pool("shared", rank=4, alpha=4.0, targets=TARGETS)
    torch.testing.assert_close(logits(pool), logits(plain), atol=1e-5, rtol=1e-5)


def test_old_ranks_rest_and_answer_with_the_new_ones():
    method = moram()
    learn(method, "sky")
    before, said = weights(method.pool, "sky"), logits(method.pool)
    learn(method, "sea")
    assert all(torch.equal(here, there) for here, there in zip(weights(method.pool, "sky"), before, strict=True))
    trained = {id(parameter) for parameter in method.parameters() if parameter.requires_grad}
    assert trained == {id(weight) for layer in method.pool.layers for weight in method.pool.pair(layer, "sea")}
    assert not torch.allclose(logits(method.pool), said, atol=1e-3)
    with torch.no_grad():
        for layer in method.pool.layers:
            method.pool.pair(layer, "sky")[1].zero_()
    assert not torch.allclose(logits(method.pool), said, atol=1e-3), "old ranks are not heard"
    assert method.pool.names == ["shared"]


def test_at_a_threshold_that_no_rank_reaches_the_base_model_answers():
    method = moram(threshold=1.0)
    learn(method, "sky")
    with torch.inference_mode(), method.pool.use_adapter(None) as model:
        assert torch.equal(logits(method.pool), model(input_ids=IDS).logits)


def test_new_ranks_are_drawn_by_their_tasks_name():
    method, other = moram(), moram()
    for one in ("sky", "sea"):
        method.begin_task(task_named(one), Memory(0))
    other.begin_task(task_named("sea"), Memory(0))
    pairs = zip(weights(method.pool, "sea"), weights(other.pool, "sea"), strict=True)
    assert all(torch.equal(here, there) for here, there in pairs)
    assert not torch.equal(weights(method.pool, "sky")[0], weights(method.pool, "sea")[0])


@pytest.mark.parametrize("activated", [False, True])
def test_the_ranks_that_acted_least_on_the_tasks_own_prompts_go(activated):
    method = moram(rank=8, budget=6, temperature=0.3, threshold=0.0, prune=0.25, activated=activated)
    for name in ("sky", "sea"):
        learn(method, name)
    said = logits(method.pool)
    heard: dict[object, list[Tensor]] = {}
    add = MixtureOfRanks.add

    def listening(adapter, layer, x):
        heard.setdefault(layer, []).append(x.detach().flatten(0, -2))
        return add(adapter, layer, x)

    old = weights(method.pool, "sky")
    before = {layer: method.pool.pair(layer, "sea")[0].detach().clone() for layer in method.pool.layers}
    with torch.no_grad(), patch.object(MixtureOfRanks, "add", listening):
        method.end_task(task_named("sea"), Memory(0))
    own = [small.TEMPLATE.prompt_ids(example.prompt) for example in task_named("sea").train]
    tokens = sum(len(small.HEADER) if activated else len(prompt) for prompt in own)
    for (layer, a), gone in zip(before.items(), pruned(method.pool, "sea"), strict=True):
        x = torch.cat(heard[layer])
        assert len(x) == tokens
        low = x @ torch.cat([a, method.pool.pair(layer, "sky")[0]]).T
        scores = low / low.norm(dim=-1, keepdim=True)
        sixth = scores.sort(dim=-1, descending=True).values[:, 5:6]
        powers = (scores / 0.3).exp() * (scores >= sixth)
        acted = (powers / powers.sum(-1, keepdim=True)).mean(0)[:8]
        assert gone == sorted(acted.topk(2, largest=False).indices.tolist())
        a[gone] = 0
        assert torch.equal(method.pool.pair(layer, "sea")[0], a)
    assert all(torch.equal(here, there) for here, there in zip(weights(method.pool, "sky"), old, strict=True))
    assert not torch.equal(logits(method.pool), said)


def pruned(pool: ExpertPool, adapter: str) -> list[list[int]]:
    """Of each layer, the ranks that are zero in both matrices."""
    pairs = [pool.pair(layer, adapter) for layer in pool.layers]
    return [[rank for rank in range(len(a)) if not a[rank].any() and not b[:, rank].any()] for a, b in pairs]


def test_without_pruning_the_end_of_a_task_reads_nothing_and_changes_nothing():
    method = moram()
    learn(method, "sky")
    before = weights(method.pool, "sky")
    with patch.object(ExpertPool, "prefill", side_effect=AssertionError("a prompt was read")):
        method.end_task(task_named("sky"), Memory(0))
    assert all(torch.equal(here, there) for here, there in zip(weights(method.pool, "sky"), before, strict=True))


def test_files_hold_a_tasks_own_ranks_and_what_was_pruned_stays_gone(tmp_path):
    method = moram(rank=4, prune=0.5, threshold=0.0)
    for name in ("sky", "sea", "ice"):
        learn(method, name)
        with torch.no_grad():
            method.end_task(task_named(name), Memory(0))
        method.save(name, tmp_path / name)
    again = moram(rank=4, prune=0.5, threshold=0.0)
    for name in ("sky", "sea", "ice"):
        again.restore(name, tmp_path / name)
    assert torch.equal(logits(again.eval().pool), logits(method.pool))
    assert again.storage() == method.storage()
    assert [len(gone) for name in ("sky", "sea") for gone in pruned(again.pool, name)] == [2] * 8


def test_storage_counts_the_ranks_that_are_there(tmp_path):
    method = moram(rank=4, prune=0.25)
    for number, name in enumerate(("sky", "sea"), start=1):
        learn(method, name)
        with torch.no_grad():
            method.end_task(task_named(name), Memory(0))
        method.save(name, tmp_path / name)
        whole = sum(weight.nbytes for weight in load_file(tmp_path / name / "adapter_model.safetensors").values())
        assert [len(gone) for gone in pruned(method.pool, name)] == [1] * 4
        assert method.storage() == {"pool": whole, "weights": number * whole * 3 // 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, r"method.budget must be at least 1; got 0"),
        ({"temperature": 0}, r"method.temperature must be at least 0.001; got 0"),
        ({"threshold": 1.5}, r"method.threshold must be between 0 and 1; got 1.5"),
        ({"prune": -0.5}, r"method.prune must be between 0 and 1; got -0.5"),
        ({"prune": 1}, r"method.prune=1 drops 4 of a task's 4 new ranks; it must drop at least one and leave one"),
        ({"prune": 0.1}, r"method.prune=0.1 drops 0 of a task's 4 new ranks"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        moram(**settings)


def test_the_budget_is_a_tasks_rank_unless_it_is_given():
    def budget(*overrides: str) -> int:
        return toy.compose(Path("data"), Path("runs"), "method=moram", *overrides).method.budget

    assert (budget("adapter.rank=5"), budget("adapter.rank=5", "method.budget=9")) == (5, 9)
