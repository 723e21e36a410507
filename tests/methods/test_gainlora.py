"""GainLoRA: the gate, the authors' numbers, spans against explicit ones, and gates that stay at 0 on earlier prompts."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.gainlora import GainLora, Gate, extended, gate
from see_lightning.methods.olora import overlap
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.methods.worded import ROWS, learn, prompts, task

TARGETS = ["q_proj", "down_proj", "lm_head"]


def gainlora(**changed) -> GainLora:
    settings = {"threshold": 1.0, "width": 12, "orthogonality": 0.0} | changed
    return GainLora(Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(), 0), **settings)


def test_gates_are_those_of_the_authors_code():
    """Run on these tensors: ``cal_attention`` and ``trans_input`` of src/t5_large.py, liangyanshuo/gainlora, commit a47edf4."""
    down = torch.tensor([[0.5, -1.0, 0.25, 0.75], [1.5, 0.5, -0.5, -0.25], [-0.75, 0.25, 1.0, 0.5]])
    up = torch.tensor([[1.0, -0.5, 0.25], [0.5, 0.75, -1.0], [-1.25, 0.5, 0.5], [0.25, 1.0, 0.75]])
    means = torch.tensor([[0.4, -0.2, 1.0, 0.6], [-1.0, 0.5, 0.3, -0.7]])
    found = Gate(down, up, torch.tensor([0.3, -0.8, 0.5, 1.0]))(means)
    assert found.tolist() == pytest.approx([0.7638487815856934, 0.891310453414917], abs=1e-6)


def test_a_gate_is_its_formula():
    draw = torch.Generator().manual_seed(0)
    key, rows = torch.randn(5, generator=draw), torch.randn(4, 5, generator=draw)
    for row, found in zip(rows, gate(key, rows).tolist(), strict=True):
        cosine = float(key @ row / (key.norm() * row.norm()))
        assert found == pytest.approx(abs(2 / (1 + math.exp(-4 * cosine)) - 1), abs=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999, 1.0])
def test_a_span_explains_the_share_with_as_few_directions_as_possible(share):
    draw = torch.Generator().manual_seed(1)
    scale = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1, 0.0])
    first, rows = torch.randn(2, 6, generator=draw), torch.randn(5, 6, generator=draw) * scale
    old = extended(torch.zeros(6, 0), first, 1.0)
    torch.testing.assert_close(first @ old @ old.T, first)
    found = extended(old, rows, share)
    torch.testing.assert_close(found.T @ found, torch.eye(found.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found @ found.T @ old, old, atol=1e-5, rtol=0)

    def explained(basis: Tensor) -> float:
        return float((rows @ basis).square().sum() / rows.square().sum())

    assert explained(found) >= share - 1e-5
    more = found.shape[1] - old.shape[1]
    rest = rows - rows @ old @ old.T
    best = torch.linalg.svd(rest)[1].square()  # of any directions outside, the first ones explain most
    with_one_less = explained(old) + float(best[: more - 1].sum() / rows.square().sum()) if more else 0.0
    assert with_one_less < share


def test_rows_that_a_span_explains_add_nothing():
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    basis = extended(torch.zeros(6, 0), rows, 1.0)
    assert extended(basis, 2 * rows[:2], 1.0).shape == basis.shape == (6, 3)


def test_new_gates_are_zero_on_earlier_prompts_after_many_steps_and_old_ones_do_not_move():
    method = gainlora()
    learn(method, "sky")
    first = method.prompt_weights(prompts("sky")).clone()
    assert first.shape == (ROWS, 1)
    assert first.min() > 0.5
    for number, name in enumerate(("sea", "ice")):
        start = method.gates[0].down.detach().clone()
        losses = learn(method, name, steps=30)
        assert losses[-1] < losses[0]
        assert not torch.allclose(method.gates[0].down, start, atol=1e-3), "the gate is trained"
        for before in ("sky", "sea")[: number + 1]:
            assert method.prompt_weights(prompts(before))[:, 0].max() < 1e-5
        assert method.prompt_weights(prompts(name))[:, 0].max() > 0.01
    assert torch.equal(method.prompt_weights(prompts("sky"))[:, -1:], first)


def test_changes_of_the_gate_have_no_component_in_the_spans():
    method = gainlora()
    learn(method, "sky")
    spans = [basis.clone() for basis in method.bases]
    learn(method, "sea", steps=20)
    before = [method._start[0], method._start[1], method._start[2][None]]
    after = [method.gates[0].down, method.gates[0].up, method.gates[0].key[None]]
    for old, new, span in zip(before, after, spans, strict=True):
        change = (new - old).detach()
        assert change.norm() > 1e-2
        assert (change @ span).norm() < 1e-5 * change.norm()


def test_earlier_tasks_keep_their_answers_where_spans_explain_everything():
    method = gainlora()
    learn(method, "sky")
    (batch,) = method.batches(task("sky").train, ROWS)
    before = method.logits(batch).detach()
    learn(method, "sea", steps=20)
    with torch.no_grad():
        torch.testing.assert_close(method.logits(batch), before, atol=1e-4, rtol=1e-4)
        (other,) = method.batches(task("sea").train, ROWS)
        assert not torch.allclose(method.logits(other), method.pool.logits(other), atol=1e-2)


def test_answers_of_a_batch_and_its_likelihoods_are_those_of_each_query_under_its_own_gates():
    method = gainlora(threshold=0.9)
    for name in ("sky", "sea"):
        learn(method, name)
    queries = small.queries([row.prompt for name in ("sky", "sea") for row in task(name).train], limit=6, rows=4)
    with torch.inference_mode():
        together = [answer.text for answer in method.answer(queries)]
        alone = [method.answer(queries.select([row]))[0].text for row in range(len(queries))]
        assert together == alone
        names = method.router.adapters(queries, method.route(queries))
        assert len(set(names)) == len(queries)
        for row, name in enumerate(names):
            mixed = method.generate(name, queries.select([row]))
            assert method.template.text(mixed[0].ids) == alone[row]
    assert method.pool.names == ["shared"]


def test_the_loss_is_that_of_the_gated_sum_of_each_row_whatever_the_micro_batches():
    method = gainlora(threshold=0.9)
    learn(method, "sky")
    method.begin_task(task("sea"), Memory(0))
    method.eval()
    rows = [*task("sea").train, *task("sky").train[:1]]
    (whole,) = method.batches(rows, 9)
    total = 0.0
    for row in rows:
        (one,) = method.batches([row], 1)
        logits, wanted = method.logits(one), one.labels_BS[one.labels_BS >= 0]
        total += cross_entropy(logits, wanted, reduction="sum").item()
    assert method.loss(whole).item() == pytest.approx(total / int((whole.labels_BS >= 0).sum()), rel=1e-4)


def test_the_penalty_is_o_loras():
    method = gainlora(orthogonality=0.7)
    learn(method, "sky")
    method.begin_task(task("sea"), Memory(0))
    pool = method.pool
    expected = sum(
        overlap(pool.pair(layer, "sky")[0], pool.pair(layer, "sea")[0], "absolute").item() for layer in pool.layers
    )
    assert method.penalty().item() == pytest.approx(0.7 * expected, rel=1e-5)
    other = gainlora(orthogonality=0.0)
    learn(other, "sky")
    other.begin_task(task("sea"), Memory(0))
    assert other.penalty() is None


def test_folders_bring_adapters_gates_and_spans_back(tmp_path):
    method, again = gainlora(threshold=0.9), gainlora(threshold=0.9)
    for name in ("sky", "sea"):
        learn(method, name)
        method.save(name, tmp_path / name)
    for name in ("sky", "sea"):
        again.restore(name, tmp_path / name)
    assert torch.equal(again.prompt_weights(prompts("ice")), method.prompt_weights(prompts("ice")))
    assert again.storage() == method.storage()
    assert method.storage()["weights"] == 2 * method.storage()["pool"]
    assert learn(method, "ice") == learn(again, "ice")
    assert again.pool.digest("shared") == method.pool.digest("shared")


@pytest.mark.parametrize("changed", [{"threshold": 1.5}, {"width": 0}, {"orthogonality": -1.0}])
def test_a_setting_out_of_range_is_refused(changed):
    with pytest.raises(ConfigError, match=f"method.{next(iter(changed))}"):
        gainlora(**changed)
