"""Everything a user sees at the end of a run, made from the content of ``results.json`` alone.

`print_report` for the terminal, `matrix_csv` for spreadsheets, `render_html` for a page that needs nothing but itself.

Letters: T tasks, in the order in which they are learned.
"""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from see_lightning.evaluation.protocols import PROTOCOLS, summaries
from see_lightning.reporting.spreadsheets import csv_text
from see_lightning.reporting.svg import confusion_svg, curve_svg, matrix_svg, study_svg

if TYPE_CHECKING:
    from jinja2 import Template

Results = Mapping[str, Any]
Study = Mapping[str, Any]

FORMULAS = PROTOCOLS["ssr"]
ROUTING = {
    "accuracy": "queries answered by their own task's expert",
    "base_share": "queries answered by the base model",
}
VERDICTS = {  # of experts that give any
    "no_indicator_share": "queries for which an expert gave neither indicator",
    "decided_again_share": "decisions so close that they were made again, each query by itself",
}
OOD = {
    "base_share": "out-of-distribution queries answered by the base model",
    "base_identical": "of those that were checked, answers identical to the plain base model's",
    "fpr95": "out-of-distribution queries above the log-odds that 95 % of the tasks' own reach",
}


def matrix_csv(results: Results) -> str:
    """The results matrix as CSV: a header ``after,<tasks>``, then one line per task; empty where unmeasured.

    >>> print(matrix_csv({"tasks": ["qa", "qg"], "matrix": [[80.0, None], [75.5, 60.0]]}), end="")
    after,qa,qg
    qa,80.0,
    qg,75.5,60.0
    """
    rows = zip(results["tasks"], results["matrix"], strict=True)
    return csv_text([["after", *results["tasks"]], *([task, *row] for task, row in rows)])


# ---------------------------------------------------------------------------------------------- words and numbers


def title(results: Results) -> str:
    """One line that tells this run from others."""
    ratio = "" if results.get("ratio") is None else f" · ratio {results['ratio']:g}"
    return f"{results['method']} on {results['order']} · {results['model']}{ratio} · seed {results['seed']}"


def number(value: object, digits: int = 2) -> str:
    """A value for reading: thousands apart, `digits` decimals, an en dash for None.

    >>> number(12345), number(81.234), number(-3.5), number(None), number([1200, 3])
    ('12,345', '81.23', '−3.50', '–', '1,200, 3')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:,.{digits}f}".replace("-", "−")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, list | tuple):
        return ", ".join(number(item, digits) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number(item, digits)}" for key, item in value.items())
    return str(value)


def percent(share: float | bool | None) -> str:
    """A share in 0..1 for reading.

    >>> percent(0.9876), percent(None), percent(True)
    ('98.8 %', '–', '100.0 %')
    """
    return "–" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """A time span for reading.

    >>> duration(41.23), duration(192), duration(3725), duration(None)
    ('41.2 s', '3 min 12 s', '1 h 02 min', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _costs(results: Results) -> dict[str, tuple[Any, bool]]:
    """Every count and time with a readable label; True marks a time span in seconds."""
    costs: dict[str, tuple[Any, bool]] = {}
    for group in ("counts", "timing"):
        for key, value in results.get(group, {}).items():
            is_span = key.endswith("_s") and "_per_" not in key
            label = re.sub("_s$", "", key) + " time" if is_span else key.replace("_per_s", " per second")
            costs[label.replace("_", " ")] = (value, is_span)
    if "capacity" in results:
        costs["capacity"] = (results["capacity"], False)
    return costs


def _readable(value: Any, is_span: bool) -> str:
    if isinstance(value, list):
        return ", ".join(_readable(item, is_span) for item in value)
    return duration(value) if is_span else number(value)


def _per_task(results: Results) -> dict[str, list[str]]:
    """Label -> a readable value for each task, for every cost that was counted task by task."""
    return {
        label: [_readable(item, is_span) for item in value]
        for label, (value, is_span) in _costs(results).items()
        if isinstance(value, list) and len(value) == len(results["tasks"])
    }


def _in_all(results: Results) -> dict[str, str]:
    """Label -> a readable value, for every cost of the run as a whole."""
    per_task = _per_task(results)
    costs = _costs(results).items()
    return {label: _readable(value, is_span) for label, (value, is_span) in costs if label not in per_task}


def _shares(results: Results) -> dict[str, str]:
    """What a share tells -> the share, for routing, out-of-distribution queries and task identities."""
    shares: dict[str, str] = {}
    gives_verdicts = "indicators" in results.get("config", {}).get("method", {})
    routing = ROUTING | (VERDICTS if gives_verdicts else {})
    for group, meanings in (("routing", routing), ("ood", OOD)):
        found = results.get(group) or {}
        shares |= {meaning: percent(found[key]) for key, meaning in meanings.items() if key in found}
    ood = results.get("ood") or {}
    shares |= {f"{task}: answered by the base model": percent(share) for task, share in ood.get("per_task", {}).items()}
    shares |= {
        f"after {stage}: answered by the base model": percent(share) for stage, share in ood.get("after", {}).items()
    }
    if ood.get("auroc") is not None:
        shares["AUROC of the first step's score, own against out-of-distribution queries"] = number(ood["auroc"], 3)
    if "task_id_accuracy" in results:
        shares["queries whose task was identified"] = percent(results["task_id_accuracy"])
    return shares


def _metrics(results: Results, protocol: str) -> list[tuple[str, str, str]]:
    """Name, readable value and formula of each metric of a protocol; results of an older version hold none but SSR's."""
    if protocol == "ssr":
        found, formulas = results["metrics"], FORMULAS
    else:
        summary = (results.get("protocols") or summaries(results))[protocol]
        found, formulas = summary["metrics"], summary["formulas"]
    return [(name, number(value), formulas.get(name, "")) for name, value in found.items()]


LAST_ROW = ("task", "score", "n", "standard error", "strict", "normalised")
RULES = {
    "protocol": "as long as the benchmark's authors let them become (benchmark.max_new_tokens=protocol)",
    "training": "a quarter longer than nearly all training answers (benchmark.max_new_tokens=training)",
    "number": "as many tokens as were asked for (max_new_tokens)",
}


def _last_row(results: Results) -> list[list[str]]:
    """Head and rows of a table with a row for each task; empty for results of an older version."""
    row, lengths = results.get("last_row") or {}, results.get("lengths") or {}
    rows = [
        [
            f"{task} ({results['score'][task]})",
            *(number(facts.get(name)) for name in ("score", "n", "stderr", "strict", "normalised")),
            *(number(lengths[task][name]) for name in ("max_new_tokens", "cut") if lengths),
        ]
        for task, facts in row.items()
    ]
    return [[*LAST_ROW, *(("longest", "cut") if lengths else ())], *rows] if rows else []


def _lengths(results: Results) -> str:
    """What the columns ``longest`` and ``cut`` say; empty for results of an older version."""
    lengths = results.get("lengths") or {}
    if not lengths:
        return ""
    by_rule: dict[str, list[str]] = {}
    for task, facts in lengths.items():
        by_rule.setdefault(facts["rule"], []).append(task)
    rules = [f"{RULES[rule]}{'' if len(by_rule) == 1 else ': ' + ', '.join(tasks)}" for rule, tasks in by_rule.items()]
    cut = sum(facts["cut"] for facts in lengths.values())
    protocol = results.get("config", {}).get("benchmark", {}).get("protocol_max_new_tokens")
    other = f" Its authors generate up to {protocol}." if protocol and "protocol" not in by_rule else ""
    return f"Answers end after the tokens under longest, {'; '.join(rules)}; {cut} were cut there.{other}"


def _variants(results: Results) -> list[list[str]]:
    """Head and rows of a table with a column for each variant, beside one for the run's own last row; empty without any."""
    found, routing = results.get("variants") or {}, results.get("routing") or {}
    own = {
        "AR": results["metrics"]["AR"],
        "routing_accuracy": routing.get("accuracy"),
        "base_share": routing.get("base_share"),
        "scores": dict(zip(results["tasks"], results["matrix"][-1], strict=True)),
    }
    every = [own, *(found[name] for name in found.get("asked", ()))]
    rows = [
        ["asked", "as learned", *(name.replace("_", " ") for name in found.get("asked", ()))],
        ["AR", *(number(one["AR"]) for one in every)],
        ["routing accuracy", *(percent(one["routing_accuracy"]) for one in every)],
        ["base share", *(percent(one["base_share"]) for one in every)],
        *([task, *(number(one["scores"][task]) for one in every)] for task in results["tasks"]),
    ]
    return rows if found else []


# ---------------------------------------------------------------------------------------------- terminal


def print_report(results: Results, console: Console, protocol: str = "ssr") -> None:
    """Print the matrix, the metrics and, where there are any, the routing shares and notices about the data.

    In a terminal the tables fit its width, if need be with the tasks' numbers at the head of the matrix; elsewhere
    they are as wide as they need to be, so that no file holds a shortened name.

    Args:
        results: content of ``results.json``.
        console: where to print.
        protocol: whose metrics are printed, of `PROTOCOLS`.
    """
    console.print(Text(title(results), style="bold"), soft_wrap=True)
    matrix = _matrix_table(results, results["tasks"])
    if console.is_terminal and max(map(len, _plain(matrix).splitlines())) > console.width:
        matrix = _matrix_table(results, [str(t + 1) for t in range(len(results["tasks"]))])
    print_table(matrix, console)
    console.print(Text(" * right after learning the task   · not measured"))
    head = "metric" if protocol == "ssr" else f"metric of {protocol}"
    print_table(_table([head, "value", "formula"], _metrics(results, protocol)), console)
    if rows := _last_row(results):
        table = Table("at the end", *(Column(name, justify="right") for name in rows[0][1:]), box=box.SIMPLE_HEAD)
        for row in rows[1:]:
            table.add_row(*map(Text, row))
        print_table(table, console)
        if told := _lengths(results):
            console.print(Text(f" {told}"), soft_wrap=True)
    if shares := _shares(results):
        print_table(_table(["routing", "value"], shares.items()), console)
    if rows := _variants(results):
        table = Table(rows[0][0], *(Column(name, justify="right") for name in rows[0][1:]), box=box.SIMPLE_HEAD)
        for row in rows[1:]:
            table.add_row(*map(Text, row))
        print_table(table, console)
    for notice in results.get("notices", []):
        console.print(Text(f"note: {notice}"), soft_wrap=True)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose second column holds the values."""
    first, value, *others = names
    table = Table(first, Column(value, justify="right", style="bold", no_wrap=True), *others, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _matrix_table(results: Results, heads: Sequence[str]) -> Table:
    """A row per stage, a column per task; what was measured right after learning a task has a star."""
    # Padded here: rich drops the blank that stands below a star when it justifies to the right.
    longest = max((len(f"{score:.1f}") for row in results["matrix"] for score in row if score is not None), default=1)
    widths = [max(len(head), longest) for head in heads]
    columns = [
        Column(Text(f"{head:>{width}} "), no_wrap=True, min_width=width + 1)
        for head, width in zip(heads, widths, strict=True)
    ]
    table = Table(Column("score", overflow="fold"), *columns, box=box.SIMPLE_HEAD, padding=0)
    for t, (task, scores) in enumerate(zip(results["tasks"], results["matrix"], strict=True)):
        cells = [
            _cell(score, width, is_diagonal=t == j) for j, (score, width) in enumerate(zip(scores, widths, strict=True))
        ]
        table.add_row(Text(f"{t + 1:{len(str(len(heads)))}} after {task}"), *cells)
    return table


def _cell(score: float | None, width: int, is_diagonal: bool) -> Text:
    if score is None:
        return Text(f"{'·':>{width}} ", style="dim")
    return Text(f"{score:{width}.1f}*", style="bold") if is_diagonal else Text(f"{score:{width}.1f} ")


def print_table(table: Table, console: Console) -> None:
    """Print a table that fits a terminal, or one that is as wide as it needs to be into anything else."""
    if console.is_terminal:
        console.print(table)
    else:
        console.print(Text(_plain(table)), soft_wrap=True)


def _plain(table: Table) -> str:
    """The table as plain text, as wide as it needs to be."""
    console = Console(file=io.StringIO(), width=100_000, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


# ---------------------------------------------------------------------------------------------- study

STUDY = {
    "order": "in which the experts were asked",
    "an expert accepts by": "its verdict, or log-odds of at least a threshold",
    "AR": "a range if answers are unknown",
    "BWT": "likewise",
    "routing accuracy": ROUTING["accuracy"],
    "base share": ROUTING["base_share"],
    "asked": "experts asked per query",
    "unknown": "answers that the matrix needs and that were never generated",
}


def print_study(study: Study, console: Console) -> None:
    """Print a row for each order and rule, what random orders were, and where routing is best."""
    words = [Column(name, no_wrap=True) for name in list(STUDY)[:2]]
    table = Table(*words, *(Column(name, justify="right") for name in list(STUDY)[2:]), box=box.SIMPLE_HEAD)
    for row in _study_rows(study):
        table.add_row(*map(Text, row))
    console.print(Text(_plain(table)), soft_wrap=True)
    for name, meaning in list(STUDY.items())[4:]:
        console.print(Text(f" {name}: {meaning}"), soft_wrap=True)
    for name, experts in _orders(study).items():
        console.print(Text(f" {name}: asks {experts}"), soft_wrap=True)
    console.print(Text(_best(study)), soft_wrap=True)


def _study_rows(study: Study) -> list[list[str]]:
    """A readable cell for each column of `STUDY`; the name of an order stands in its first row alone."""
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


def _orders(study: Study) -> dict[str, str]:
    """Name of each order -> the experts as they are asked."""
    return {row["order"]: ", ".join(row["experts"]) for row in study["rows"]}


def _range(ends: Sequence[float] | None) -> str:
    """Lowest and highest value, or one if they read the same."""
    return "–" if ends is None else " to ".join(dict.fromkeys(map(number, ends)))


def _threshold(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _best(study: Study) -> str:
    """Where routing is best, and what that is worth."""
    picture = study["picture"]
    best = picture["best"]
    above = "" if best["above"] is None else f"above {_threshold(best['above'])} and "
    return (
        f"Asked in the order {picture['order']!r}, routing is best at thresholds {above}up to {_threshold(best['to'])}:"
        f" {percent(best['accuracy'])} of {number(study['queries'])} queries. The best threshold is chosen on the test"
        f" queries themselves, so it says what could be reached, not what to expect."
    )


# ---------------------------------------------------------------------------------------------- page


def render_html(results: Results, study: Study | None = None) -> str:
    """One self-contained page: no network, no script, the same bytes for the same arguments.

    Args:
        results: content of ``results.json``.
        study: content of ``study.json``, if there is one.
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
        routing_figure = Markup(confusion_svg(rows, columns, routing["confusion"]))
    return page_template("report.html.j2").render(
        results=results,
        title=title(results),
        metrics=_joined(_metrics(results, protocol)),
        protocol=protocol,
        others={name: _joined(_metrics(results, name)) for name in results.get("protocols", ()) if name != protocol},
        last_row=_last_row(results),
        lengths=_lengths(results),
        matrix_figure=Markup(matrix_svg(tasks, matrix)),
        routing_figure=routing_figure,
        curves=curves if has_curves else [],
        shares=_shares(results),
        variants=_variants(results),
        study_figure=Markup(study_svg(study)) if study else "",
        study_best=_best(study) if study else "",
        study_columns=STUDY,
        study_rows=_study_rows(study) if study else [],
        study_orders=_orders(study) if study else {},
        per_task=_per_task(results),
        in_all=_in_all(results),
        benchmark=results.get("benchmark"),
        notices=results.get("notices", []),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
    )


def _joined(metrics: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The same with a word joiner in each a[t][j], which keeps it on one line."""
    return [(name, value, formula.replace("][", "]\u2060[")) for name, value, formula in metrics]


def page_template(name: str) -> "Template":
    """The template of a page, from the folder ``templates``; a name that it is not given is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template(name)


def _change(matrix: Sequence[Sequence[float | None]], j: int) -> str:
    """A task's score right after learning it, and at the end."""
    ends = [matrix[j][j], matrix[-1][j]]
    return number(ends[1], 1) if j == len(matrix) - 1 else " → ".join(number(end, 1) for end in ends)
