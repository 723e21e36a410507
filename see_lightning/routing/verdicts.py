"""The walk: experts are asked one after another until one accepts.

SEE's sequential routing (arXiv 2504.06664, figure 1): ``<<pos>>`` answers, ``<<neg>>`` passes the query on, neither
sends it to the base model, and so does a walk in which nobody accepts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from see_lightning.tasks.reconstruct import Indicators


class Verdict(StrEnum):
    """What an expert says of a query."""

    POS = "pos"
    NEG = "neg"
    NEITHER = "neither"


def read_verdict(text: str, indicators: Indicators) -> Verdict | None:
    """The verdict at the start of an answer, or None while it is still being written.

    Exact and case-sensitive, after leading blanks.

    Args:
        text: what the expert has written so far.
        indicators: the two words looked for.

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


def threshold_with_margin(own: Sequence[float], others: Sequence[float], share: float, margin: float) -> float:
    """A threshold below what a share of own values reach, by a part of the way from there to the highest foreign one.

    Where own values lie far above all others, those a little lower than any seen before are still accepted; where they
    meet, the threshold is `keeping`'s.

    Args:
        own: at least one.
        others: at least one.
        share: of own values that are above it, above 0 and at most 1.
        margin: the part of the way, 0..1.

    >>> threshold_with_margin([8.0, 9.0, 10.0], [-4.0, 0.0], share=1.0, margin=0.25)
    6.0
    >>> threshold_with_margin([8.0, 9.0, 10.0], [8.5], share=1.0, margin=0.25)
    8.0
    """
    low = threshold_at_recall(own, share)
    return low - margin * max(0.0, low - max(others))


@dataclass(frozen=True, slots=True)
class Route:
    """Where one query's walk ended.

    Args:
        expert: who accepted it; None stands for the base model.
        verdicts: of the experts asked, newest first.
    """

    expert: str | None
    verdicts: tuple[Verdict, ...]


def walk(experts: Sequence[str], queries: int, ask: Callable[[str, list[int]], Sequence[Verdict]]) -> list[Route]:
    """Send every query past the experts until one does not pass it on.

    Args:
        experts: names in the order in which they are asked, newest first.
        queries: how many queries there are.
        ask: given an expert and the numbers of the queries still open, gives that expert's verdicts on them. An expert
            that no open query reaches is not asked.

    >>> said = {"b": [Verdict.NEG, Verdict.POS, Verdict.NEITHER], "a": [Verdict.POS]}
    >>> [w.expert for w in walk(["b", "a"], 3, lambda expert, rows: said[expert])]
    ['a', 'b', None]
    """
    verdicts: list[list[Verdict]] = [[] for _ in range(queries)]
    answerer: list[str | None] = [None] * queries
    open_ = list(range(queries))
    for expert in experts:
        if not open_:
            break
        for query, verdict in zip(open_, ask(expert, open_), strict=True):
            verdicts[query].append(verdict)
            if verdict is Verdict.POS:
                answerer[query] = expert
        open_ = [query for query in open_ if verdicts[query][-1] is Verdict.NEG]
    return [Route(name, tuple(said)) for name, said in zip(answerer, verdicts, strict=True)]
