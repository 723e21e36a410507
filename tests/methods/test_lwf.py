"""LwF: the divergence by its definition, its gradient in closed form, and the teacher."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.functional import kl_div

from see_lightning.config.schema import OptimConfig
from see_lightning.config.search_path import CONF
from see_lightning.errors import ConfigError
from see_lightning.methods.distillation import ROWS, divergence
from see_lightning.methods.lwf import LwF
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from tests.adapters import small
from tests.methods.learning import assert_goes_on_when_restored, equal, fit, remembered, task_named, weights
from tests.methods.linear import FIRST, INPUTS, SECOND, batch_of, on_linear, rows

TARGETS = ["q_proj", "down_proj"]


def setup(*, activated: bool = False, **optim) -> Setup:
    pool = small.pool(rank=4, targets=TARGETS, activated=activated)
    return Setup(pool, small.TEMPLATE, OptimConfig(**optim), 0)


def lwf(*, strength: float = 1.0, temperature: float = 2.0, **settings) -> LwF:
    return LwF(setup(**settings), strength=strength, temperature=temperature)


def drawn(*shape: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [2 * torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_divergence_is_the_expectation_under_its_first_argument(temperature):
    teacher, student = drawn(ROWS + 5, 7)  # more rows than are computed at once
    found = divergence(teacher, student, temperature)
    p, q = (torch.softmax(logits / temperature, -1) for logits in (teacher, student))
    by_hand = torch.tensor(
        [sum(float(a * (a / b).log()) for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)]
    )
    torch.testing.assert_close(found.double(), by_hand.double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.double(), kl_div(q.log(), p, reduction="none").sum(-1), rtol=1e-4, atol=1e-5)
    other = divergence(student, teacher, temperature)
    assert (other - found).abs().max() > 0.01, "the two directions differ, so this is no test of either"


def test_its_gradient_is_the_difference_of_the_softened_probabilities_and_vanishes_at_the_teacher():
    r"""$\partial\, T^2 \mathrm{KL}(p \Vert q) / \partial z = T (q - p)$ for the student's logits $z$."""
    teacher, student = drawn(4, 7)
    student.requires_grad_()
    (found,) = torch.autograd.grad(4 * divergence(teacher, student, 2.0).sum(), student)
    torch.testing.assert_close(
        found, 2 * (torch.softmax(student / 2, -1) - torch.softmax(teacher / 2, -1)), atol=1e-5, rtol=1e-4
    )
    same = teacher.clone().requires_grad_()
    (found,) = torch.autograd.grad(divergence(teacher, same, 2.0).sum(), same)
    assert found.abs().max() < 1e-6


def test_loss_and_gradient_are_those_of_mammoth_whose_term_is_a_cross_entropy():
    """Of ``Lwf.observe`` in models/lwf.py, aimagelab/mammoth, commit e75a491, with alpha 3 and all classes old and new.

    Its term does not vanish at the teacher: there it is the teacher's entropy, which has no gradient.
    """
    authors, entropy = 6.106413702627169, 1.2681637933515126
    slope = [
        [-0.11326021696451084, -0.12846777450627095, 0.3255819150328503],
        [0.010499777090148786, -0.09945071065093442, -0.16193491799086962],
        [-0.37283004062255454, 0.30593211692776, 0.07037628859042125],
        [0.4755904804969166, -0.0780136317705547, -0.23402328563240185],
    ]
    method = on_linear(lwf(strength=3 / 2**2, temperature=2.0), SECOND)
    method.distils, method.pool.logits = True, lambda part, adapter: INPUTS[part.input_ids_BS[:, 0]] @ FIRST.T
    loss = method.loss(batch_of(rows(0, 1, 2, 3)))
    assert loss.item() == pytest.approx(authors - 3 * entropy, rel=1e-5)
    (found,) = torch.autograd.grad(loss, method.pool.weight)
    torch.testing.assert_close(found, torch.tensor(slope), rtol=1e-5, atol=1e-6)


def test_the_distance_is_finite_where_a_token_is_impossible_in_single_precision():
    """On these logits ``modified_kl_div`` of the same file gives nan: it takes the logarithm of a probability of 0."""
    wide = torch.tensor([[0.0, 230.0]])
    assert divergence(wide, wide, 2.0).item() == 0


def test_the_distance_is_not_that_of_trace_whose_direction_is_the_other():
    """Of ``KD_loss`` in model/Regular/LwF.py, BeyonderXX/TRACE, commit 462e39f, with fp64 in place of its bf16."""
    trace = 0.025895984490128206
    teacher, student = INPUTS @ FIRST.T, INPUTS @ SECOND.T
    assert divergence(student, teacher, 2.0).mean().item() == pytest.approx(trace, rel=1e-5)
    assert divergence(teacher, student, 2.0).mean().item() != pytest.approx(trace, rel=0.01)


@pytest.mark.parametrize("activated", [False, True])
def test_where_a_task_begins_the_gradient_is_that_of_the_task_alone(activated):
    """The student is the teacher there, so even a large weight adds nothing; a step later it does."""
    method, plain = lwf(strength=100.0, activated=activated), SeqFt(setup(activated=activated))
    for one in (method, plain):
        fit(one, "sky")
        one.begin_task(task_named("sea"), remembered("sky"))
        one.eval()

    def slopes(one) -> list[Tensor]:
        return one.gradients(next(one.batches(task_named("sea").train, 3)))

    for found, expected in zip(slopes(method), slopes(plain), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)
    for one in (method, plain):
        for weight in one.trained_weights():
            weight.data += 0.1
    assert any(not torch.allclose(a, b, rtol=0.1) for a, b in zip(slopes(method), slopes(plain), strict=True))


def test_the_loss_is_the_answers_and_the_distance_of_the_student_from_the_teacher():
    method, plain = lwf(strength=3.0, temperature=1.5), SeqFt(setup())
    for one in (method, plain):
        fit(one, "sky")
        one.begin_task(task_named("sea"), remembered("sky"))
        one.eval()
        for weight in one.trained_weights():
            weight.data += 0.05
    (batch,) = method.batches(task_named("sea").train, 3)
    p, q = (torch.softmax(method.pool.logits(batch, name) / 1.5, -1) for name in ("teacher", "shared"))
    by_hand = plain.loss(batch) + 3 * 1.5**2 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(method.loss(batch), by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss_reduction", ["tokens", "examples"])
def test_the_size_of_a_micro_batch_changes_nothing(loss_reduction):
    trained = []
    for tokens in (1, 4096):
        method = lwf(loss_reduction=loss_reduction, max_tokens_per_microbatch=tokens)
        fit(method, "sky")
        fit(method, "sea", ("sky",))
        trained.append(weights(method))
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)


def test_the_teacher_is_the_adapter_before_the_task_and_stays_so():
    method = lwf()
    fit(method, "sky")
    assert not method.pool.has_adapter("teacher")
    for past, task in ((("sky",), "sea"), (("sky", "sea"), "ice")):
        before = weights(method)
        fit(method, task, past)
        assert equal(weights(method, "teacher"), before)
        assert any(not torch.equal(a, b) for a, b in zip(weights(method), before, strict=True))
    assert method.pool.names == ["shared"]
    assert method.storage() == {part: method.pool.adapter_bytes("shared") for part in ("pool", "weights")}


def test_predictions_stay_nearer_to_the_teacher_the_stronger_it_is():
    moved = []
    for strength in (0.0, 100.0):
        method = lwf(strength=strength)
        fit(method, "sky")
        (batch,) = method.batches(task_named("sea").train, 3)
        before = method.pool.logits(batch, "shared")
        fit(method, "sea", ("sky",), steps=10, answer="no")
        moved.append(divergence(before, method.pool.logits(batch, "shared")).mean().item())
    assert moved[0] > 1.3 * moved[1]


def test_the_first_task_is_sequential_fine_tuning_bit_for_bit():
    ours, theirs = lwf(), SeqFt(setup())
    assert fit(ours, "sky") == fit(theirs, "sky")
    assert equal(weights(ours), weights(theirs))


def test_a_restored_method_goes_on_as_one_that_was_not_interrupted(tmp_path):
    assert_goes_on_when_restored(lwf, tmp_path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"strength": -1.0}, r"method\.strength must be at least 0"),
        ({"temperature": 0.0}, r"method\.temperature must be at least 0\.01"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        lwf(**settings)


def test_the_default_has_the_gradient_of_the_paper_s_weight_of_one():
    """The paper's is that of the cross entropy of softened outputs, $(q - p) / T$; ours is $\\lambda T (q - p)$."""
    default = OmegaConf.load(CONF / "method" / "lwf.yaml")
    assert default.strength * default.temperature == 1 / default.temperature
