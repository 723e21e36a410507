"""A comparison as a self-contained HTML page."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from see_lightning.reporting.comparison.columns import alike, columns, reading
from see_lightning.reporting.comparison.groups import NAMED, Comparison, Group, label, seeds_text, short_label
from see_lightning.reporting.pages import page_template
from see_lightning.reporting.report.sections import FORMULAS, ROUTING
from see_lightning.reporting.runs import Run
from see_lightning.reporting.svg import matrix_svg

MEANINGS = {**FORMULAS, "routing accuracy": f"{ROUTING['accuracy']}; higher is better"}
MATRICES = 24  # most matrices on a page


def render_comparison(comparison: Comparison, command: str, folder: Path = Path()) -> str:
    """Render the page: no network; its script only sorts the table.

    Args:
        comparison: to show; the first `MATRICES` groups get a matrix.
        command: that made the page, for the record.
        folder: of the page, from which it links to the reports of runs.
    """
    shown = comparison.groups[:MATRICES]
    every = columns(comparison)
    return page_template("comparison.html.j2").render(
        title=f"Comparison of {', '.join(dict.fromkeys(group.first.order for group in comparison.groups))}",
        runs=sum(len(group.runs) for group in comparison.groups),
        models=list(dict.fromkeys(group.first.model for group in comparison.groups)),
        heads=[
            (_breakable(", ".join(one.names)), MEANINGS.get(one.names[0].removesuffix(", %"), ""), one.is_number)
            for one in every
        ],
        rows=[
            [(one.names[0], one.cells[place], one.values[place], one.is_number) for one in every]
            for place in range(len(comparison.groups))
        ],
        links=[[(run.seed, _link(run, folder)) for run in group.runs] for group in comparison.groups],
        alike=alike(comparison),
        # The word joiner keeps a[t][j] on one line.
        meanings={name: meaning.replace("][", "]\u2060[") for name, meaning in MEANINGS.items()},
        matrices=[_figure(place, group) for place, group in enumerate(shown)],
        column=max(2 * len(group.first.tasks) + 10 for group in shown),
        notices=comparison.notices,
        command=command,
        named=NAMED,
    )


def _breakable(name: str) -> str:
    """The name of a setting with a zero-width space after each dot, where a line may break."""
    return name.replace(".", ".\u200b")


def _link(run: Run, folder: Path) -> str:
    """The address of a run's report from a page in a folder; of its results if there is no report."""
    report = run.path.with_name("report.html")
    target = report if run.is_at_home and report.exists() else run.path
    return quote(Path(os.path.relpath(target, folder)).as_posix())


def _figure(place: int, group: Group) -> dict[str, Any]:
    """The figure of a group: its matrix, labels and commands."""
    from markupsafe import Markup

    matrix = group.matrix()
    means = [[cell.mean if cell else None for cell in row] for row in matrix]
    deviations = [[cell.deviation if cell else None for cell in row] for row in matrix] if len(group.runs) > 1 else None
    return {
        "head": short_label(group),
        "label": f"{label(group)} · {seeds_text([run.seed for run in group.runs])}",
        "tasks": group.first.tasks,
        "svg": Markup(matrix_svg(group.first.tasks, means, deviations, name=f"matrix-{place}")),
        "rows": [[reading(cell, len(group.runs)) for cell in row] for row in matrix],
        "commands": [run.command for run in group.runs],
    }
