"""Verdicts, their thresholds, and the walk: SEE's sequential routing (arXiv 2504.06664, figure 1).

Experts decide one after another. ``<<pos>>`` accepts the query, ``<<neg>>`` passes it to the next expert. An answer with
neither indicator sends it to the base model, and so does a walk in which no expert accepts. SEE asks the experts newest
first; other routers give each query an order of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from see_lightning.tasks.reconstruct import Indicators


class Verdict(StrEnum):
    """An expert's decision on a query."""

    POS = "pos"
    NEG = "neg"
    NEITHER = "neither"


def read_verdict(text: str, indicators: Indicators) -> Verdict | None:
    """The verdict at the start of an answer, or None while the indicator is incomplete.

    Exact and case-sensitive, after leading blanks.

    Args:
        text: the expert's answer so far.
        indicators: the positive and the negative one.

    >>> [read_verdict(text, Indicators()) for text in ("<<pos>> 4", " <<neg>>", "<<p", "Four")]
    [<Verdict.POS: 'pos'>, <Verdict.NEG: 'neg'>, None, <Verdict.NEITHER: 'neither'>]
    """
    text = text.lstrip()
    if text.startswith(indicators.pos):
        return Verdict.POS
    if text.startswith(indicators.neg):
        return Verdict.NEG
    unfinished = indicators.pos.startswith(text) or indicators.neg.startswith(text)
    return None if unfinished else Verdict.NEITHER


def apply_threshold(verdict: Verdict, log_odds: float | None, threshold: float | None) -> Verdict:
    """A positive verdict whose log-odds lie below the threshold counts as negative.

    Args:
        verdict: decoded from the expert's answer.
        log_odds: of the positive over the negative indicator, in nats, rounded to 4 digits; None if unknown.
        threshold: lowest log-odds that accept; None keeps the decoded verdict.

    >>> apply_threshold(Verdict.POS, 1.5, 2.0), apply_threshold(Verdict.POS, 1.5, None)
    (<Verdict.NEG: 'neg'>, <Verdict.POS: 'pos'>)
    """
    is_below = threshold is not None and log_odds is not None and round(log_odds, 4) < threshold
    return Verdict.NEG if verdict is Verdict.POS and is_below else verdict


def strip_indicator(text: str, indicators: Indicators) -> str:
    """An accepted answer without its indicator and the space behind it.

    >>> strip_indicator("<<pos>> 4", Indicators())
    '4'
    """
    return text.lstrip().removeprefix(indicators.pos).removeprefix(" ")


def threshold_at_recall(values: Sequence[float], share: float) -> float:
    """The highest threshold that at least a share of values reach.

    Args:
        values: at least one.
        share: above 0 and at most 1.

    >>> threshold_at_recall([4.0, 1.0, 3.0, 2.0], 0.75)
    2.0
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1; got {share!r}.")
    return sorted(values, reverse=True)[math.ceil(round(share * len(values), 6)) - 1]


def lowered_by_margin(threshold: float, others: Sequence[float], margin: float) -> float:
    """A threshold, lowered by a share of its distance to the highest value of queries to be rejected.

    If all own values lie far above the others, a query slightly below the own values seen so far is still accepted; if
    they overlap, the threshold is not lowered.

    Args:
        threshold: from the own values, see ``threshold_at_recall``.
        others: log-odds of queries to be rejected, at least one.
        margin: share of the distance, 0..1.

    >>> lowered_by_margin(8.0, [-4.0, 0.0], margin=0.25), lowered_by_margin(8.0, [8.5], margin=0.25)
    (6.0, 8.0)
    """
    return threshold - margin * max(0.0, threshold - max(others))


@dataclass(frozen=True, slots=True)
class Route:
    """The result of one query's walk.

    Args:
        expert: the expert that accepted it; None is the base model.
        verdicts: of the experts that decided, in the order in which they were asked.
    """

    expert: str | None
    verdicts: tuple[Verdict, ...]


def walk(orders: Sequence[Sequence[str]], ask: Callable[[str, list[int]], Sequence[Verdict]]) -> list[Route]:
    """Route every query to the first expert of its order that accepts it.

    Queries that have the same expert at the same place of their orders are decided together. With one order for all, each
    expert is asked at most once.

    Args:
        orders: for each query, the names of the experts that it asks, in order, each at most once.
        ask: given an expert and the numbers of undecided queries, returns its verdicts on them.

    >>> said = {"b": [Verdict.NEG, Verdict.POS, Verdict.NEITHER], "a": [Verdict.POS]}
    >>> [one.expert for one in walk([["b", "a"]] * 3, lambda expert, rows: said[expert])]
    ['a', 'b', None]
    """
    verdicts: list[list[Verdict]] = [[] for _ in orders]
    answerer: list[str | None] = [None] * len(orders)
    open_ = list(range(len(orders)))
    for place in range(max(map(len, orders), default=0)):
        asking: dict[str, list[int]] = {}
        for query in open_:
            if place < len(orders[query]):
                asking.setdefault(orders[query][place], []).append(query)
        for expert, queries in asking.items():
            for query, verdict in zip(queries, ask(expert, queries), strict=True):
                verdicts[query].append(verdict)
                if verdict is Verdict.POS:
                    answerer[query] = expert
        open_ = [query for queries in asking.values() for query in queries if verdicts[query][-1] is Verdict.NEG]
        open_.sort()  # queries with a common prefix are neighbours
    return [Route(name, tuple(said)) for name, said in zip(answerer, verdicts, strict=True)]
