"""Tables of finished runs for a document, made from their ``results.json`` alone."""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from see_lightning.errors import Refusal, nearest
from see_lightning.files.run_files import read_file
from see_lightning.reporting import rivals as costs
from see_lightning.reporting.comparison.groups import Group, compare
from see_lightning.reporting.markdown_cells import escaped, markdown_table
from see_lightning.reporting.markdown_groups import (
    METRICS,
    RELATIVE,
    Cell,
    Results,
    cells_of,
    command_of,
    group_table,
    metric,
    percent_of,
    results_of,
    routed_right,
)
from see_lightning.reporting.markdown_harness import harness
from see_lightning.reporting.report.routers import bound_row, foreign_sets, limits, routed, wordings
from see_lightning.reporting.runs import Run, find_runs, read_run

MARK = re.compile(
    r"^<!-- (?P<head>(?P<kind>\S+): (?P<order>\S+)(?P<sets>(?: \| [^|\n]+)*)) -->\n(?P<body>.*?)^<!-- end -->$",
    re.MULTILINE | re.DOTALL,
)
SHARES = {"routed right, %": "routing_accuracy", "to the base, %": "base_share"}


def fill(document: str, folder: Path) -> tuple[str, list[Path]]:
    """Replace every table of a document, each between marks such as ``<!-- scores: superni_5 -->`` and ``<!-- end -->``.

    Args:
        document: Markdown; a mark has one of ``KINDS`` and the order of the runs to show. A table of ood queries may have
            columns for sets of tasks as well, where ``*`` is all tasks of no other set:
            ``<!-- foreign: superni_5 | chosen on: CB, COPA | others: * -->``.
        folder: with the runs.

    Returns:
        The document, and the runs that are in none of its tables of scores or rivals.

    Raises:
        Refusal: the document names an unknown kind, order or task, a mark has no end, or a ``results.json`` is damaged.
    """
    found, _ = find_runs([folder])
    comparison = compare(map(read_run, found))
    orders: dict[str, list[Group]] = {}
    for group in comparison.groups:
        orders.setdefault(group.first.order, []).append(group)
    shown: set[str] = set()

    def table(mark: re.Match[str]) -> str:
        kind, order, head = mark["kind"], mark["order"], f"<!-- {mark['head']} -->"
        if "<!--" in mark["body"]:
            raise Refusal(f"{head} has no <!-- end --> before the next mark; put it below its table.")
        if kind not in KINDS:
            raise Refusal(f"there is no table {kind!r}; there are {', '.join(KINDS)}.{nearest(kind, KINDS)}")
        if order not in orders:
            known = f"there are {', '.join(orders)}" if orders else "it holds none at all"
            raise Refusal(f"{folder} holds no run of order {order!r}; {known}.{nearest(order, orders)}")
        if kind in ("scores", "rivals"):
            shown.add(order)
        if mark["sets"] and kind != "foreign":
            raise Refusal(f"{head}: only a table of ood queries has columns for sets of tasks.")
        text = foreign(orders[order], _sets(mark["sets"])) if kind == "foreign" else KINDS[kind](orders[order])
        return f"{head}\n{text}<!-- end -->"

    marks = len(re.findall(rf"<!-- *(?:{'|'.join(KINDS)})\b", document))
    filled, places = MARK.subn(table, document)
    if marks > places:
        raise Refusal(
            f"{marks} places for tables were begun and {places} are whole; a whole one has the line <!-- KIND: ORDER --> and,"
            f" below its table, the line <!-- end -->."
        )
    return filled, [run.path for order, some in orders.items() if order not in shown for g in some for run in g.runs]


def scores(groups: Sequence[Group]) -> str:
    """A table of metrics and of scores after the last task: a row for each setting."""
    columns: dict[str, Cell] = {name: metric(name) for name in METRICS}
    tasks = dict.fromkeys(task for group in groups for task in group.first.tasks)
    columns |= {task: _last_score(task) for task in tasks}
    columns["routed right, %"] = routed_right
    return group_table([(group, group.runs) for group in groups], columns)


def rivals(groups: Sequence[Group]) -> str:
    """A table of methods, the best first: scores, what each trains and keeps, and its costs."""
    columns: dict[str, Cell] = {
        **{name: metric(name) for name in METRICS},
        "of own experts, %": costs.of_own_experts(groups),
        "routed right, %": routed_right,
        "trained weights a task, k": _in(1000, costs.trained_weights),
        "kept a task, KiB": lambda results: _in(1024 * len(results["tasks"]), costs.kept_bytes)(results),
        "stored examples": costs.stored_rows,
        "training tokens, k": _in(1000, costs.training_tokens),
        "tokens in hooks, k": _in(1000, costs.hook_tokens),
        "time in hooks, s": costs.hook_s,
        RELATIVE: costs.relative_cost(groups),
    }
    ranked = sorted(groups, key=lambda group: -(mean.mean if (mean := group.metrics["AR"]) else -1.0))
    return group_table([(group, group.runs) for group in ranked], columns)


def _sets(text: str) -> dict[str, list[str]]:
    """The sets of tasks in a mark, by name.

    >>> _sets(" | chosen on: CB, COPA | others: *")
    {'chosen on': ['CB', 'COPA'], 'others': ['*']}
    """
    found = {}
    for part in text.split(" | ")[1:]:
        name, colon, tasks = part.partition(":")
        found[name.strip()] = [task.strip() for task in tasks.split(",") if task.strip()]
        if not colon or not name.strip() or not found[name.strip()]:
            raise Refusal(f"{part!r} names no set of tasks; write it as NAME: TASK, TASK, or NAME: * for all others.")
    return found


def foreign(groups: Sequence[Group], sets: Mapping[str, Sequence[str]] | None = None) -> str:
    """A table of ood queries: a row for each setting and each list of ood tasks that it was evaluated on.

    Args:
        groups: of one order.
        sets: tasks by a name; each gets a column with the mean of their shares, for runs evaluated on all of them, and one
            with the mean of the shares without definitions, for runs evaluated so.

    Raises:
        Refusal: a set names a task that no run was evaluated on.
    """
    sets = sets or {}
    rows: dict[tuple[str, ...], tuple[Group, list[Run]]] = {}
    for group in groups:
        for run in group.runs:
            per_task = results_of(run).get("ood", {}).get("per_task")
            if per_task:
                rows.setdefault((group.first.numbers, *per_task), (group, []))[1].append(run)
    tasks = dict.fromkeys(task for _, *evaluated in rows for task in evaluated)
    named = [task for some in sets.values() for task in some if task != "*"]
    for task in named:
        if task not in tasks:
            raise Refusal(
                f"no run was evaluated on an ood task {task!r}.{nearest(task, tasks)} There are {', '.join(tasks)}."
            )
    others = [task for task in tasks if task not in named]
    means: dict[str, Cell] = {}
    bare = {
        task
        for _, runs in rows.values()
        for run in runs
        for task in _alone(results_of(run)).get("without_definition", ())
    }
    for name, some in sets.items():
        of = others if "*" in some else some
        means[f"{name} ({len(of)}), %"] = _mean_reached(of, _ood)
        defined = [task for task in of if task not in bare]
        means[f"{name} without definition ({len(defined)}), %"] = _mean_reached(defined, _alone)
    columns: dict[str, Cell] = {
        "reach the base, %": lambda results: percent_of(results["ood"]["base_share"]),
        "without definition, %": lambda results: percent_of(_alone(results).get("base_share")),
        **means,
        "AUROC": lambda results: results["ood"]["auroc"],
        "FPR at 95 %": lambda results: percent_of(results["ood"]["fpr95"]),
        **{task: _reached(task, _ood) for task in tasks},
    }
    return group_table(list(rows.values()), columns)


def variants(groups: Sequence[Group]) -> str:
    """A table of variants of the test queries: a row for each setting and each variant that it was evaluated on."""
    rows = []
    for group in groups:
        asked = dict.fromkeys(
            name for run in group.runs for name in results_of(run).get("variants", {}).get("asked", ())
        )
        for name in asked:
            columns = {"AR": _of_variant(name, "AR")}
            columns |= {head: _as_percent(_of_variant(name, key)) for head, key in SHARES.items()}
            rows.append(
                [
                    command_of(group),
                    escaped(name.replace("_", " ")),
                    *cells_of(list(map(results_of, group.runs)), columns),
                ]
            )
    return markdown_table(["run.py", "variant", "AR", *SHARES], rows)


def capacity(groups: Sequence[Group]) -> str:
    """A table of the storage after all tasks: a row for each setting whose results have it."""
    stored = [(group, runs) for group in groups if (runs := [run for run in group.runs if run.storage])]
    parts = dict.fromkeys(part for _, runs in stored for run in runs for part in run.storage if part != "pool")
    columns: dict[str, Cell] = {
        "kept, MiB": lambda results: _mib(sum(sizes[-1] for sizes in _stored(results).values()))
    }
    columns |= {f"{part}, MiB": _kept(part) for part in parts}
    columns |= {
        "weights, % of the pool": lambda results: percent_of(_share(results, ["weights"])),
        "all, % of the pool": lambda results: percent_of(_share(results, [*_stored(results)])),
        "after one task": lambda results: percent_of(_share(results, [*_stored(results)], stage=0)),
        "AR": metric("AR"),
    }
    return group_table(stored, columns)


def routers(groups: Sequence[Group]) -> str:
    """A table of routers over the same experts: a row for each setting and router, for runs with a comparison of routers."""
    rows: list[tuple[Group, str, list[Results]]] = []
    sets: dict[str, str] = {}
    for group in groups:
        found = [read_file(path) for run in group.runs if (path := run.path.with_name("route.json")).exists()]
        sets |= {name: head for one in found for name, head in (wordings(one) | foreign_sets(one)).items()}
        by_router: dict[str, list[Results]] = {}
        for row in (row for one in found for row in (*one["routers"], bound_row(one)) if row):
            by_router.setdefault(row["router"], []).append(row)
        rows += [(group, name, some) for name, some in by_router.items()]
    columns: dict[str, Cell] = {f"{head}, %": _routed(name) for name, head in sets.items()}
    columns |= {
        "AR": lambda row: row.get("AR"),
        "kept, MiB": lambda row: _mib(row["bytes"]) if "bytes" in row else None,
    }
    columns |= {"reads": lambda row: row.get("prefills"), "asked": lambda row: row.get("asked")}
    lines = [
        [
            *(command_of(group), escaped(name), *cells_of(some, columns)),
            *(str(len(some)), escaped("; ".join(dict.fromkeys(filter(None, map(limits, some)))))),
        ]
        for group, name, some in rows
    ]
    return markdown_table(["run.py", "router", *columns, "runs", "cannot"], lines)


KINDS: dict[str, Callable[[Sequence[Group]], str]] = {
    "scores": scores,
    "rivals": rivals,
    "foreign": foreign,
    "variants": variants,
    "capacity": capacity,
    "routers": routers,
    "harness": harness,
}


def _in(unit: float, cell: Cell) -> Cell:
    return lambda results: None if (value := cell(results)) is None else value / unit


def _last_score(task: str) -> Cell:
    return lambda results: dict(zip(results["tasks"], results["matrix"][-1], strict=True)).get(task)


def _of_variant(name: str, key: str) -> Cell:
    return lambda results: results.get("variants", {}).get(name, {}).get(key)


def _routed(name: str) -> Cell:
    return lambda row: percent_of(routed(row, name))


def _stored(results: Results) -> Mapping[str, Sequence[int]]:
    return {part: sizes for part, sizes in results["storage"].items() if part != "pool"}


def _share(results: Results, parts: Sequence[str], stage: int = -1) -> float | None:
    """The size of some parts after a stage as a share of the pool; None if the method has none of these parts."""
    sizes = results["storage"]
    if not set(parts) <= set(sizes):
        return None
    share: float = sum(sizes[part][stage] for part in parts) / sizes["pool"][stage]
    return share


def _kept(part: str) -> Cell:
    return lambda results: _mib(_stored(results)[part][-1]) if part in _stored(results) else None


def _mib(size: int) -> float:
    return size / 2**20


def _ood(results: Results) -> Results:
    """The section on ood queries as they stand."""
    found: Results = results.get("ood") or {}
    return found


def _alone(results: Results) -> Results:
    """The section on ood queries without their definitions; empty if they were not evaluated so."""
    found: Results = _ood(results).get("input_only") or {}
    return found


def _reached(task: str, section: Callable[[Results], Results]) -> Cell:
    return lambda results: percent_of(section(results).get("per_task", {}).get(task))


def _mean_reached(tasks: Sequence[str], section: Callable[[Results], Results]) -> Cell:
    """The mean over tasks with equal weights; None if one was not evaluated."""
    cells = [_reached(task, section) for task in tasks]

    def mean(results: Results) -> float | None:
        shares = [share for cell in cells if (share := cell(results)) is not None]
        return statistics.fmean(shares) if shares and len(shares) == len(cells) else None

    return mean


def _as_percent(cell: Cell) -> Cell:
    return lambda results: percent_of(cell(results))
