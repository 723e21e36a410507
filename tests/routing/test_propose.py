"""The experts that a feature router proposes, against a plain enumeration, and the verdicts that decide in their order."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

from see_lightning.errors import ConfigError
from see_lightning.routing.propose import Propose, best_tasks, scoring_router


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_the_best_tasks_are_those_of_a_plain_enumeration(number):
    scores_QT = torch.tensor(list(product([0.0, 0.5, 1.0], repeat=3)))
    least_T = torch.tensor([-torch.inf, 0.5, 0.7], dtype=torch.float64)
    for tasks, scores in zip(best_tasks(scores_QT, least_T, number), scores_QT.tolist(), strict=True):
        ranked = sorted(range(3), key=lambda task: (-scores[task], task))[:number]
        assert tasks == [task for task in ranked if scores[task] >= float(least_T[task])]


def test_a_router_without_scores_cannot_propose():
    with pytest.raises(ConfigError, match="Oracle gives no scores; .* router@router.by=analytic"):
        scoring_router({"_target_": "see_lightning.routing.oracle.Oracle"}, SimpleNamespace())


def test_no_expert_at_all_is_refused():
    with pytest.raises(ConfigError, match="router.experts must be at least 1"):
        Propose(SimpleNamespace(), by={}, experts=0)
