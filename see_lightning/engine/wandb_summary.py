"""The content of a W&B run: settings under dotted names, and at its end numbers, pictures and files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from see_lightning.engine.ledger import dump
from see_lightning.reporting.svg import confusion_svg, matrix_svg


def summary(results: Mapping[str, Any], report: Path) -> dict[str, Any]:
    """The report at the end of a run, as arguments of ``wandb_client.Client.results``.

    Args:
        results: content of ``results.json``.
        report: path of ``report.html``.
    """
    tasks, routing = results["tasks"], results.get("routing", {})
    numbers = {f"continual/{name}": value for name, value in results["metrics"].items()}
    numbers |= {f"route/{name}": value for name, value in routing.items() if not isinstance(value, list | dict)}
    pictures = {"picture/matrix": _page(matrix_svg(tasks, results["matrix"]))}
    if routing:
        pictures["picture/routing"] = _page(confusion_svg(routing["tasks"], routing["columns"], routing["confusion"]))
    return {
        "numbers": {name: value for name, value in numbers.items() if value is not None},
        "pictures": pictures,
        "cells": {
            f"eval/after={after}/{task}": score
            for after, row in enumerate(results["matrix"], start=1)
            for task, score in zip(tasks, row, strict=True)
            if score is not None
        },
        "files": {"report.html": report.read_text(encoding="utf-8"), "results.json": dump(results)},
    }


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as a flat one with dotted names.

    >>> flat({"seed": 0, "optim": {"lr": 0.001}})
    {'seed': 0, 'optim.lr': 0.001}
    """
    found: dict[str, Any] = {}
    for name, value in node.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _page(svg: str) -> str:
    """An SVG in a page with its own colours, since W&B shows it in a frame; readable on light and dark backgrounds."""
    colours = ":root { color-scheme: light dark; --muted: #808890; --line: #80889060; --accent: #4a90d9 }"
    return f'<html><head><meta charset="utf-8"><style>{colours}</style></head><body>{svg}</body></html>'
