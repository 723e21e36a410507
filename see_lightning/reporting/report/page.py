"""A run's report as a self-contained HTML page."""

from collections.abc import Sequence

from see_lightning.reporting.pages import page_template
from see_lightning.reporting.report.refusals import refusals, steadiness
from see_lightning.reporting.report.routers import Comparison, meanings, router_grid, router_notes, router_rows
from see_lightning.reporting.report.sections import (
    Results,
    in_all,
    last_row,
    lengths,
    metrics_of,
    per_task,
    shares_of,
    title,
    validation,
    variants,
)
from see_lightning.reporting.report.study import STUDY, Study, best_thresholds, study_orders, study_rows
from see_lightning.reporting.svg import confusion_svg, curve_svg, matrix_svg, routers_svg, study_svg
from see_lightning.reporting.words import number


def render_html(
    results: Results, study: Study | None = None, routers: Comparison | None = None, *, answers: str = ""
) -> str:
    """Render the page: no network, no script, the same bytes for the same arguments.

    Args:
        results: content of ``results.json``.
        study: content of ``study.json``, if there is one.
        routers: content of ``route.json``, if there is one.
        answers: relative address of the page of answers, if there is one.
    """
    import yaml  # type: ignore[import-untyped]
    from markupsafe import Markup

    tasks, matrix, routing, config = results["tasks"], results["matrix"], results.get("routing"), results.get("config")
    protocol = (config or {}).get("protocol", "ssr")
    has_curves = any(sum(score is not None for score in column) > 1 for column in zip(*matrix, strict=True))
    curves = [(task, _change(matrix, j), Markup(curve_svg(tasks, matrix, j))) for j, task in enumerate(tasks)]
    routing_figure = ""
    if routing:
        rows, columns = routing.get("tasks", tasks), routing.get("columns", [*tasks, "base"])
        routing_figure = Markup(confusion_svg(rows, columns, routing["confusion"], results.get("given") or {}))
    return page_template("report.html.j2").render(
        results=results,
        answers=answers,
        title=title(results),
        metrics=_joined(metrics_of(results, protocol)),
        protocol=protocol,
        others={name: _joined(metrics_of(results, name)) for name in results.get("protocols", ()) if name != protocol},
        last_row=last_row(results),
        lengths=lengths(results),
        matrix_figure=Markup(matrix_svg(tasks, matrix)),
        routing_figure=routing_figure,
        curves=curves if has_curves else [],
        shares=shares_of(results),
        variants=variants(results),
        study_figure=Markup(study_svg(study)) if study else "",
        study_best=best_thresholds(study) if study else "",
        study_columns=STUDY,
        study_rows=study_rows(study) if study else [],
        study_orders=study_orders(study) if study else {},
        refusals=refusals(results),
        steadiness=steadiness(results),
        routers_figure=Markup(routers_svg(*router_grid(routers))) if routers else "",
        routers=router_rows(routers) if routers else [],
        routers_notes=[*meanings(router_rows(routers)[0]), *router_notes(routers)] if routers else [],
        per_task=per_task(results),
        in_all=in_all(results),
        validation=validation(results),
        benchmark=results.get("benchmark"),
        notices=results.get("notices", []),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
    )


def _joined(metrics: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Metrics with a word joiner in each a[t][j] of a formula, which keeps it on one line."""
    return [(name, value, formula.replace("][", "]\u2060[")) for name, value, formula in metrics]


def _change(matrix: Sequence[Sequence[float | None]], j: int) -> str:
    """A task's score right after learning it, and at the end."""
    ends = [matrix[j][j], matrix[-1][j]]
    return number(ends[1], 1) if j == len(matrix) - 1 else " → ".join(number(end, 1) for end in ends)
