"""I-LoRA: the slow adapter as an explicit average of what the fast one was, and the distance on rehearsed rows alone."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.ilora import ILora, disagreement, interpolate, kept_share
from see_lightning.methods.replay import Replay
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.tasks.batches import IGNORED
from tests.adapters import small
from tests.methods.learning import equal, fit, remembered, task_named, weights

TARGETS = ["q_proj", "down_proj"]


def setup(*, activated: bool = False, rank: int = 0, ranks: int = 1, **optim) -> Setup:
    pool = small.pool(rank=4, targets=TARGETS, activated=activated)
    return Setup(pool, small.TEMPLATE, OptimConfig(**optim), 0, rank, ranks)


def ilora(*, ratio=1.0, resample="once", decay: float = 0.9, consistency: float = 1.0, **settings) -> ILora:
    return ILora(setup(**settings), ratio=ratio, resample=resample, decay=decay, consistency=consistency)


def second_task(method, task: str = "sea"):
    """The method within its second task, its two adapters apart, without dropout."""
    fit(method, "sky")
    method.begin_task(task_named(task), remembered("sky"))
    for weight in method.trained_weights():
        weight.data += 0.1
    return method.eval()


@pytest.mark.parametrize("is_first", [True, False])
def test_the_slow_weights_are_the_average_with_falling_weights(is_first):
    draw = torch.Generator().manual_seed(0)
    before, *passed = (torch.randn(3, 2, generator=draw) for _ in range(7))
    slow = before.clone()
    for step, fast in enumerate(passed, start=1):
        interpolate([slow], [fast], kept_share(step, 0.8, is_first=is_first))
    shares = [min(0.8, n / (n + 1)) if is_first else 0.8 for n in range(1, 7)]
    by_hand, left = torch.zeros(3, 2), 1.0
    for fast, share in zip(passed[::-1], shares[::-1], strict=True):
        by_hand += left * (1 - share) * fast
        left *= share
    torch.testing.assert_close(slow, by_hand + left * before)
    if is_first:
        mean = [before, *passed[:3]]
        early = before.clone()
        for step, fast in enumerate(passed[:3], start=1):
            interpolate([early], [fast], kept_share(step, 0.8, is_first=True))
        torch.testing.assert_close(early, torch.stack(mean).mean(0), msg="at first it is the plain mean")


@pytest.mark.parametrize(
    ("is_first", "authors"),
    [
        (True, [[1.3666666666666667, 0.8241666666666668], [0.82, 0.4325]]),
        (False, [[1.31195, 0.964225], [0.72935, 0.3884]]),
    ],
)
def test_the_average_is_that_of_cls_er_in_its_first_and_in_its_later_steps(is_first, authors):
    """``update_stable_model_variables`` of models/clser.py, NeurAI-Lab/CLS-ER, commit 73f3e63, steps 1-4 and 101-104."""
    passed = [[[1.0, -2], [0.5, 3]], [[2.0, 0], [-1, 1]], [[-0.5, 1], [4, 0.25]], [[3.0, 3], [0.75, -2]]]
    slow = torch.tensor([[0.5, 0.25], [-1.0, 2]])
    for step, fast in enumerate(passed, start=1):
        interpolate([slow], [torch.tensor(fast)], kept_share(step, 0.7, is_first=is_first))
    torch.testing.assert_close(slow, torch.tensor(authors))


def test_the_authors_distance_leaves_out_where_the_fast_adapter_s_numbers_are_larger():
    """``l_cons`` of ``ILoRAModel.forward``, method/ILORA.py, which47/LLMCL, commit a9dae12, on hidden states of two layers."""
    fast = torch.tensor([[1.0, -2, 0.5], [0, 3, 1], [0.25, 0.75, -1], [2, -0.5, 0]])
    slow = torch.tensor([[0.5, -1, 1.5], [0.5, 2, 1], [1, 0.5, -0.25], [1, 0, -1]])
    authors = 0.3020833333333333
    assert disagreement(fast, fast.maximum(slow)).mean().item() == pytest.approx(authors, rel=1e-6)
    left_out = disagreement(fast, fast.minimum(slow)).mean().item()
    assert disagreement(fast, slow).mean().item() == pytest.approx(authors + left_out, rel=1e-6)
    assert left_out > 0.2


def test_each_step_moves_the_slow_adapter_towards_the_fast_one_and_only_the_fast_one_is_trained():
    method = ilora(decay=0.9)
    fit(method, "sky")
    method.begin_task(task_named("sea"), remembered("sky"))
    assert {id(weight) for weight in method.trained_weights()} == {id(w) for w in method.pool.weights_of(["fast"])}
    slow = weights(method, "shared")
    for _ in range(3):
        for weight in method.trained_weights():
            weight.data += 0.1
        method.after_step()
        slow = [0.9 * old + 0.1 * new for old, new in zip(slow, weights(method, "fast"), strict=True)]
        for found, expected in zip(weights(method, "shared"), slow, strict=True):
            torch.testing.assert_close(found, expected)


def test_the_slow_adapter_answers():
    method = second_task(ilora())
    queries = small.queries(["sky?", "sea sea?"], limit=4)
    expected = method.generate("shared", queries)
    assert [answer.text for answer in method.answer(queries)] == [small.TEMPLATE.text(one.ids) for one in expected]
    assert method.pool.names == ["shared"]
    assert method.saved_adapter("sea") == "shared"
    (batch,) = method.batches(task_named("sea").train, 3)
    assert not torch.allclose(method.pool.logits(batch, "shared"), method.pool.logits(batch, "fast"), atol=1e-3)


@pytest.mark.parametrize("activated", [False, True])
def test_the_distance_counts_on_rehearsed_rows_alone_even_where_ids_are_the_same(activated):
    method = second_task(ilora(consistency=3.0, activated=activated))
    new = [replace(row, id=str(n), target="no" * (n + 1)) for n, row in enumerate(task_named("sea").train)]
    past = [replace(row, id=str(n), target="a" * (n + 2)) for n, row in enumerate(task_named("sky").train)]
    (batch,) = method.batches([new[0], past[0], past[1], new[1]], 4)
    fast, slow = (method.pool.logits(batch, name) for name in ("fast", "shared"))
    own = (batch.labels_BS != IGNORED).sum(1).tolist()
    is_past = torch.cat([torch.full((n,), task == "sky") for n, task in zip(own, batch.tasks, strict=True)])
    assert 0 < is_past.sum() < len(is_past)
    apart = ((fast - slow) ** 2).sum(-1) / fast.shape[1]
    expected = cross_entropy(fast, batch.labels_BS[batch.labels_BS != IGNORED]) + 3 * apart[is_past].sum() / len(
        is_past
    )
    torch.testing.assert_close(method.loss(batch), expected, rtol=1e-4, atol=1e-5)
    assert apart[is_past].mean() > 1e-4


def test_its_gradient_is_that_of_its_closed_form_and_the_slow_adapter_gets_none():
    draw = torch.Generator().manual_seed(0)
    fast, slow = torch.randn(3, 7, generator=draw, requires_grad=True), torch.randn(3, 7, generator=draw)
    (found,) = torch.autograd.grad(disagreement(fast, slow).sum(), fast)
    torch.testing.assert_close(found, 2 * (fast.detach() - slow) / 7)
    method = second_task(ilora())
    (batch,) = method.batches(task_named("sky").train, 3)
    method.loss(batch).backward()
    assert all(weight.grad is None for weight in method.pool.weights_of(["shared"]))
    assert any(weight.grad.any() for weight in method.pool.weights_of(["fast"]))


@pytest.mark.parametrize("loss_reduction", ["tokens", "examples"])
def test_the_size_of_a_micro_batch_changes_nothing(loss_reduction):
    slopes = []
    for tokens in (1, 4096):
        method = second_task(ilora(loss_reduction=loss_reduction, max_tokens_per_microbatch=tokens))
        rows = [replace(row, target="a" * (n + 1)) for n, row in enumerate(task_named("sky").train)]
        (batch,) = method.batches([*task_named("sea").train, *rows], 6)
        assert (batch.parts > 1) == (tokens == 1)
        slopes.append(method.gradients(batch))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_gradients_of_two_ranks_have_the_mean_of_one(rows):
    """With four rows, the past ones are not even on both; with one, a rank has none."""
    examples = [*task_named("sky").train, task_named("sea").train[0]][:rows]
    slopes, trained = [], second_task(ilora())
    for rank, ranks in ((0, 1), (0, 2), (1, 2)):
        method = second_task(ilora(rank=rank, ranks=ranks))
        for name in ("shared", "fast"):
            method.pool.load_weights(name, trained.pool.pairs(name))
        method.average = lambda tensor: tensor
        (batch,) = method.batches(examples, rows)
        slopes.append(method.gradients(batch))
    for alone, *both in zip(*slopes, strict=True):
        torch.testing.assert_close(sum(both) / 2, alone, atol=1e-6, rtol=1e-3)


def test_the_fast_adapters_first_task_is_sequential_fine_tuning_bit_for_bit():
    ours, theirs = ilora(), SeqFt(setup())
    assert fit(ours, "sky") == fit(theirs, "sky")
    assert equal(weights(ours, "fast"), weights(theirs, "shared"))


def test_without_consistency_and_average_it_is_replay_bit_for_bit():
    ours, theirs = ilora(decay=0.0, consistency=0.0, ratio=0.5), Replay(setup(), ratio=0.5, resample="once")
    for past, task in (((), "sky"), (("sky",), "sea")):
        assert fit(ours, task, past) == fit(theirs, task, past)
    assert equal(weights(ours, "shared"), weights(theirs, "shared"))


def test_the_fast_adapter_stays_nearer_to_the_slow_one_on_past_rows_the_stronger_it_is():
    moved = []
    for consistency in (0.0, 100.0):
        method = ilora(consistency=consistency, decay=1.0)
        fit(method, "sky")
        (batch,) = method.batches(task_named("sky").train, 3)
        fit(method, "sea", ("sky",), steps=10, lr=0.02, answer="no")
        moved.append(disagreement(*(method.pool.logits(batch, name) for name in ("fast", "shared"))).mean().item())
    assert moved[0] > 1.5 * moved[1]


def test_a_restored_method_goes_on_as_one_that_was_not_interrupted(tmp_path):
    method, fresh = ilora(), ilora()
    for past, task in (((), "sky"), (("sky",), "sea")):
        fit(method, task, past)
        method.save(task, tmp_path / task)
        fresh.restore(task, tmp_path / task)
    assert method.storage()["state"] == method.storage()["weights"] == method.pool.adapter_bytes("fast")
    assert fit(method, "ice", ("sky", "sea")) == fit(fresh, "ice", ("sky", "sea"))
    for name in ("fast", "shared"):
        assert equal(weights(method, name), weights(fresh, name))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ratio": 1.5}, r"method\.ratio is the share of past examples"),
        ({"decay": 1.5}, r"method\.decay must be between 0 and 1"),
        ({"consistency": -1.0}, r"method\.consistency must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        ilora(**settings)
