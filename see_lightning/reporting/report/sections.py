"""The sections of a run's report as rows of text, from the content of ``results.json`` alone.

`matrix_csv` is for spreadsheets; the other functions serve the terminal and the page.
"""

import re
from collections.abc import Mapping
from typing import Any

from see_lightning.config.former_names import FIELDS, with_current_fields
from see_lightning.evaluation.protocols import PROTOCOLS, summaries
from see_lightning.reporting.spreadsheets import csv_text
from see_lightning.reporting.words import duration, number, percent

Results = Mapping[str, Any]
FORMULAS = PROTOCOLS["ssr"]
ROUTING = {
    "accuracy": "queries answered by their own task's expert",
    "base_share": "queries answered by the base model",
}
VERDICTS = {  # for methods with verdicts
    "no_indicator_share": "queries for which an expert gave neither indicator",
    "decided_again_share": "close verdicts that were computed again, each query alone",
}
OOD = {
    "base_share": "out-of-distribution queries answered by the base model",
    "base_identical": "of those that were checked, answers identical to those of the base model without experts",
    "fpr95": "out-of-distribution queries above the log-odds that 95 % of in-task queries reach (FPR at 95 % TPR)",
}
OOD_INPUT_ONLY = "out-of-distribution queries without their definitions answered by the base model"


def matrix_csv(results: Results) -> str:
    """The results matrix as CSV: a header ``after,<tasks>``, then one line per task; empty if not measured.

    >>> print(matrix_csv({"tasks": ["qa", "qg"], "matrix": [[80.0, None], [75.5, 60.0]]}), end="")
    after,qa,qg
    qa,80.0,
    qg,75.5,60.0
    """
    rows = zip(results["tasks"], results["matrix"], strict=True)
    return csv_text([["after", *results["tasks"]], *([task, *row] for task, row in rows)])


def title(results: Results) -> str:
    """One line that identifies the run."""
    ratio = "" if results.get("ratio") is None else f" · ratio {results['ratio']:g}"
    rule = f" by {results['rule']}" if "rule" in results else ""
    return f"{results['method']}{rule} on {results['order']} · {results['model']}{ratio} · seed {results['seed']}"


def costs_of(results: Results) -> dict[str, tuple[Any, bool]]:
    """Every count and time with a readable label; True marks a time span in seconds."""
    costs: dict[str, tuple[Any, bool]] = {}
    for group in ("counts", "timing"):
        for key, value in with_current_fields(results).get(group, {}).items():
            if key in FIELDS.values():  # the same value under its former name
                continue
            is_span = key.endswith("_s") and "_per_" not in key
            label = re.sub("_s$", "", key) + " time" if is_span else key.replace("_per_s", " per second")
            if value == {}:  # of an older version, or nothing was trained
                continue
            if isinstance(value, dict):  # by hook of the method; null if it did not run
                value = [sum(part or 0 for part in task) for task in zip(*value.values(), strict=True)]
            costs[label.replace("_", " ")] = (value, is_span)
    for name, values in results.get("method_report", {}).items():
        if all(value is None or isinstance(value, int | float) for value in values):
            costs[name.replace("_", " ")] = (values, False)
    if "capacity" in results:
        costs["capacity"] = (results["capacity"], False)
    return costs


def _readable(value: Any, is_span: bool) -> str:
    if isinstance(value, list):
        return ", ".join(_readable(item, is_span) for item in value)
    return duration(value) if is_span else number(value)


def per_task(results: Results) -> dict[str, list[str]]:
    """Label -> a readable value for each task, for every cost that is counted by task."""
    return {
        label: [_readable(item, is_span) for item in value]
        for label, (value, is_span) in costs_of(results).items()
        if isinstance(value, list) and len(value) == len(results["tasks"])
    }


def in_all(results: Results) -> dict[str, str]:
    """Label -> a readable value, for every cost of the run as a whole."""
    by_task = per_task(results)
    costs = costs_of(results).items()
    return {label: _readable(value, is_span) for label, (value, is_span) in costs if label not in by_task}


def shares_of(results: Results) -> dict[str, str]:
    """Description -> share, for routing, out-of-distribution queries and task identities."""
    shares: dict[str, str] = {}
    gives_verdicts = "indicators" in results.get("config", {}).get("method", {})
    routing = ROUTING | (VERDICTS if gives_verdicts else {})
    for group, meanings in (("routing", routing), ("ood", OOD)):
        found = results.get(group) or {}
        shares |= {meaning: percent(found[key]) for key, meaning in meanings.items() if key in found}
    ood = results.get("ood") or {}
    shares |= {f"{task}: answered by the base model": percent(share) for task, share in ood.get("per_task", {}).items()}
    alone = ood.get("input_only") or {}
    if "base_share" in alone:
        shares[OOD_INPUT_ONLY] = percent(alone["base_share"])
        for task, share in alone["per_task"].items():
            shares[f"{task} without its definition: answered by the base model"] = percent(share)
    shares |= {
        f"after {stage}: answered by the base model": percent(share) for stage, share in ood.get("after", {}).items()
    }
    if ood.get("auroc") is not None:
        shares["AUROC of the first step's score, own against out-of-distribution queries"] = number(ood["auroc"], 3)
    if "task_id_accuracy" in results:
        shares["queries whose task was identified"] = percent(results["task_id_accuracy"])
    return shares


def metrics_of(results: Results, protocol: str) -> list[tuple[str, str, str]]:
    """Name, readable value and formula of each metric of a protocol; results of an older version have only SSR's."""
    if protocol == "ssr":
        found, formulas = results["metrics"], FORMULAS
    else:
        summary = (results.get("protocols") or summaries(results))[protocol]
        found, formulas = summary["metrics"], summary["formulas"]
    return [(name, number(value), formulas.get(name, "")) for name, value in found.items()]


LAST_ROW = ("task", "score", "n", "standard error", "strict", "normalised")
RULES = {
    "protocol": "the limit of the benchmark's authors (benchmark.max_new_tokens=protocol)",
    "training": "a quarter longer than nearly all training answers (benchmark.max_new_tokens=training)",
    "number": "the limit that was set (max_new_tokens)",
}


def last_row(results: Results) -> list[list[str]]:
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


def lengths(results: Results) -> str:
    """A sentence on the columns ``longest`` and ``cut``; empty for results of an older version."""
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


def validation(results: Results) -> list[list[str]]:
    """Head and rows of a table with a row for each trained task and a column for each epoch; empty without validation."""
    found = results.get("validation") or {}
    names = results["tasks"] if len(found.get("loss", ())) == len(results["tasks"]) else ["all"]
    most = max((epochs or 0 for epochs in found.get("epochs", ())), default=0)
    rows = [
        [name, number(kept), *(number(loss, 4) for loss in losses), *[""] * (most - len(losses))]
        for name, losses, kept in zip(names, found.get("loss", ()), found.get("kept_epoch", ()), strict=bool(found))
        if losses
    ]
    return [["task", "kept epoch", *(f"epoch {epoch}" for epoch in range(1, most + 1))], *rows] if rows else []


def variants(results: Results) -> list[list[str]]:
    """Head and rows of a table with a column for the run's own last row and one for each variant; empty without variants."""
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
