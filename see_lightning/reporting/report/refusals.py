"""How the refusals of past tasks are shared among them, and what they cost, expert by expert."""

from collections.abc import Sequence
from statistics import mean, median

from see_lightning.reporting.report.sections import Results
from see_lightning.reporting.words import number, percent

HEAD = ("expert", "refused rows", "tokens", "fewest of a past task", "median", "most", "past tasks without")
SETTLED = 6  # place of the first task whose cost is compared with that of later ones


def refusals(results: Results) -> list[list[str]]:
    """Head and rows of a table with a row for each expert but the first; empty if nothing was refused or it is unknown.

    Args:
        results: content of ``results.json``; ``routing.refused`` has by expert the refused rows of each past task that has
            any, ``counts.past_tokens`` by stage their tokens in all epochs.
    """
    tasks, refused = results["tasks"], (results.get("routing") or {}).get("refused") or {}
    tokens = (results.get("counts") or {}).get("past_tokens") or [None] * len(tasks)
    rows = []
    for place, expert in enumerate(tasks):
        counts = refused.get(expert)
        if place and counts:
            shares = [counts.get(task, 0) for task in tasks[:place]]
            rows.append(
                [
                    expert,
                    *map(number, (sum(shares), tokens[place], min(shares))),
                    f"{median(shares):g}",
                    *map(number, (max(shares), shares.count(0))),
                ]
            )
    return [list(HEAD), *rows] if rows else []


def largest_deviation(values: Sequence[float]) -> float:
    """The largest distance of a value from the mean of all, as a share of the mean; 0 if all are equal.

    >>> largest_deviation([90, 100, 110])
    0.1
    """
    middle = mean(values)
    return max(abs(value - middle) for value in values) / middle if middle else 0.0


def steadiness(results: Results) -> str:
    """A sentence on whether a late task costs more than the sixth beside its own rows; empty with fewer than seven tasks."""
    tokens = ((results.get("counts") or {}).get("negative_tokens") or [])[SETTLED - 1 :]
    if len(tokens) < 2 or not all(tokens):
        return ""
    return (
        f"From task {SETTLED} on, all rows that an expert refuses have {number(min(tokens))} to {number(max(tokens))} tokens"
        f" in all epochs, at most {percent(largest_deviation(tokens))} from their mean."
    )
