"""SDFT: the loss on sampled answers by PEFT alone, the teacher, and what the random numbers depend on."""

from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.sampling import sampled_answers
from see_lightning.methods.sdft import Sdft
from see_lightning.methods.setup import Setup
from see_lightning.seeds import seed
from see_lightning.tasks.batches import IGNORED, Batch
from tests.adapters import small
from tests.methods.learning import assert_goes_on_when_restored, equal, fit, remembered, task_named, weights

TARGETS = ["q_proj", "down_proj"]
SHOWN = "{prompt} Like: {answer}"
DEFAULT = {"teacher": "average", "follow": 0.25, "direction": "reverse", "demonstration": SHOWN, "max_new_tokens": 6}


def sdft(*, activated: bool = False, run_seed: int = 0, ranks=(0, 1), targets=TARGETS, optim=None, **settings) -> Sdft:
    pool = small.pool(rank=4, targets=targets, activated=activated)
    return Sdft(Setup(pool, small.TEMPLATE, OptimConfig(**optim or {}), run_seed, *ranks), **DEFAULT | settings)


def mixed(task: str = "sea"):
    """A task whose reference answers are of unlike lengths."""
    new = task_named(task)
    return replace(new, train=tuple(replace(row, target="no" * (n + 1)) for n, row in enumerate(new.train)))


def begun(method, task=None):
    """The method within its second task, the adapter apart from the teacher, without dropout."""
    fit(method, "sky")
    method.begin_task(task or mixed(), remembered("sky"))
    draw = torch.Generator().manual_seed(0)
    for weight in method.trained_weights():
        weight.data += 0.3 * torch.randn(weight.shape, generator=draw)
    return method.eval()


def sampled(method, rows) -> list[list[int]]:
    prompts = [small.TEMPLATE.prompt_ids(row.prompt) for row in rows]
    draws = [Random(seed(method.run_seed, rows[0].task, f"answer {method.step} to {row.id}")) for row in rows]
    with torch.no_grad():
        return sampled_answers(method.pool, "shared", prompts, [6] * len(rows), draws, method.eos_ids())


@pytest.mark.parametrize("loss_reduction", ["tokens", "examples"])
@pytest.mark.parametrize(
    ("teacher", "direction", "activated"),
    [
        ("average", "reverse", False),
        ("average", "forward", False),
        ("base", "reverse", False),
        ("average", "reverse", True),
    ],
)
def test_the_loss_is_the_divergence_at_sampled_answers_by_peft_alone(
    tmp_path, teacher, direction, activated, loss_reduction
):
    method = begun(
        sdft(teacher=teacher, direction=direction, activated=activated, optim={"loss_reduction": loss_reduction})
    )
    rows = mixed().train
    (batch,) = method.batches(rows, 3)
    found, answers = method.loss(batch), sampled(method, rows)
    student = small.by_peft(method.pool, "shared", tmp_path)
    judge = small.by_peft(method.pool, "teacher" if teacher == "average" else None, tmp_path)

    def predicted(model, query: str, answer: list[int]) -> Tensor:
        ids = small.TEMPLATE.prompt_ids(query) + answer
        return model(input_ids=torch.tensor([ids])).logits[0, -len(answer) - 1 : -1].double().softmax(-1)

    means, tokens = [], []
    for row, answer in zip(rows, answers, strict=True):
        own = predicted(student, row.prompt, answer)
        shown = predicted(judge, f"{row.prompt} Like: {row.target}", answer)
        p, q = (own, shown) if direction == "reverse" else (shown, own)
        means.append((p * (p / q).log()).sum(-1).mean().item())
        tokens.append(len(small.TEMPLATE.target_ids(row.target)))
    shares = tokens if loss_reduction == "tokens" else [1] * len(rows)
    by_hand = sum(mean * share for mean, share in zip(means, shares, strict=True)) / sum(shares)
    assert found.item() == pytest.approx(by_hand, rel=2e-3)
    assert by_hand > 1e-3
    assert len({len(answer) for answer in answers} | {*tokens}) > 1


@pytest.mark.parametrize(("direction", "authors"), [("forward", 1.8973516898538827), ("reverse", 1.3565482805930595)])
def test_the_loss_is_that_of_the_authors_code(direction, authors):
    """Run on these logits of two answers, of three tokens and of two: ``_compute_loss`` of distil_trainer.py.

    Of idanshen/Self-Distillation, commit 5f184dd, with ``alpha`` 0 and 1 and no skipped tokens, in double precision.
    """

    def logits(number: int) -> Tensor:
        draw = torch.Generator().manual_seed(number)
        return 2 * torch.randn(2, 3, 5, generator=draw, dtype=torch.float64).flatten(0, 1)[:5]

    method = sdft(direction=direction, optim={"loss_reduction": "examples"})
    ids = torch.ones(2, 3, dtype=torch.long)
    part = Batch(ids, ids, torch.tensor([[7, 7, 7], [7, 7, IGNORED]]), ["a", "b"])
    method._taught = lambda _: (part, logits(41))
    method.pool.forward = lambda *_: logits(40)
    assert method.loss(part).item() == pytest.approx(authors, rel=1e-5)


def test_the_teacher_follows_as_in_the_authors_code():
    """``_sync_param`` of distil_trainer.py, idanshen/Self-Distillation, commit 5f184dd, with ``alpha`` 0.25."""
    method = sdft(follow=0.25)
    method.begin_task(mixed(), remembered())
    adapter, teacher = (method.pool.weights_of([name])[0] for name in ("shared", "teacher"))
    with torch.no_grad():
        adapter[0, :2], teacher[0, :2] = torch.tensor([4.0, -2.0]), torch.tensor([0.5, 8.0])
    method.after_step()
    assert teacher[0, :2].tolist() == [1.375, 5.5]
    assert adapter[0, :2].tolist() == [4.0, -2.0]


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_the_gradient_vanishes_where_the_student_predicts_what_the_teacher_does(direction):
    """Where a task begins, the teacher is the student; here it does not see the answer either."""
    method = sdft(direction=direction)
    fit(method, "sky")
    method.begin_task(mixed(), remembered("sky"))
    method.eval()
    rows = mixed().train
    (batch,) = method.batches(rows, 3)
    seen = method.gradients(batch)
    method.teacher_prompts = {row.id: small.TEMPLATE.prompt_ids(row.prompt) for row in rows}
    unseen = method.gradients(batch)
    assert method.loss(batch).item() == pytest.approx(0, abs=1e-6)
    assert max(slope.abs().max() for slope in unseen) < 1e-3 * max(slope.abs().max() for slope in seen)


@pytest.mark.parametrize("loss_reduction", ["tokens", "examples"])
def test_the_size_of_a_micro_batch_changes_nothing(loss_reduction):
    slopes = []
    for tokens in (1, 4096):
        method = begun(sdft(optim={"loss_reduction": loss_reduction, "max_tokens_per_microbatch": tokens}))
        (batch,) = method.batches(mixed().train, 3)
        assert (batch.parts > 1) == (tokens == 1)
        slopes.append(method.gradients(batch))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_answers_change_with_the_step_and_the_seed_alone():
    first, again, other = begun(sdft()), begun(sdft()), begun(sdft(run_seed=1))
    (batch,) = first.batches(mixed().train, 3)
    assert first.loss(batch).item() == first.loss(batch).item() == again.loss(batch).item()
    other.pool.load_weights("shared", first.pool.pairs("shared"))
    other.pool.load_weights("teacher", first.pool.pairs("teacher"))
    assert other.loss(batch).item() != first.loss(batch).item()
    before = first.loss(batch).item()
    first.step += 1
    assert first.loss(batch).item() != before


@pytest.mark.parametrize("rows", [1, 3])
def test_the_gradients_of_two_ranks_have_the_mean_of_one(rows):
    """With one row, a rank has none, and computes something that counts for nothing."""
    slopes, trained = [], begun(sdft())
    for ranks in ((0, 1), (0, 2), (1, 2)):
        method = begun(sdft(ranks=ranks))
        for name in ("shared", "teacher"):
            method.pool.load_weights(name, trained.pool.pairs(name))
        method.average = lambda tensor: tensor
        (batch,) = method.batches(mixed().train[:rows], rows)
        slopes.append(method.gradients(batch))
    for alone, *both in zip(*slopes, strict=True):
        torch.testing.assert_close(sum(both) / 2, alone, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("follow", [0.0, 0.25, 1.0])
def test_the_teacher_is_the_adapter_as_the_task_begins_and_then_its_moving_average(follow):
    method = sdft(follow=follow)
    fit(method, "sky")
    method.begin_task(mixed(), remembered("sky"))
    teacher = weights(method)
    assert equal(weights(method, "teacher"), teacher)
    for _ in range(3):
        for weight in method.trained_weights():
            weight.data += 0.1
        method.after_step()
        teacher = [(1 - follow) * old + follow * new for old, new in zip(teacher, weights(method), strict=True)]
        for found, expected in zip(weights(method, "teacher"), teacher, strict=True):
            torch.testing.assert_close(found, expected)
    assert {id(one) for one in method.trained_weights()} == {id(one) for one in method.pool.weights_of(["shared"])}
    assert method.pool.names == ["shared"]
    assert method.state() == {}


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_the_adapter_learns_what_the_teacher_says_with_the_answer_in_view(direction):
    """A teacher that is far from the student, and is held there."""
    method = sdft(follow=0.0, direction=direction, targets=["q_proj", "v_proj", "lm_head"], max_new_tokens=3)
    method.begin_task(mixed(), remembered())
    draw = torch.Generator().manual_seed(0)
    for weight in method.pool.weights_of(["teacher"]):
        weight.data = 0.2 * torch.randn(weight.shape, generator=draw)
    (batch,), losses = method.batches(mixed().train, 3), []
    optimizer = torch.optim.AdamW(method.trained_weights(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = method.loss(batch)
        loss.backward()
        optimizer.step()
        method.after_step()
        losses.append(loss.item())
    assert losses[0] > 0.05
    assert sum(losses[-5:]) / 5 < 0.4 * losses[0]


def test_the_base_model_as_the_teacher_needs_no_adapter():
    method = sdft(teacher="base")
    assert fit(method, "sky")[0] > 0
    assert not method.pool.has_adapter("teacher")


def test_a_restored_method_goes_on_as_one_that_was_not_interrupted(tmp_path):
    assert_goes_on_when_restored(sdft, tmp_path)


def test_a_prompt_with_its_answer_that_is_too_long_for_the_model_is_refused():
    method, task = sdft(), mixed()
    rows = (replace(task.train[0], prompt="long " * 300, target="answer " * 100, source="sea.jsonl:1"),)
    with pytest.raises(ConfigError, match=r"^sea\.jsonl:1: with its answer in view the prompt has 2\d\d\d tokens"):
        method.begin_task(replace(task, train=rows), remembered())


def test_braces_in_a_prompt_or_an_answer_are_text():
    method = sdft()
    row = replace(task_named("sky").train[0], prompt="{answer} {0}", target="{prompt} }{")
    method.begin_task(replace(task_named("sky"), train=(row,)), remembered())
    assert method.teacher_prompts[row.id] == small.TEMPLATE.prompt_ids("{answer} {0} Like: {prompt} }{")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"teacher": "old"}, r"method\.teacher must be one of average, base"),
        ({"follow": 1.5}, r"method\.follow must be between 0 and 1"),
        ({"direction": "both"}, r"method\.direction must be one of reverse, forward"),
        ({"demonstration": "{prompt}"}, r"method\.demonstration is the teacher's query and must contain"),
        ({"demonstration": "{prompt} {answer} {more}"}, r"method\.demonstration is the teacher's query"),
        ({"demonstration": "{prompt} {answer} {"}, r"method\.demonstration is the teacher's query"),
        ({"max_new_tokens": 0}, r"method\.max_new_tokens must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        sdft(**settings)
