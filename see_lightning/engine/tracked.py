"""What every tracker shows of a run, and under which names: ``docs/loggers.md`` lists them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from see_lightning.reporting.svg import confusion_svg, matrix_svg


def of_stage(task: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a step of training or of an epoch's validation, with the task in their names.

    >>> of_stage("qa", {"train/loss": 0.5, "val/loss": 0.7, "epoch": 1.0})
    {'train/qa/loss': 0.5, 'val/qa/loss': 0.7, 'train/qa/epoch': 1.0}
    """
    kinds = ((name.rpartition("/"), value) for name, value in metrics.items())
    return {f"{kind or 'train'}/{task}/{own}": value for (kind, _, own), value in kinds}


def of_cell(after: int, task: str, score: float) -> dict[str, float]:
    """A cell of the results matrix, as a point of the task's curve and by itself.

    >>> of_cell(2, "qa", 50.0)
    {'eval/qa': 50.0, 'eval/after=2/qa': 50.0}
    """
    return {f"eval/{task}": score, f"eval/after={after}/{task}": score}


def cells(results: Mapping[str, Any]) -> Iterator[tuple[int, str, float]]:
    """The measured cells of the results matrix: number of learned tasks, from 1, task and score (0..100)."""
    for after, row in enumerate(results["matrix"], start=1):
        for task, score in zip(results["tasks"], row, strict=True):
            if score is not None:
                yield after, task, score


def numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a finished run, as far as they are defined."""
    found = {f"continual/{name}": value for name, value in results["metrics"].items()}
    routing = results.get("routing", {})
    found |= {f"route/{name}": value for name, value in routing.items() if not isinstance(value, list | dict)}
    return {name: value for name, value in found.items() if value is not None}


def pictures(results: Mapping[str, Any]) -> dict[str, str]:
    """HTML pages of the results matrix and of the confusion of experts, by name."""
    routing, drawn = results.get("routing"), {"picture/matrix": matrix_svg(results["tasks"], results["matrix"])}
    if routing:
        right = results.get("given") or {}
        drawn["picture/routing"] = confusion_svg(routing["tasks"], routing["columns"], routing["confusion"], right)
    return {name: _page(svg) for name, svg in drawn.items()}


def files(report: Path) -> dict[str, str]:
    """The texts of ``report.html``, given by its path, and of ``results.json`` beside it, by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in (report, report.with_name("results.json"))}


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run by the names of the command line, without the tracker's own, which may hold an account.

    >>> settings({"seed": 0, "logger": {"project": "mine"}, "optim": {"lr": 0.001}})
    {'seed': 0, 'optim.lr': 0.001}
    """
    return flat({name: value for name, value in config.items() if name != "logger"})


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
