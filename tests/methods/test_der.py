"""DER: distances against torch's own losses, the gradients of a step by autograd alone, and the logits that are kept."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, mse_loss

from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.methods.der import Der, Kept, distance, largest
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.tasks.batches import collate
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task
from tests.adapters import small
from tests.methods.learning import learn
from tests.methods.linear import FIRST, INPUTS, LABELS, on_linear, rows

TARGETS = ["q_proj", "down_proj"]
ANSWERS = ("no", "a grey one", "yes", "blue")  # of unlike lengths


def der(
    *,
    activated: bool = False,
    rank: int = 0,
    ranks: int = 1,
    ratio: float = 1.0,
    logit_weight: float = 0.3,
    answer_weight: float = 0.5,
    logits_per_token: int = 5,
    distance: str = "mse",
    replay_batch: int = 4,
    **optim,
) -> Der:
    setup = Setup(
        small.pool(rank=4, targets=TARGETS, activated=activated), small.TEMPLATE, OptimConfig(**optim), 0, rank, ranks
    )
    return Der(setup, ratio=ratio, logit_weight=logit_weight, answer_weight=answer_weight,
               logits_per_token=logits_per_token, distance=distance, replay_batch=replay_batch)  # fmt: skip


def task_of(name: str) -> Task:
    rows = tuple(Example(f"{name}-{n}", f"{name} {'long ' * n}?", answer, name) for n, answer in enumerate(ANSWERS))
    return Task(name, rows, rows[:1], "rouge_l", 8)


def ended(method: Der, *names: str, steps: int = 3) -> Memory:
    """The memory behind tasks that the method has learned; their adapter has moved."""
    memory = Memory(0)
    for name in names:
        learn(method, name, steps)
        with torch.no_grad():
            method.end_task(task_of(name), memory)
        memory.add(task_of(name))
    return memory


def logits_of(method: Der, row: Example) -> Tensor:
    """The present logits of a row's answer tokens, with gradients, in a batch of its own."""
    prompt, target = small.TEMPLATE.prompt_ids(row.prompt), small.TEMPLATE.target_ids(row.target)
    return method.pool(*collate([prompt], [target], pad=0))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_with_all_logits_but_one_kept_the_distance_is_the_mean_squared_error():
    now, then = normal(6, 9), normal(6, 9, seed=1)
    torch.testing.assert_close(distance(now, largest(then, 8), "mse").mean(), mse_loss(now, then))


def test_the_mean_squared_error_is_of_the_largest_earlier_logits_and_of_all_others_as_one():
    now, then = normal(6, 9), normal(6, 9, seed=1)
    found = distance(now, largest(then, 3), "mse")
    for row in range(6):
        order = then[row].argsort(descending=True)
        squares = (now[row, order[:3]] - then[row, order[:3]]).square()
        rest = (now[row, order[3:]].logsumexp(0) - then[row, order[3:]].logsumexp(0)).square()
        torch.testing.assert_close(found[row], (squares.sum() + rest) / 4)


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_a_token_that_was_not_kept_cannot_become_the_likeliest_at_no_cost(kind):
    then = normal(1, 9)
    now = then.scatter(1, then.argmin(1, keepdim=True), 30.0)
    assert distance(now, largest(then, 3), kind) > 1


@pytest.mark.parametrize("number", [1, 3, 8])
def test_the_divergence_is_that_of_the_kept_tokens_and_of_all_others_as_one(number):
    now, then = normal(6, 9), normal(6, 9, seed=1)
    found = distance(now, largest(then, number), "kl")
    for row in range(6):
        order = then[row].argsort(descending=True)
        p, q = (logits[row].softmax(0)[order] for logits in (then, now))
        p, q = (torch.cat([one[:number], one[number:].sum()[None]]) for one in (p, q))
        torch.testing.assert_close(found[row], kl_div(q.log(), p, reduction="sum"), rtol=1e-4, atol=1e-6)
    full = kl_div(now.log_softmax(1), then.log_softmax(1), log_target=True, reduction="none").sum(1)
    assert (found <= full + 1e-5).all()
    if number == 8:
        torch.testing.assert_close(found, full, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("answer_weight", "authors"),
    [
        (
            0.0,
            [[0.03203125, -0.10625, 0.04921875], [0.2609375, 0.0953125, -0.228125],
             [-0.2109375, -0.03359375, 0.12265625], [0.159375, -0.035, -0.14125]],
        ),
        (
            0.5,
            [[-0.08144036144612993, -0.26313393029772103, 0.3028089466352074],
             [0.28255737678111714, 0.015178346772026396, -0.4964926903615328],
             [-0.18305043858801429, 0.06794856760865542, 0.1863055781573821],
             [0.223339673253027, 0.10047576591703933, -0.19012183443105676]],
        ),
    ],
)  # fmt: skip
def test_a_step_adds_the_gradient_that_the_authors_code_adds(answer_weight, authors):
    """Of ``observe`` in models/der.py and models/derpp.py, aimagelab/mammoth, commit e75a491, with and without a buffer."""
    method = on_linear(der(answer_weight=answer_weight), FIRST, INPUTS[1:], LABELS[1:])
    logits = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.25, 0.75, -1.0, 2.0], [-0.5, 0.0, 1.5, 1.0]])
    method.kept_of_all, method.starts = largest(logits, 3), [0, 1, 2, 3]  # with the rest, all four
    method._drawn = iter([rows(0, 1, 2), rows(0, 2)]).__next__
    method.edit_gradients()
    torch.testing.assert_close(method.pool.weight.grad, torch.tensor(authors), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_nothing_pulls_at_the_logits_that_were_kept(kind):
    logits = normal(6, 9).requires_grad_()
    far = distance(logits, largest(logits.detach(), 4), kind)
    (slope,) = torch.autograd.grad(far.sum(), logits)
    assert far.abs().max() < 1e-6
    assert slope.abs().max() < 1e-6


@pytest.mark.parametrize("activated", [False, True])
def test_the_logits_of_the_memory_are_kept_as_the_task_ends(activated):
    method = der(activated=activated, ratio=0.5, replay_batch=3, max_tokens_per_microbatch=30)
    memory = ended(method, "sky")
    rows = memory.rehearse(task_of("sea"), ratio=0.5, resample="once")
    with torch.no_grad():
        by_hand = torch.cat([logits_of(method, row) for row in rows])
    kept, expected = method.kept["sky"], largest(by_hand, 5)
    torch.testing.assert_close(kept.logits_LK, expected.logits_LK, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept.rest_L, expected.rest_L, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_hand.gather(1, kept.tokens_LK), kept.logits_LK, rtol=1e-4, atol=1e-5)
    assert len(kept.rest_L) == sum(len(small.TEMPLATE.target_ids(row.target)) for row in rows)


@pytest.mark.parametrize("loss_reduction", ["tokens", "examples"])
@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_a_step_adds_the_gradients_of_both_terms(kind, loss_reduction):
    """All of two tasks' rows are drawn, so that the terms can be written down; computed in parts, by two ranks."""
    settings = {"distance": kind, "replay_batch": 8, "loss_reduction": loss_reduction, "max_tokens_per_microbatch": 60}
    ours = [der(rank=rank, ranks=2, **settings) for rank in (0, 1)]
    whole = der(**settings)
    for method in (*ours, whole):
        method.average = lambda tensor: tensor
    memory = ended(whole, "sky", "sea")
    for method in ours:
        ended(method, "sky", "sea")
        method.kept = whole.kept
    for method in (*ours, whole):
        learn(method, "ice")
        method.begin_task(task_of("ice"), memory)
        method.eval()
        for weight in method.trained_weights():
            weight.grad = torch.ones_like(weight)
    terms = []
    for task in memory.past:
        at = 0
        for row in memory.rehearse(task_of("ice"), ratio=1.0, resample="once"):
            if row.task != task.name:
                continue
            logits, labels = logits_of(whole, row), torch.tensor(small.TEMPLATE.target_ids(row.target))
            kept = Kept(*(one[at : at + len(labels)] for one in whole.kept[task.name]))
            at += len(labels)
            terms.append(0.3 * distance(logits, kept, kind) + 0.5 * cross_entropy(logits, labels, reduction="none"))
    mean = torch.cat(terms).mean() if loss_reduction == "tokens" else torch.stack([one.mean() for one in terms]).mean()
    expected = torch.autograd.grad(mean, whole.trained_weights())
    for method in (*ours, whole):
        with torch.no_grad():
            method.edit_gradients()
    for gradient, *weights in zip(
        expected, whole.trained_weights(), *(one.trained_weights() for one in ours), strict=True
    ):
        alone, first, second = (weight.grad for weight in weights)
        torch.testing.assert_close(alone, 1 + gradient, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close((first + second) / 2, 1 + gradient, rtol=1e-3, atol=1e-5)
    assert max(gradient.abs().max() for gradient in expected) > 1e-3


def test_ranks_share_the_rows_whose_logits_are_kept():
    whole = der(ratio=1.0)
    ended(whole, "sky")
    shares = []
    for rank in (0, 1):
        one = der(rank=rank, ranks=2)
        one.average = lambda tensor: tensor / 2
        ended(one, "sky")
        shares.append(one.kept["sky"])
    for field, *both in zip(whole.kept["sky"], *shares, strict=True):
        torch.testing.assert_close(sum(both), field, rtol=1e-5, atol=1e-5)
        assert all((part == 0).any() for part in both), "each rank has its own rows alone"


@pytest.mark.parametrize(("logits", "answers", "passes"), [(0.3, 0.5, 2), (0.3, 0.0, 1), (0.0, 0.5, 1)])
def test_rows_are_drawn_for_each_term_by_seed_and_counted(logits, answers, passes, monkeypatch):
    def drawn() -> tuple[list[list[str]], int]:
        method = der(logit_weight=logits, answer_weight=answers, replay_batch=3)
        method.begin_task(task_of("ice"), ended(method, "sky", "sea"))
        method.drawn.clear()
        seen, batches = [], method.batches
        monkeypatch.setattr(
            method, "batches", lambda rows, size: seen.append([row.prompt for row in rows]) or batches(rows, size)
        )
        for _ in range(6):
            method.edit_gradients()
        assert method.drawn.keys() <= {"sky", "sea"}
        return seen, method.drawn.total()

    first, second = drawn(), drawn()
    assert first == second
    assert first[1] == 6 * 3 * passes
    assert len({tuple(rows) for rows in first[0]}) > 1
    assert all(len(set(rows)) == 3 for rows in first[0])


def test_logits_move_less_where_they_are_replayed():
    moved = []
    for weight in (0.0, 30.0):
        method = der(logit_weight=weight, answer_weight=0.0)
        memory = ended(method, "sky")
        method.begin_task(task_of("sea"), memory)
        begin, method.begin_task = method.begin_task, lambda *_: None
        learn(method, "sea", steps=12)
        method.begin_task = begin
        (batch,) = method.batches(method._drawn(), 4)
        moved.append(method.mean_distance(batch).item())
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_without_a_memory_it_is_sequential_fine_tuning_bit_for_bit(ratio):
    ours = der(ratio=ratio)
    theirs = SeqFt(Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(), 0))
    assert learn(ours, "sky") == learn(theirs, "sky")
    with torch.no_grad():
        ours.end_task(task_of("sky"), Memory(0))
    assert bool(ours.state()) == (ratio > 0)
    weights = [one.pool.weights_of([one.ADAPTER]) for one in (ours, theirs)]
    assert all(torch.equal(here, there) for here, there in zip(*weights, strict=True))


def test_a_restored_method_goes_on_as_one_that_was_not_interrupted(tmp_path):
    method, fresh = der(), der()
    memory = Memory(0)
    for name in ("sky", "sea"):
        learn(method, name)
        with torch.no_grad():
            method.end_task(task_of(name), memory)
        memory.add(task_of(name))
        method.save(name, tmp_path / name)
        fresh.restore(name, tmp_path / name)
    steps = []
    for one in (method, fresh):
        one.begin_task(task_of("ice"), memory)
        one.eval()
        one.zero_grad()
        one.edit_gradients()
        steps.append([weight.grad for weight in one.trained_weights()])
    assert all(torch.equal(here, there) for here, there in zip(*steps, strict=True))
    assert any(gradient.any() for gradient in steps[0])
    tokens = sum(len(small.TEMPLATE.target_ids(answer)) for answer in ANSWERS)
    assert method.storage()["state"] == 2 * tokens * (5 * 4 + 5 * 4 + 4)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ratio": 1.5}, r"method\.ratio is the share of past examples"),
        ({"logit_weight": -1.0}, r"method\.logit_weight must be at least 0"),
        ({"answer_weight": -1.0}, r"method\.answer_weight must be at least 0"),
        ({"logits_per_token": 0}, r"method\.logits_per_token must be at least 1"),
        ({"distance": "mae"}, r"method\.distance must be one of mse, kl"),
        ({"replay_batch": 0}, r"method\.replay_batch must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        der(**settings)
