"""The content of ``study.json``: orders of experts by name, a row for each order and threshold, and the figure's data."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from see_lightning.errors import Refusal
from see_lightning.evaluation.counterfactual import simulate
from see_lightning.evaluation.recorded import RecordedDecisions
from see_lightning.evaluation.thresholds import own_and_other, sweep
from see_lightning.seeds import seed

BINS = 60  # of a distribution in the picture


def name_orders(wanted: Iterable[str], tasks: Sequence[str], run_seed: int) -> dict[str, tuple[str, ...]]:
    """Orders of experts by name; equal orders share a row.

    Args:
        wanted: ``newest``, ``oldest``, ``random:3``, several of them between commas, or all tasks between commas.
        tasks: in the order of learning.
        run_seed: the run's seed, from which random orders are drawn.

    >>> name_orders(["newest,oldest", "b,a,c"], ["a", "b", "c"], 0)
    {'newest': ('c', 'b', 'a'), 'oldest': ('a', 'b', 'c'), 'b,a,c': ('b', 'a', 'c')}
    """
    names: dict[tuple[str, ...], list[str]] = {}
    for given in wanted:
        words = tuple(word.strip() for word in given.split(","))
        if sorted(words) == sorted(tasks):
            names.setdefault(words, []).append(",".join(words))
            continue
        for word in words:
            kind, _, count = word.partition(":")
            if word in ("newest", "oldest"):
                drawn = {word: tuple(tasks if word == "oldest" else reversed(tasks))}
            elif kind == "random" and count.isdecimal() and int(count):
                drawn = {f"random {n}": _shuffled(tasks, run_seed, n) for n in range(1, int(count) + 1)}
            else:
                raise Refusal(
                    f"an order is newest, oldest, random:N with N of at least 1, or every task once"
                    f" ({','.join(tasks)}); got {word!r}."
                )
            for name, order in drawn.items():
                names.setdefault(order, []).append(name)
    return {" = ".join(dict.fromkeys(same)): order for order, same in names.items()}


def _shuffled(tasks: Sequence[str], run_seed: int, number: int) -> tuple[str, ...]:
    return tuple(random.Random(seed(run_seed, ",".join(tasks), f"asking order {number}")).sample(tasks, len(tasks)))


def study(
    recorded: RecordedDecisions, orders: Mapping[str, Sequence[str]], thresholds: Iterable[float]
) -> dict[str, Any]:
    """Compute the content of ``study.json``: every order with the verdicts and with every threshold, and the figure's data.

    Args:
        recorded: verdicts, log-odds and scores of the run.
        orders: by name, at least one; the figure shows the first.
        thresholds: log-odds; each order gets the one with its best routing in addition.
    """
    rows = []
    for name, order in orders.items():
        best = sweep(recorded, order).best()[2]
        for threshold in (None, *sorted({*thresholds, best})):
            simulated = simulate(recorded, order, threshold)
            rows.append(
                {
                    "order": name,
                    "experts": list(order),
                    "threshold": threshold,
                    "is_best": threshold == best,
                    "AR": simulated.ar,
                    "BWT": simulated.bwt,
                    "routing_accuracy": simulated.routing["accuracy"],
                    "base_share": simulated.routing["base_share"],
                    "asked": simulated.asked,
                    "unknown": simulated.unknown,
                }
            )
    name, order = next(iter(orders.items()))
    return {"queries": len(recorded.queries), "rows": rows, "picture": {"order": name, **_picture(recorded, order)}}


def _picture(recorded: RecordedDecisions, order: Sequence[str]) -> dict[str, Any]:
    """Counts of log-odds in `BINS` of equal width for each expert, and the sweep at the bins' edges."""
    values = [value for column in recorded.log_odds.values() for value in column]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    edges = [round(low + (high - low) * k / BINS, 4) for k in range(BINS + 1)]
    swept = sweep(recorded, order)
    above, to, best = swept.best()
    return {
        "edges": edges,
        "experts": {
            expert: {
                group: _histogram(values, low, high)
                for group, values in zip(("own", "foreign"), own_and_other(recorded, [expert]), strict=True)
            }
            for expert in recorded.tasks
        },
        "accuracy": [swept.accuracy(edge) for edge in edges],
        "base_share": [swept.fallback_rate(edge) for edge in edges],
        "best": {
            "threshold": best,
            "above": above if math.isfinite(above) else None,
            "to": to,
            "accuracy": swept.accuracy(best),
        },
    }


def _histogram(values: Iterable[float], low: float, high: float) -> list[int]:
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / (high - low) * BINS))] += 1
    return counts
