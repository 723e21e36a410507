"""Standardised log-odds and the choice by them, against Python's statistics and a plain enumeration."""

import statistics
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from see_lightning.routing.argmax import LEAST_STD, LOG_ODDS, Argmax, standardised
from see_lightning.tasks.batches import Queries

OWN = {"a": [4.0, 5.0, 6.5, 4.5], "b": [0.5, 2.0, 1.5, 0.0], "c": [3.0, 3.0, 3.0, 3.0]}
LOG_ODDS_OF = {"a": [5.0, -2.0, 1.0, -9.0, 4.4], "b": [-3.0, 1.0, 1.2, -9.0, 0.1], "c": [-1.0, 0.0, 2.99, -9.0, 3.2]}


def measured(name: str, value: float) -> float:
    return (value - statistics.mean(OWN[name])) / max(statistics.pstdev(OWN[name]), LEAST_STD)


def test_log_odds_are_measured_by_those_of_own_rows():
    log_odds_QT = torch.tensor(list(LOG_ODDS_OF.values()), dtype=torch.float64).T
    found = standardised(log_odds_QT, [torch.tensor(own, dtype=torch.float64) for own in OWN.values()])
    for row, scores in enumerate(found.tolist()):
        assert scores == pytest.approx([measured(name, LOG_ODDS_OF[name][row]) for name in OWN])


@pytest.mark.parametrize("recall", [0.0, 0.5, 0.75, 1.0])
def test_the_surest_expert_answers_unless_too_few_own_rows_are_less_sure(recall):
    asked: Counter[str] = Counter()

    def log_odds(orders):
        asked.update(expert for order in orders for expert in order)
        return [[LOG_ODDS_OF[expert][row] for expert in order] for row, order in enumerate(orders)]

    method = SimpleNamespace(sequential_router=lambda queries: SimpleNamespace(log_odds=log_odds))
    router = Argmax(method, target_recall=recall)
    router.kept = {name: {LOG_ODDS: torch.tensor(own, dtype=torch.float64)} for name, own in OWN.items()}
    expected = []
    for row in range(5):
        best = max(OWN, key=lambda name: measured(name, LOG_ODDS_OF[name][row]))
        value = measured(best, LOG_ODDS_OF[best][row])
        # The threshold is the highest own value that enough of the own rows reach.
        least = max(
            one for one in map(lambda own: measured(best, own), OWN[best])
            if sum(measured(best, other) >= one for other in OWN[best]) >= recall * len(OWN[best])
        )  # fmt: skip
        expected.append(best if not recall or value >= least else None)
    queries = Queries([[1]] * 5, list("12345"), [0] * 5, [1] * 5, rows=8)
    assert router.route(queries) == expected
    assert asked == Counter(dict.fromkeys(OWN, 5)), "every expert decides on every query"
    assert recall == 0 or None in expected
