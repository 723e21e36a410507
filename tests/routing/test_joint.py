"""Two signals, joined: the regression, the scales, the thresholds and the choice, each against a plain computation."""

import random
import statistics
from types import SimpleNamespace

import pytest
import torch

from see_lightning.errors import ConfigError
from see_lightning.routing.features import FeatureRouter
from see_lightning.routing.guarantee import guaranteed_threshold
from see_lightning.routing.joint import RIDGE, Joint
from see_lightning.routing.logistic import fit_logistic
from see_lightning.routing.signals import BARE, GENERAL, OWN, Measured, Scale, even_weights, worded
from see_lightning.tasks.bodies import body_ids, body_of, has_definition, query_of
from see_lightning.tasks.prompts import PromptTemplate
from tests.adapters import small
from tests.routing.fake import method_on, prompt_of


def penalised(weights_G, x_NF, y_N, weight_N, ridge):
    z_N = weights_G[0] + x_NF @ weights_G[1:]
    losses_N = -(y_N * z_N.sigmoid().log() + (1 - y_N) * (-z_N).sigmoid().log())
    return (weight_N * losses_N).sum() + ridge / 2 * weights_G[1:].norm() ** 2


@pytest.mark.parametrize("apart", [0.0, 1.0, 20.0])
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_weights_are_where_the_penalised_likelihood_is_largest(apart, ridge):
    draw = torch.Generator().manual_seed(0)
    y_N = (torch.arange(40) % 3 == 0).double()
    x_NF = torch.randn(40, 2, generator=draw, dtype=torch.float64) + apart * y_N[:, None]
    x_NF = (x_NF - x_NF.mean(0)) / x_NF.std(0)
    weight_N = torch.rand(40, generator=draw, dtype=torch.float64) + 0.1
    weights_G = fit_logistic(x_NF, y_N, weight_N, ridge).requires_grad_()
    here = penalised(weights_G, x_NF, y_N, weight_N, ridge)
    (gradient_G,) = torch.autograd.grad(here, weights_G)
    assert gradient_G.abs().max() < 1e-6
    for _ in range(20):
        beside_G = weights_G.detach() + 0.05 * torch.randn(3, generator=draw, dtype=torch.float64)
        assert penalised(beside_G, x_NF, y_N, weight_N, ridge) > here


def test_a_typical_own_query_has_the_signals_zero_and_a_typical_general_instruction_minus_one():
    kind_N = torch.tensor([OWN] * 5 + [GENERAL] * 3)
    bodies = [-1.0, -2.0, -3.0, -4.0, -7.0, -9.0, -9.0, -9.0]
    proposals = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9, 0, 0, 0])
    log_odds = torch.tensor([8.0, 9, 10, 11, 12, -4, -5, -7])
    one = Measured(log_odds, torch.tensor(bodies), proposals, kind_N, kind_N, kind_N)
    spread, other = statistics.pstdev(bodies[:5]), statistics.pstdev(proposals[:5].tolist())
    found = Scale.of(one).signals(
        torch.tensor([10.0, -5.0, 2.5, 2.5]),
        torch.tensor([-3.0, -1.0, -3 - 2 * spread, -3 - 2 * spread]),
        torch.tensor([0.7, 0.9, 0.7 - other, 0.7 - 3 * other]),
    )
    assert found.flatten().tolist() == pytest.approx([0, 0, -1, 0, -0.5, -2, -0.5, -3], abs=1e-6)


TASKS = {"sum": "Write the sum of these numbers.", "cap": "Put the words into capitals."}
SETTINGS = {"target_recall": 0.6, "bare_recall": 0.3, "confidence": 0.9, "ood_examples": 5}


def digits(text: str) -> float:
    return (sum(map(str.isdigit, text)) + 1) / (len(text) + 2)


class Digits(FeatureRouter):
    """A query's features are the share of digits in its input and two more characters, one a digit, and its length."""

    place = 0

    def embed(self, prompts, layer=0):
        texts = [body_of(query_of(self.method.template, prompt)) for prompt in prompts]
        return torch.tensor([[digits(text), len(text)] for text in texts])

    def embed_queries(self, queries, layer=0):
        return self.embed(queries.prompts)

    def fit(self, task, states_PH):
        self.kept[task] = {"mean": states_PH.mean(0)}

    def score(self, states_PH):
        means = [one["mean"][self.place] for one in self.kept.values()]
        return -torch.stack([(states_PH[:, self.place] - mean).abs() for mean in means], dim=1)


class Length(Digits):
    """Scores by the length of the input."""

    place = 1


INNER = {
    "by": {"_target_": f"{__name__}.Digits"},
    "body": {"_target_": f"{__name__}.Length", "wordings": ["input_only"]},
}


DENSITY = {
    "_target_": "see_lightning.routing.density.Density",
    "descriptor": "gaussian",
    "reject_above": 0,
    "wordings": ["input_only"],
}


def odds(task: str, text: str) -> float:
    """An expert's log-odds: by the words of its definition, and by the input's length."""
    shared = len(set(text.partition("\n\n")[0].split()) & set(TASKS[task].split())) if has_definition(text) else -2
    return float(2 * shared + len(body_of(text)) % 3)


def rows(task: str, numbers: range) -> list[str]:
    return [f"{TASKS[task]}\n\n{'7' * (n % 4 + 2) if task == 'sum' else 'ab' * (n % 5 + 1)}" for n in numbers]


def joint_on(pool) -> Joint:
    method = method_on(pool)
    method.general_source, method.general_negatives = "built_in", 0

    def sequential_router(queries, *, remember=True):
        texts = [query_of(method.template, prompt) for prompt in queries.prompts]
        return SimpleNamespace(
            log_odds=lambda orders: [
                [odds(name, text) for name in order] for order, text in zip(orders, texts, strict=True)
            ]
        )

    method.sequential_router = sequential_router
    return Joint(method, **INNER, **SETTINGS)


@pytest.fixture
def joint():
    router = joint_on(small.pool())
    for task in TASKS:
        for hook, numbers in ((router.learn, range(8)), (router.hold_out, range(8, 17))):
            hook(task, [prompt_of(text) for row in rows(task, numbers) for text in (row, body_of(row))])
    return router


def by_hand(router: Joint, task: str, defined: bool) -> tuple[list[float], list[list[float]]]:
    """The scale of a task's signals, and those of own held-out texts by wording, without and with a definition."""
    mean = statistics.mean(len(body) for body in dict.fromkeys(map(body_of, rows(task, range(8)))))
    whole = rows(task, range(8, 17))
    bare = [body_of(row) for row in whole]
    samples = router._samples(task, list(TASKS).index(task), list(dict.fromkeys((*whole, *bare))), bare)
    own = [one.text for one in samples if one.kind == OWN]
    general = [odds(task, one.text) for one in samples if one.kind == GENERAL]
    middle = lambda values: sorted(values)[(len(values) - 1) // 2]  # torch's median  # noqa: E731
    bodies = [-abs(len(body_of(text)) - mean) for text in own]
    shares = [proposal(task, text) for text in own]
    centre = middle([odds(task, text) for text in own])
    scale = [centre, max(centre - middle(general), 1.0), middle(bodies), statistics.pstdev(bodies), mean]
    scale += [middle(shares), max(statistics.pstdev(shares), 1e-6)]
    groups: dict[int, list[str]] = {}
    for one in samples:
        if one.kind == OWN and has_definition(one.text) == defined:
            groups.setdefault(one.wording, []).append(one.text)
    return scale, [[signal(router, task, scale, text) for text in texts] for texts in groups.values()]


def proposal(task: str, text: str) -> float:
    """How near the input's share of digits lies to the mean of the task's training inputs."""
    return -abs(digits(body_of(text)) - statistics.mean(digits(body_of(row)) for row in rows(task, range(8))))


def signal(router: Joint, task: str, scale: list[float], text: str) -> float:
    centre, gap, body, spread, mean, share, share_spread = scale
    constant, first, second = router.weights.tolist()
    near = min((-abs(len(body_of(text)) - mean) - body) / spread, (proposal(task, text) - share) / share_spread, 0)
    return constant + first * (odds(task, text) - centre) / gap + second * near


def test_an_expert_answers_if_its_joined_signals_reach_the_threshold_of_queries_like_this_one(joint):
    texts = [*rows("sum", range(6)), *rows("cap", range(6)), "777", "abab", "7" * 30, f"{TASKS['sum']}\n\n{'7' * 30}",
             "Count them, please.\n\n777", "Tell me more.\n\nabab", f"{TASKS['cap']}\n\nababab"]  # fmt: skip
    expected = []
    for text in texts:
        task = "sum" if sum(map(str.isdigit, body_of(text))) * 2 > len(body_of(text)) else "cap"
        scale, worded_values = by_hand(joint, task, has_definition(text))
        recall = 0.6 if has_definition(text) else 0.3
        least = min(guaranteed_threshold(values, recall, 0.9) for values in worded_values)
        expected.append(task if signal(joint, task, scale, text) >= least - 1e-9 else None)
    assert joint.route(small.queries(texts)) == expected
    assert set(expected) == {"sum", "cap", None}


def test_queries_without_a_definition_have_a_share_of_their_own(joint):
    before = dict(joint.least)
    joint.bare_recall = joint.target_recall
    joint._forget()
    for place in range(len(TASKS)):
        assert joint.least[place, True] == pytest.approx(before[place, True])
        assert joint.least[place, False] < before[place, False]


def test_inputs_of_several_paragraphs_are_no_other_wording_and_reach_the_threshold_too():
    """Without its definition such a query looks as if it had one, and its log-odds are as low as those of any bare query."""
    router, whole = (
        joint_on(small.pool()),
        [f"{TASKS['sum']}\n\n{'7' * (n + 2)}\n\n{'7' * (n % 4 + 2)}" for n in range(17)],
    )
    for hook, some in ((router.learn, whole[:8]), (router.hold_out, whole[8:])):
        hook("sum", [prompt_of(text) for row in some for text in (row, body_of(row))])
    (one,), (scale,) = router.measured, router.scales
    own_N = one.kind_N == OWN
    bare_N = own_N & (one.wording_N == BARE)
    assert int(own_N.sum()) == 3 * 9 + 9, "an input's own first paragraph is not reworded"
    assert one.defined_N[bare_N].tolist() == [1] * 9
    joined_N = router._join(scale.signals(one.log_odds_N, one.bodies_N, one.proposals_N))
    worded_values = [joined_N[own_N & (one.wording_N == n)].tolist() for n in (0, 1, 2, BARE)]
    least = [guaranteed_threshold(values, router.target_recall, router.confidence) for values in worded_values]
    assert router.least[0, True] == min(least)
    assert len(set(least)) > 1


def test_more_general_instructions_than_there_are_are_refused_at_once():
    method = method_on(small.pool())
    method.general_source, method.general_negatives = "built_in", 0
    with pytest.raises(ConfigError, match=r"^router.ood_examples=5000, but built_in has .*; give router.ood_examples="):
        Joint(method, **{**INNER, **SETTINGS, "ood_examples": 5000})


def test_the_weights_are_fitted_on_what_must_be_accepted_and_refused(joint):
    accepted = [one.kind_N == OWN for one in joint.measured]
    signals = [
        scale.signals(one.log_odds_N, one.bodies_N, one.proposals_N)
        for one, scale in zip(joint.measured, joint.scales, strict=True)
    ]
    weight_N = torch.cat([even_weights(one.kind_N, one.defined_N) for one in joint.measured])
    assert float(weight_N.sum()) == pytest.approx(4), "two tasks, two sides"
    y_N = torch.cat(accepted).double()
    here = penalised(joint.weights, torch.cat(signals), y_N, weight_N, RIDGE)
    for place in range(3):
        for step in (-0.05, 0.05):
            beside_G = joint.weights.clone()
            beside_G[place] += step
            assert penalised(beside_G, torch.cat(signals), y_N, weight_N, RIDGE) > here


def test_log_odds_are_those_of_the_expert_that_must_accept_or_refuse_the_text(joint):
    names = list(TASKS)
    for place, task in enumerate(names):
        whole = rows(task, range(8, 17))
        bare = [body_of(row) for row in whole]
        queries = list(dict.fromkeys(text for pair in zip(whole, bare, strict=True) for text in pair))
        states_WQH = joint.by.states([small.TEMPLATE.prompt_ids(query) for query in queries])
        samples = joint._samples(task, place, queries, bare) + joint._under_others(place, queries, states_WQH)
        assert place == 0 or len({one.text for one in samples}) < len(samples), "two experts are asked about one text"
        assert joint.kept[task]["log_odds"].tolist() == [odds(names[one.expert], one.text) for one in samples]


def test_what_it_keeps_is_enough_to_choose_alike(joint):
    again = joint_on(small.pool())
    for task in TASKS:
        again.load_state(task, joint.state(task))
    texts = [*rows("sum", range(4)), "777", "Tell me more.\n\nabab"]
    assert again.route(small.queries(texts)) == joint.route(small.queries(texts))
    assert again.nbytes() == joint.nbytes() > 0


def test_a_task_whose_queries_have_no_definition_has_one_threshold_for_all(joint):
    joint.kept["sum"]["samples"][:, 3] = 0
    joint._forget()
    assert joint.least[0, True] != float("inf")


def test_wordings_keep_the_input():
    query = f"{TASKS['sum']}\n\n777"
    found = worded(query, random.Random(3))
    assert found[0] == query
    assert [body_of(text) for text in found] == ["777"] * 3
    assert worded("777", random.Random(3)) == ["777"]


def test_routers_with_thresholds_of_their_own_are_refused():
    with pytest.raises(ConfigError, match="router.by of router=joint scores features and has no threshold of its own"):
        Joint(method_on(small.pool()), **{**INNER, "by": {**INNER["by"], "target_recall": 0.9}})
    with pytest.raises(ConfigError, match="router.body of router=joint scores features"):
        Joint(method_on(small.pool()), **{**INNER, "body": {"_target_": "see_lightning.routing.argmax.Argmax"}})
    with pytest.raises(ConfigError, match=r"router.body.wordings=\[input_only\]; got \['as_is'\]"):
        Joint(method_on(small.pool()), **{**INNER, "body": {"_target_": f"{__name__}.Length"}})


def test_a_task_whose_inputs_are_all_alike_is_refused_with_what_to_do():
    method = method_on(small.pool("sum"))
    method.general_source, method.general_negatives = "built_in", 0
    joint = Joint(method, **{**INNER, "body": DENSITY})
    same = [small.TEMPLATE.prompt_ids(f"Add {n} to it.\n\nthe same for all") for n in range(6)]
    with pytest.raises(
        ConfigError, match="needs 4 different texts .* of sum's prompts; there are 1. Choose router=propose"
    ):
        joint.learn("sum", same)


@pytest.mark.parametrize("style", ["plain", "chat", "alpaca", "llama2"])
def test_the_query_and_its_body_are_found_in_a_prompt(style):
    template = PromptTemplate(small.TEMPLATE.tokenizer, style=style, max_length=500)
    for query, body in (
        ("Add.\n\n1 and 2\n\n3", "1 and 2\n\n3"),
        ("no definition", "no definition"),
        ("Add.\n\n ", "Add.\n\n "),
        ("Which topic?\nTitle: a goal\n\nAnswer:", "Which topic?\nTitle: a goal\n\nAnswer:"),
        ("Add.\n\n1 and 2\nAnswer:", "1 and 2\nAnswer:"),
    ):
        ids = template.prompt_ids(query)
        assert (
            query_of(template, ids) == (query.strip() if style == "chat" else query) or query_of(template, ids) == query
        )
        assert body_ids(template, ids) == template.prompt_ids(body)
