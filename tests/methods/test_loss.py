"""The loss on answers, against a loop over tokens and against Hugging Face's own."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from see_lightning.config.schema import OptimConfig
from see_lightning.methods.loss import answer_loss
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.batches import IGNORED, Batch, collate


def token_by_token(logits: Tensor, labels: Tensor, mean: str) -> float:
    """The formulas of ``answer_loss``, read out."""
    rows = []
    for logits_SV, labels_S in zip(logits.double(), labels.tolist(), strict=True):
        pairs = zip(logits_SV, labels_S, strict=True)
        rows.append([-math.log(torch.softmax(scores, dim=0)[label]) for scores, label in pairs if label >= 0])
    if mean == "tokens":
        return sum(map(sum, rows)) / sum(map(len, rows))
    return sum(sum(row) / len(row) for row in rows) / len(rows)


@pytest.mark.parametrize("mean", ["tokens", "examples"])
@pytest.mark.parametrize("case", range(10))
def test_the_loss_is_the_mean_that_it_says(case, mean):
    draw = torch.Generator().manual_seed(case)
    size, length = 1 + case % 4, 7
    logits = 3 * torch.randn(size, length, 11, generator=draw)
    labels = torch.randint(0, 11, (size, length), generator=draw)
    for row in range(size):
        labels[row, : random.Random(case + row).randrange(length)] = IGNORED
    found = answer_loss(logits[labels != IGNORED], labels, mean)
    assert float(found) == pytest.approx(token_by_token(logits, labels, mean), rel=1e-5)


def test_the_two_means_differ_when_answers_differ_in_length():
    logits = torch.zeros(2, 3, 2)
    logits[0, :, 0] = 5.0
    labels = torch.tensor([[IGNORED, IGNORED, 1], [1, 1, 1]])
    wrong, even = math.log1p(math.exp(5.0)), math.log(2)
    logits_LV = logits[labels != IGNORED]
    assert float(answer_loss(logits_LV, labels, "tokens")) == pytest.approx((wrong + 3 * even) / 4)
    assert float(answer_loss(logits_LV, labels, "examples")) == pytest.approx((wrong + even) / 2)


def test_the_loss_of_half_precision_logits_is_summed_in_full():
    logits = torch.randn(4, 50, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.randint(0, 300, (4, 50), generator=torch.Generator().manual_seed(1))
    loss = answer_loss(logits.flatten(0, 1), labels, "tokens")
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(token_by_token(logits.float(), labels, "tokens"), rel=1e-5)


@pytest.mark.parametrize("mean", ["tokens", "examples"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("labels", [1, 31, 32, 33, 100])
def test_the_loss_has_the_gradient_of_torchs_own_and_leaves_the_logits_as_they_are(labels, dtype, mean):
    draw = torch.Generator().manual_seed(labels)
    logits = torch.randn(labels, 50, generator=draw).to(dtype)
    wanted = torch.randint(0, 50, (1, labels), generator=draw)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = answer_loss(ours, wanted, mean)
    expected = torch.nn.functional.cross_entropy(theirs.float(), wanted[0])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (3 * loss).backward()
    (3 * expected).backward()
    close = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-3, "rtol": 2e-2}
    torch.testing.assert_close(ours.grad, theirs.grad, **close)
    assert torch.equal(ours.detach(), logits)


def batch_of(case: int) -> Batch:
    """Prompts and answers of very different lengths, so that much is padded."""
    draw = random.Random(case)

    def rows(longest: int, size: int) -> list[list[int]]:
        return [[draw.randint(3, 258) for _ in range(draw.randint(1, longest))] for _ in range(size)]

    size = draw.randint(1, 5)
    ids, mask, labels = collate(rows(30, size), rows(12, size), pad=0)
    return Batch(ids, mask, labels, [str(i) for i in range(size)])


def method(make_pool, template, monkeypatch, **optim: object) -> SeqFt:
    made = SeqFt(Setup(make_pool("shared"), template, OptimConfig(**optim), 0))
    monkeypatch.setattr(made, "log", lambda *args, **kwargs: None)
    return made


@contextmanager
def pefts_own_forward(of: SeqFt) -> Iterator[torch.nn.Module]:
    """The model with the adapter as PEFT applies it."""
    tuner = of.pool.model.base_model
    tuner.enable_adapter_layers()
    try:
        yield of.pool.model
    finally:
        tuner.disable_adapter_layers()
        of.pool.train_only("shared")


def gradients(of: SeqFt, loss: Tensor) -> dict[str, Tensor]:
    of.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [1, 2, 9])
@pytest.mark.parametrize("mean", ["tokens", "examples"])
@pytest.mark.parametrize("case", range(5))
def test_a_training_step_has_the_loss_and_the_gradients_of_the_whole_unpadded_computation(
    make_pool, template, monkeypatch, case, mean, parts
):
    made, batch = method(make_pool, template, monkeypatch, loss_reduction=mean), replace(batch_of(case), parts=parts)
    made.trainer = SimpleNamespace(strategy=SimpleNamespace(backward=lambda loss, _: loss.backward()))
    losses, tokens = [], []
    for ids, mask, labels in zip(batch.input_ids_BS, batch.attention_mask_BS.bool(), batch.labels_BS, strict=True):
        with pefts_own_forward(made) as model:
            logits = model(input_ids=ids[mask][None]).logits[0, :-1]
        wanted = labels[mask][1:]
        losses.append(torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED))
        tokens.append(int((wanted != IGNORED).sum()))
    weights = [count / sum(tokens) if mean == "tokens" else 1 / len(tokens) for count in tokens]
    whole = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    expected = gradients(made, whole)
    made.on_train_batch_start(batch, 0)
    step = made.training_step(batch, 0)
    assert step.item() == pytest.approx(whole.item(), abs=1e-6, rel=1e-6)
    step.backward()
    found = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert len(found) == 28, "two matrices for two layers of seven blocks"
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("case", range(3))
def test_the_mean_over_tokens_is_hugging_faces_own_loss(make_pool, template, monkeypatch, case):
    made, batch = method(make_pool, template, monkeypatch, loss_reduction="tokens"), batch_of(case)
    positions = (batch.attention_mask_BS.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        with pefts_own_forward(made) as model:
            theirs = model(
                input_ids=batch.input_ids_BS, attention_mask=batch.attention_mask_BS, position_ids=positions,
                labels=batch.labels_BS,
            ).loss  # fmt: skip
        assert float(made.training_step(batch, 0)) == pytest.approx(float(theirs), abs=1e-6, rel=1e-6)


def test_the_vocabulary_head_runs_only_where_answers_stand(make_pool, template, monkeypatch):
    made, batch = method(make_pool, template, monkeypatch), batch_of(0)
    seen: list[int] = []
    head = made.pool.model.get_base_model().lm_head
    handle = head.register_forward_hook(lambda module, given, out: seen.append(out[..., 0].numel()))
    made.training_step(batch, 0)
    handle.remove()
    labels = int((batch.labels_BS != IGNORED).sum())
    assert seen == [labels]
    assert labels < batch.attention_mask_BS.sum()


def test_a_loss_that_is_no_number_stops_and_names_the_examples(make_pool, template, monkeypatch):
    made, batch = method(make_pool, template, monkeypatch), batch_of(0)
    with torch.no_grad():
        next(p for p in made.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=f"the loss is nan on the examples {', '.join(batch.ids)}"):
        made.training_step(batch, 0)


def test_the_oracle_above_sees_a_label_that_is_off_by_one():
    ids, _, labels = collate([[5, 6]], [[7, 8]], pad=0)
    with torch.no_grad():
        logits = tiny_model().eval()(input_ids=ids).logits[0]
    right = answer_loss(logits[1:3], labels, "tokens")
    assert abs(float(right) - float(answer_loss(logits[2:4], labels, "tokens"))) > 1e-4
