"""Tables of finished runs for a document, made from their ``results.json`` alone."""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from see_lightning.config import NUISANCE, Refusal, nearest
from see_lightning.evaluation.comparison import Group, Run, compare, find_runs, read_run, reading, spread
from see_lightning.evaluation.report import number

Results = Mapping[str, Any]
Cell = Callable[[Results], float | None]  # one run's value

MARK = re.compile(r"^<!-- (?P<kind>\w+): (?P<order>\w+) -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)


def fill(document: str, folder: Path) -> tuple[str, list[Path]]:
    """Write every table of a document anew: what stands between ``<!-- scores: superni_5 -->`` and ``<!-- end -->``.

    Args:
        document: Markdown; the kinds of tables are those of ``KINDS``, each followed by the order whose runs it shows.
        folder: that holds the runs.

    Returns:
        The document, and the runs that stand in none of its tables of scores.

    Raises:
        Refusal: the document names a kind or an order that there is not, or a ``results.json`` is damaged.
    """
    found, _ = find_runs([folder])
    comparison = compare(map(read_run, found))
    orders: dict[str, list[Group]] = {}
    for group in comparison.groups:
        orders.setdefault(group.first.order, []).append(group)
    shown: set[str] = set()

    def table(mark: re.Match[str]) -> str:
        kind, order = mark["kind"], mark["order"]
        if kind not in KINDS:
            raise Refusal(f"there is no table {kind!r}; there are {', '.join(KINDS)}.{nearest(kind, KINDS)}")
        if order not in orders:
            raise Refusal(
                f"{folder} holds no run of order {order!r}; there are {', '.join(orders)}.{nearest(order, orders)}"
            )
        if kind == "scores":
            shown.add(order)
        return f"<!-- {kind}: {order} -->\n{KINDS[kind](orders[order])}<!-- end -->"

    filled = MARK.sub(table, document)
    return filled, [run.path for order, some in orders.items() if order not in shown for g in some for run in g.runs]


def scores(groups: Sequence[Group]) -> str:
    """Metrics and the scores after the last task, a row for each setting."""
    columns: dict[str, Cell] = {name: _metric(name) for name in ("AR", "FWT", "BWT", "forgetting")}
    for place, task in enumerate(groups[0].first.tasks):
        columns[task] = _last_score(place)
    columns["routed right, %"] = lambda results: _percent(results.get("routing", {}).get("accuracy"))
    columns["foreign to the base, %"] = lambda results: _percent(results.get("ood", {}).get("base_share"))
    return _table(groups, columns)


def foreign(groups: Sequence[Group]) -> str:
    """Foreign queries, a row for each setting that was asked any."""
    asked = [group for group in groups if any("base_share" in r.get("ood", {}) for r in map(_results, group.runs))]
    tasks = dict.fromkeys(task for group in asked for run in group.runs for task in _results(run)["ood"]["per_task"])
    columns: dict[str, Cell] = {
        "reach the base, %": lambda results: _percent(results["ood"]["base_share"]),
        "AUROC": lambda results: results["ood"]["auroc"],
        "FPR at 95 %": lambda results: _percent(results["ood"]["fpr95"]),
        **{task: _reached(task) for task in tasks},
    }
    return _table(asked, columns)


def variants(groups: Sequence[Group]) -> str:
    """Own queries in other words, a row for each setting that was asked any and each variant."""
    rows = []
    for group in groups:
        asked = dict.fromkeys(name for run in group.runs for name in _results(run).get("variants", {}).get("asked", ()))
        for name in asked:

            def of(key: str, name: str = name) -> Cell:
                return lambda results: results.get("variants", {}).get(name, {}).get(key)

            shares = {head: _as_percent(of(key)) for head, key in SHARES.items()}
            rows.append([_command(group), name.replace("_", " "), *_cells(group, {"AR": of("AR"), **shares})])
    return _markdown(["run.py", "variant", "AR", *SHARES], rows)


DIGITS = {"AR": 2, "FWT": 2, "BWT": 2, "forgetting": 2, "AUROC": 3}
LEFT_OUT = {*NUISANCE} - {"ratio"}
SHARES = {"routed right, %": "routing_accuracy", "to the base, %": "base_share"}
KINDS: dict[str, Callable[[Sequence[Group]], str]] = {"scores": scores, "foreign": foreign, "variants": variants}


def _table(groups: Sequence[Group], columns: Mapping[str, Cell]) -> str:
    found = [_results(run) for group in groups for run in group.runs]
    measured = {head: cell for head, cell in columns.items() if any(cell(results) is not None for results in found)}
    rows = [
        [_command(group), *_cells(group, measured), ", ".join(str(run.seed) for run in group.runs), _commits(group)]
        for group in groups
    ]
    return _markdown(["run.py", *measured, "seeds", "commit"], rows)


def _cells(group: Group, columns: Mapping[str, Cell]) -> list[str]:
    found = [_results(run) for run in group.runs]
    return [
        reading(spread(map(cell, found)), len(found), partial(number, digits=DIGITS.get(head, 1)))
        for head, cell in columns.items()
    ]


def _results(run: Run) -> Results:
    results: Results = json.loads(run.path.read_text(encoding="utf-8"))
    return results


def _command(group: Group) -> str:
    """What was typed, without what changes no number or has a column of its own."""
    words = [word for word in shlex.split(group.first.command)[2:] if re.split(r"[.=]", word)[0] not in LEFT_OUT]
    return f"`{' '.join(words)}`" if words else "(defaults)"


def _commits(group: Group) -> str:
    return ", ".join(dict.fromkeys(f"`{run.made['commit']}`" for run in group.runs))


def _metric(name: str) -> Cell:
    return lambda results: results["metrics"][name]


def _last_score(place: int) -> Cell:
    return lambda results: results["matrix"][-1][place]


def _reached(task: str) -> Cell:
    return lambda results: _percent(results["ood"]["per_task"].get(task))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _as_percent(cell: Cell) -> Cell:
    return lambda results: _percent(cell(results))


def _markdown(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown.

    >>> print(_markdown(["a", "b"], [["1", "2"]]), end="")
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
