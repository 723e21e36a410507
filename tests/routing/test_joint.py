"""The logistic regression of two signals against its own derivative and neighbours, and the body of a query."""

from types import SimpleNamespace

import pytest
import torch

from see_lightning.errors import ConfigError
from see_lightning.routing.guarantee import guaranteed_threshold
from see_lightning.routing.joint import Joint, fit_logistic
from see_lightning.tasks.bodies import body_ids, query_of
from see_lightning.tasks.prompts import PromptTemplate
from tests.adapters import small


def penalised(weights_G, x_NF, y_N, ridge):
    z_N = weights_G[0] + x_NF @ weights_G[1:]
    return (
        -(y_N * z_N.sigmoid().log() + (1 - y_N) * (-z_N).sigmoid().log()).sum() + ridge / 2 * weights_G[1:].norm() ** 2
    )


@pytest.mark.parametrize("apart", [0.0, 1.0, 20.0])
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_weights_are_where_the_penalised_likelihood_is_largest(apart, ridge):
    draw = torch.Generator().manual_seed(0)
    y_N = (torch.arange(40) % 3 == 0).double()
    x_NF = torch.randn(40, 2, generator=draw, dtype=torch.float64) + apart * y_N[:, None]
    x_NF = (x_NF - x_NF.mean(0)) / x_NF.std(0)
    weights_G = fit_logistic(x_NF, y_N, ridge).requires_grad_()
    here = penalised(weights_G, x_NF, y_N, ridge)
    (gradient_G,) = torch.autograd.grad(here, weights_G)
    assert gradient_G.abs().max() < 1e-6
    for _ in range(20):
        beside_G = weights_G.detach() + 0.05 * torch.randn(3, generator=draw, dtype=torch.float64)
        assert penalised(beside_G, x_NF, y_N, ridge) > here


class Scores:
    """Stands in for a feature router: a state is the scores themselves."""

    def candidates(self):
        return ["a", "b"]

    def score(self, states_PH):
        return states_PH

    def scores(self, queries):
        return torch.tensor([[0.2, 0.9], [0.7, 0.1], [0.6, 0.5]])


@pytest.fixture
def joint(monkeypatch):
    router = Joint.__new__(Joint)
    router.method = router._refusing = SimpleNamespace(
        template=small.TEMPLATE,
        sequential_router=lambda queries: SimpleNamespace(
            log_odds=lambda orders: [[{"a": 3.0, "b": -2.0}[order[0]]] for order in orders]
        ),
    )
    router.by, router.target_recall, router.confidence, router._fitted = Scores(), 0.6, 0.9, None
    router.kept = {}
    for task, name in enumerate("ab"):
        states_PH = torch.rand(12, 2, generator=torch.Generator().manual_seed(task))
        samples = [(row, task, int(row < 8)) for row in range(12)] + [(row, 1 - task, 0) for row in range(8)]
        log_odds = [4.0 + row / 10 if is_own else -3.0 - row / 10 for row, _, is_own in samples]
        router.kept[name] = {
            "states": states_PH,
            "samples": torch.tensor(samples),
            "log_odds": torch.tensor(log_odds, dtype=torch.float64),
            "bodies": torch.tensor([row // 2 for row in range(12)]),  # two wordings of each body
        }
    return router


def test_only_the_nearest_task_s_expert_is_asked_and_has_a_score(joint):
    scores_QT = joint.scores(small.queries(["x", "y", "z"], only_decide=True))
    assert scores_QT.isinf().tolist() == [[True, False], [False, True], [False, True]]
    weights_G, (mean_F, std_F) = joint._fitted[1], joint._fitted[0]
    by_hand = weights_G[0] + weights_G[1:] @ ((torch.tensor([3.0, 0.7]).double() - mean_F) / std_F)
    assert float(scores_QT[1, 0]) == pytest.approx(float(by_hand), abs=1e-6)
    assert joint.route(small.queries(["x", "y", "z"]))[0] is None, "an expert that refuses does not answer"


def test_a_threshold_counts_the_worst_wording_of_each_row(joint):
    for place, name in enumerate("ab"):
        signals_NF, is_own_N = joint._signals(name)
        values = joint._join(*signals_NF.T)[is_own_N.bool()].tolist()
        worst = [min(values[row], values[row + 1]) for row in range(0, 8, 2)]
        assert float(joint.thresholds()[place]) == guaranteed_threshold(worst, 0.6, 0.9)


def test_scores_of_no_features_are_refused():
    method = SimpleNamespace(pool=SimpleNamespace(names=[]))
    with pytest.raises(ConfigError, match="router.by of router=joint is a router of features without a threshold"):
        Joint(method, by={"_target_": "see_lightning.routing.argmax.Argmax"})


@pytest.mark.parametrize("style", ["plain", "chat", "alpaca", "llama2"])
def test_the_query_and_its_body_are_found_in_a_prompt(style):
    template = PromptTemplate(small.TEMPLATE.tokenizer, style=style, max_length=500)
    for query, body in (
        ("Add.\n\n1 and 2\n\n3", "1 and 2\n\n3"),
        ("no definition", "no definition"),
        ("Add.\n\n ", "Add.\n\n "),
    ):
        ids = template.prompt_ids(query)
        assert (
            query_of(template, ids) == (query.strip() if style == "chat" else query) or query_of(template, ids) == query
        )
        assert body_ids(template, ids) == template.prompt_ids(body)
