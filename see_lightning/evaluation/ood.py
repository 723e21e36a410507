"""OOD detection of an ensemble: its routing of queries of tasks that no expert was trained on.

Such a query should reach the base model. The share that does is counted from the answers; how well the experts separate ood
queries from in-task ones at any threshold is computed from their log-odds.

Letters: O out-of-distribution queries, I in-task queries.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from see_lightning.evaluation.routing import BASE, no_verdict_rate
from see_lightning.routing.verdicts import threshold_at_recall

Record = Mapping[str, Any]
R = TypeVar("R", bound=Record)


def auroc(own_I: Tensor, ood_O: Tensor) -> float:
    """AUROC: probability that an ood query has lower log-odds than an in-task query; ties count half. 1 is perfect.

    Computed by torchmetrics.

    Args:
        own_I: for each query of a learned task, the highest log-odds of acceptance.
        ood_O: for each ood query, the highest log-odds of acceptance.

    >>> auroc(torch.tensor([3.0, 5.0]), torch.tensor([-1.0, 4.0]))
    0.75
    """
    # Ranks instead of values: torchmetrics squeezes log-odds through a sigmoid, in which large ones become equal.
    every = torch.cat([own_I, ood_O])
    rank = torch.searchsorted(every.sort().values, every).double()
    label = torch.cat([torch.ones(len(own_I)), torch.zeros(len(ood_O))]).long()
    return float(binary_auroc(rank / (rank.max() + 1), label))


def accepted_at(own_I: Tensor, ood_O: Tensor, share: float) -> float:
    """FPR at a given TPR: share of ood queries accepted by the highest threshold that accepts a share of in-task queries.

    Args:
        own_I: for each query of a learned task, the highest log-odds of acceptance.
        ood_O: for each ood query, the highest log-odds of acceptance.
        share: of in-task queries to accept at least, in (0, 1].

    >>> accepted_at(torch.arange(100.0), torch.tensor([3.0, 4.0, 5.0, 6.0]), 0.95)
    0.5
    """
    threshold = threshold_at_recall(own_I.tolist(), share)
    return float((ood_O >= threshold).double().mean())


def highest_log_odds(records: Sequence[Record], experts: Sequence[str]) -> Tensor:
    """The highest log-odds of acceptance of each query over some experts, in nats.

    Args:
        records: of verdicts, with ``task, id, expert, log_odds``; those without log-odds are skipped.
        experts: over which the maximum is taken.
    """
    most: dict[tuple[str, str], float] = {}
    for record in records:
        if record["expert"] in experts and record["log_odds"] is not None:
            query = record["task"], record["id"]
            most[query] = max(most.get(query, -torch.inf), record["log_odds"])
    return torch.tensor(list(most.values()), dtype=torch.double)


def reached_report(answers: Sequence[Record], experts: Sequence[str]) -> dict[str, Any]:
    """The shares of queries that reached the base model, and that each expert took.

    Args:
        answers: to ood queries: ``task, expert, verdicts``; at least one.
        experts: oldest first.

    Returns:
        ``queries``; ``base_share`` of them that reached the base model, ``per_task`` and ``experts``, the share that each
        task's queries reached the base and that each expert took; ``no_indicator_share``.

    >>> answers = [{"task": "code", "expert": name, "verdicts": []} for name in ("base", "qa")]
    >>> reached_report(answers, ["qa"])["base_share"]
    0.5
    """
    by_task: dict[str, list[bool]] = {}
    for answer in answers:
        by_task.setdefault(answer["task"], []).append(answer["expert"] == BASE)
    return {
        "queries": len(answers),
        "base_share": _share([answer["expert"] == BASE for answer in answers]),
        "per_task": {task: _share(reached) for task, reached in by_task.items()},
        "experts": {expert: _share([answer["expert"] == expert for answer in answers]) for expert in experts},
        "no_indicator_share": no_verdict_rate(answers),
    }


def asked_records(records: Sequence[R], answers: Sequence[Record]) -> list[R]:
    """The records of verdicts by experts that were asked before a query was answered.

    Args:
        records: of verdicts, with ``task, id, expert``.
        answers: with ``task, id``, and ``asked``, the experts that decided.
    """
    asked = {(answer["task"], answer["id"], expert) for answer in answers for expert in answer.get("asked", ())}
    return [record for record in records if (record["task"], record["id"], record["expert"]) in asked]


def ood_report(
    answers: Sequence[Record], ood: Sequence[Record], own: Sequence[Record], experts: Sequence[str]
) -> dict[str, Any]:
    """The section of ``results.json`` on ood queries.

    Args:
        answers: to ood queries: ``task, expert, verdicts, text``, and ``plain``, see ``evaluate.add_plain``.
        ood: records of verdicts on ood queries, see ``highest_log_odds``; empty for experts without log-odds.
        own: records of verdicts on the test queries of learned tasks.
        experts: oldest first.

    Returns:
        The fields of ``reached_report``; ``auroc`` and ``fpr95``, None without log-odds; ``base_identical``, the share of
        ``base_checked`` answers of the base model that equal those of the base model without experts, None if none was
        checked.
    """
    same = [answer["text"] == answer["plain"] for answer in answers if answer["plain"] is not None]
    ood_O, own_I = highest_log_odds(ood, experts), highest_log_odds(own, experts)
    has_log_odds = bool(len(ood_O)) and bool(len(own_I))
    return {
        **reached_report(answers, experts),
        "auroc": round(auroc(own_I, ood_O), 4) if has_log_odds else None,
        "fpr95": round(accepted_at(own_I, ood_O, 0.95), 4) if has_log_odds else None,
        "base_identical": _share(same) if same else None,
        "base_checked": len(same),
    }


def _share(flags: Sequence[bool]) -> float:
    return round(sum(flags) / len(flags), 4)
