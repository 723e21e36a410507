"""The rows and sentences of a study, for the terminal and the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from see_lightning.reporting.report.sections import ROUTING
from see_lightning.reporting.terminal import plain
from see_lightning.reporting.words import number, percent

Study = Mapping[str, Any]
STUDY = {
    "order": "of the experts in the walk",
    "an expert accepts by": "its verdict, or log-odds of at least a threshold",
    "AR": "a range if answers are unknown",
    "BWT": "a range if answers are unknown",
    "routing accuracy": ROUTING["accuracy"],
    "base share": ROUTING["base_share"],
    "asked": "experts per query in the walk",
    "unknown": "answers that the matrix needs and that were never generated",
}


def print_study(study: Study, console: Console) -> None:
    """Print a row for each order and rule, the experts of each order, and the best thresholds."""
    words = [Column(name, no_wrap=True) for name in list(STUDY)[:2]]
    table = Table(*words, *(Column(name, justify="right") for name in list(STUDY)[2:]), box=box.SIMPLE_HEAD)
    for row in study_rows(study):
        table.add_row(*map(Text, row))
    console.print(Text(plain(table)), soft_wrap=True)
    for name, meaning in list(STUDY.items())[4:]:
        console.print(Text(f" {name}: {meaning}"), soft_wrap=True)
    for name, experts in study_orders(study).items():
        console.print(Text(f" {name}: asks {experts}"), soft_wrap=True)
    console.print(Text(best_thresholds(study)), soft_wrap=True)


def study_rows(study: Study) -> list[list[str]]:
    """A readable cell for each column of `STUDY`; only the first row of an order has its name."""
    rows, above = [], None
    for row in study["rows"]:
        rule = "verdict" if row["threshold"] is None else f"log-odds ≥ {_threshold(row['threshold'])}"
        rows.append(
            [
                "" if row["order"] == above else row["order"],
                rule + (" (best)" if row["is_best"] else ""),
                _range(row["AR"]),
                _range(row["BWT"]),
                percent(row["routing_accuracy"]),
                percent(row["base_share"]),
                number(row["asked"]),
                number(row["unknown"]),
            ]
        )
        above = row["order"]
    return rows


def study_orders(study: Study) -> dict[str, str]:
    """Name of each order -> its experts."""
    return {row["order"]: ", ".join(row["experts"]) for row in study["rows"]}


def _range(ends: Sequence[float] | None) -> str:
    """Lowest and highest value as text, or one if their texts are equal."""
    return "–" if ends is None else " to ".join(dict.fromkeys(map(number, ends)))


def _threshold(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def best_thresholds(study: Study) -> str:
    """A sentence on the thresholds with the best routing."""
    picture = study["picture"]
    best = picture["best"]
    above = "" if best["above"] is None else f"above {_threshold(best['above'])} and "
    return (
        f"In the order {picture['order']!r}, routing is best at thresholds {above}up to {_threshold(best['to'])}:"
        f" {percent(best['accuracy'])} of {number(study['queries'])} queries. The best threshold is chosen on the test"
        f" queries themselves, so it is an upper bound, not an expectation."
    )
