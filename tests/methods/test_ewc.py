"""EWC: the joint optimum of quadratic losses, and the Fisher matrix by autograd alone."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.consolidation import distance
from see_lightning.methods.ewc import Ewc
from see_lightning.methods.setup import Setup
from see_lightning.models.tiny import tiny_model
from tests.adapters import small
from tests.methods.learning import ended, learn, task_named
from tests.methods.linear import FIRST, INPUTS, LABELS, on_linear, rows, through_two_tasks

TARGETS = ["q_proj", "down_proj"]


def ewc(*, activated: bool = False, strength: float = 1.0, decay: float = 1.0, **optim) -> Ewc:
    pool = small.pool(rank=4, targets=TARGETS, activated=activated)
    setup = Setup(pool, small.TEMPLATE, OptimConfig(**optim), 0)
    return Ewc(setup, strength=strength, decay=decay)


def test_with_exact_curvatures_tasks_in_sequence_have_the_optimum_of_all_of_them():
    r"""Losses $\frac12 (x - a_t)^\top H_t (x - a_t)$ with diagonal $H_t$, whose Fisher matrix is $H_t$ itself."""
    draw = torch.Generator().manual_seed(0)
    curvature = torch.rand(3, 5, generator=draw, dtype=torch.float64) + 0.1
    minima = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    fisher, anchor = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for task in range(3):
        joint = (curvature * minima)[: task + 1].sum(0) / curvature[: task + 1].sum(0)
        x = joint.clone().requires_grad_()
        own = (curvature[task] * (x - minima[task]).square()).sum() / 2
        (slope,) = torch.autograd.grad(own + distance([x], [anchor], [fisher]), x)
        torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-12, rtol=0)
        fisher, anchor = fisher + curvature[task], joint


@pytest.mark.parametrize("loss_reduction", ["tokens", "examples"])
@pytest.mark.parametrize("activated", [False, True])
def test_the_fisher_matrix_is_the_mean_of_squared_gradients_of_each_example_by_peft_alone(
    tmp_path, activated, loss_reduction
):
    method = ewc(activated=activated, loss_reduction=loss_reduction)
    learn(method, "sky")
    method.save("sky", tmp_path)
    model = PeftModel.from_pretrained(tiny_model(), tmp_path, is_trainable=True).eval()
    answers = ("blue", "a grey one", "no")  # of unlike lengths, with gradients of unlike directions
    rows = zip(task_named("sky").train, answers, strict=True)
    examples, expected, whole = [replace(row, target=answer) for row, answer in rows], {}, {}
    for example in examples:
        prompt, target = small.TEMPLATE.prompt_ids(example.prompt), small.TEMPLATE.target_ids(example.target)
        logits = model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        model.zero_grad()
        cross_entropy(logits, torch.tensor(target), reduction="sum").backward()
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                expected[name] = expected.get(name, 0) + weight.grad.square() / len(examples)
                whole[name] = whole.get(name, 0) + weight.grad / len(examples)
    with torch.no_grad():
        found = method.importance_of(examples)
    assert len(expected) == len(found) == 2 * len(method.pool.layers)
    for fisher, by_hand in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(fisher, by_hand, atol=1e-5 * float(by_hand.max()), rtol=1e-3)
    of_the_mean = torch.cat([total.square().flatten() for total in whole.values()]).sum()
    assert sum(fisher.sum() for fisher in found) > 1.5 * of_the_mean, "of a batch's mean gradient it is smaller"


def test_importance_and_penalty_are_those_of_public_code_that_squares_each_row_s_gradient():
    """Of ``EWC_online`` in agents/regularization.py, GT-RIPL/Continual-Learning-Benchmark, commit d78b997.

    With ``empFI``, batches of one row and ``reg_coef`` 5; its penalty has no factor of one half.
    """
    importance = [
        [0.21113974890667972, 0.2872009678169008, 0.4652017832334593],
        [0.1444621375801918, 0.3183965868408, 0.26943982930891597],
        [0.8234802055377932, 0.2459440202034633, 0.13251620444677628],
        [0.6982681750440075, 0.15828940163085933, 0.18660093020285137],
    ]
    method = through_two_tasks(ewc(strength=2 * 5.0))
    torch.testing.assert_close(method.importance["weight"], torch.tensor(importance), rtol=1e-5, atol=1e-6)
    assert method.penalty().item() == pytest.approx(4.280711271498868, rel=1e-5)


def test_mammoth_s_importance_is_weighted_by_the_probability_of_each_row_s_label():
    """Of ``EwcOn.end_task`` in models/ewc_on.py, aimagelab/mammoth, commit e75a491, on two rows."""
    mammoth = [
        [0.01156873796332367, 0.014090982461069258, 0.02277067962661446],
        [0.008526295183482711, 0.005655869704868222, 0.007471351019806585],
        [0.0318049877622964, 0.007963957536279901, 0.0020128357204393216],
        [0.0012739553746310699, 0.002158332639006061, 0.0037018146830063953],
    ]
    method = on_linear(ewc(), FIRST)
    with torch.no_grad():
        each = [method.importance_of(rows(row))[0] for row in (0, 1)]
        (ours,) = method.importance_of(rows(0, 1))
    p = (INPUTS @ FIRST.T).softmax(1)[range(4), LABELS]
    torch.testing.assert_close((p[0] * each[0] + p[1] * each[1]) / 2, torch.tensor(mammoth), rtol=1e-5, atol=1e-7)
    assert (ours > 5 * torch.tensor(mammoth)).all(), "rows that the model gets wrong would count least"


@pytest.mark.parametrize("decay", [0.0, 0.25, 1.0])
def test_fisher_matrices_of_earlier_tasks_decay_and_add_up(decay):
    method = ended(ewc(decay=decay), "sky")
    first = {name: fisher.clone() for name, fisher in method.importance.items()}
    ended(method, "sea")
    with torch.no_grad():
        second = method.importance_of(task_named("sea").train)
    for (name, fisher), own in zip(method.importance.items(), second, strict=True):
        torch.testing.assert_close(fisher, decay * first[name] + own)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"strength": -1.0}, r"method\.strength must be at least 0"),
        ({"strength": float("inf")}, r"method\.strength must be at least 0, and finite"),
        ({"decay": 1.5}, r"method\.decay must be between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        ewc(**settings)
