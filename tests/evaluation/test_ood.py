"""Foreign queries: counts by hand, and rankings against counting all pairs."""

import random

import pytest
import torch

from see_lightning.evaluation.ood import accepted_at, auroc, highest_log_odds, ood_report
from see_lightning.routing.verdicts import threshold_at_recall


def values(draw: random.Random, size: int) -> list[float]:
    return [draw.choice([draw.randint(-3, 3), draw.gauss(0, 40), 900.0]) for _ in range(size)]  # ties, and far ones


@pytest.mark.parametrize("case", range(30))
def test_auroc_is_the_share_of_pairs_in_the_right_order_ties_counted_half(case):
    draw = random.Random(case)
    own, ood = values(draw, draw.randint(1, 40)), values(draw, draw.randint(1, 40))
    pairs = [(a > b) + (a == b) / 2 for a in own for b in ood]
    found = auroc(torch.tensor(own, dtype=torch.double), torch.tensor(ood, dtype=torch.double))
    assert found == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("case", range(10))
def test_the_threshold_keeps_the_share_and_no_higher_one_does(case, share):
    draw = random.Random(case)
    own = values(draw, draw.randint(1, 60))
    threshold = threshold_at_recall(own, share)
    assert sum(value >= threshold for value in own) >= share * len(own) - 1e-6
    higher = [value for value in own if value > threshold]
    assert len(higher) < share * len(own)
    ood = values(draw, 25)
    found = accepted_at(torch.tensor(own, dtype=torch.double), torch.tensor(ood, dtype=torch.double), share)
    assert found == pytest.approx(sum(value >= threshold for value in ood) / 25)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        threshold_at_recall([1.0] * 3, share)


def said(task: str, id_: str, expert: str, log_odds: float | None) -> dict[str, object]:
    return {"task": task, "id": id_, "expert": expert, "log_odds": log_odds}


def test_a_query_leans_as_far_as_the_expert_that_leans_most():
    records = [said("a", "1", "qa", -2.0), said("a", "1", "sa", 3.0), said("b", "1", "qa", -1.0),
               said("b", "1", "base", None), said("b", "1", "later", 9.0)]  # fmt: skip
    assert highest_log_odds(records, ["qa", "sa"]).tolist() == [3.0, -1.0]
    assert highest_log_odds([], ["qa"]).tolist() == []


def answer(
    task: str, expert: str, text: str = "x", plain: str | None = None, verdict: str = "neg"
) -> dict[str, object]:
    return {"task": task, "expert": expert, "text": text, "plain": plain, "verdicts": [verdict]}


def test_the_report_counts_who_took_what():
    answers = [answer("far", "base", "x", "x"), answer("far", "qa", verdict="pos"),
               answer("near", "sa", verdict="pos"), answer("near", "base", "x", "y", verdict="neither")]  # fmt: skip
    ood = [said("far", "1", "qa", -1.0), said("far", "1", "sa", -3.0), said("near", "1", "qa", 2.0)]
    own = [said("qa", "1", "qa", 1.0), said("sa", "1", "sa", 4.0), said("sa", "1", "qa", -9.0)]
    assert ood_report(answers, ood, own, ["qa", "sa"]) == {
        "queries": 4,
        "base_share": 0.5,
        "per_task": {"far": 0.5, "near": 0.5},
        "experts": {"qa": 0.25, "sa": 0.25},
        "no_indicator_share": 0.25,
        "auroc": 0.75,
        "fpr95": 0.5,
        "base_identical": 0.5,
        "base_checked": 2,
    }


def test_what_was_not_measured_is_none():
    report = ood_report([answer("far", "qa")], [], [], ["qa"])
    assert (report["auroc"], report["fpr95"], report["base_identical"]) == (None, None, None)
