"""A table of general ability, from the ``harness.json`` of kept runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from see_lightning.files.run_files import read_file
from see_lightning.reporting.comparison.groups import Group
from see_lightning.reporting.harness import first_metric, metric_name
from see_lightning.reporting.markdown_cells import markdown_table
from see_lightning.reporting.markdown_groups import Cell, cells_of, command_of, percent_of
from see_lightning.reporting.words import number

Row = Mapping[str, Any]  # one adapter of one run: ``metrics`` by task, and ``base_share`` of the queries


def harness(groups: Sequence[Group]) -> str:
    """A table of the first metric of each task of the harness, in percent where it is a share.

    Groups whose runs have a ``harness.json`` get a row for the base model, one for the mean of the experts, and one for
    the ensemble; a method with one adapter gets one for its adapted model.
    """
    rows: list[tuple[Group, str, list[Row]]] = []
    for group in groups:
        by_adapter: dict[str, list[Row]] = {}
        for run in group.runs:
            path = run.path.with_name("harness.json")
            for name, row in _adapters(read_file(path), run.tasks) if path.exists() else ():
                by_adapter.setdefault(name, []).append(row)
        rows += [(group, name, found) for name, found in by_adapter.items()]
    tasks = {(task, first_metric(of)) for _, _, found in rows for row in found for task, of in row["metrics"].items()}
    columns: dict[str, Cell] = {_head(task, name): _score(task, name) for task, name in sorted(tasks)}
    columns["at the base, %"] = lambda row: percent_of(row["base_share"])
    lines = [[command_of(group), name, *cells_of(found, columns), number(len(found), 0)] for group, name, found in rows]
    return markdown_table(["run.py", "adapter", *columns, "runs"], lines)


def _adapters(content: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Rows of a ``harness.json``: a name for the table, the metrics, and the share that the base model answered.

    Experts bear the names of ``tasks``; who else answers is the one adapter of a method.
    """
    metrics = content["metrics"]
    if "base" in metrics:
        yield "base model", {"metrics": metrics["base"], "base_share": None}
    if "experts" in metrics:
        yield "mean of the experts", {"metrics": metrics["experts"]["mean"], "base_share": None}
    if "ensemble" in metrics:
        answered = {adapter for shares in content.get("answered_by", {}).values() for adapter in shares}
        name = "ensemble" if answered and answered <= {*tasks, "base"} else "adapted model"
        yield name, {"metrics": metrics["ensemble"], "base_share": content.get("base_share")}


def _head(task: str, name: str) -> str:
    """A metric whose name says that it is a share stands in percent."""
    return f"{task} {metric_name(name)}{', %' if _is_share(name) else ''}"


def _is_share(name: str) -> bool:
    return name.startswith(("acc", "exact_match"))


def _score(task: str, name: str) -> Cell:
    def cell(row: Row) -> float | None:
        value = row["metrics"].get(task, {}).get(name)
        return percent_of(value) if _is_share(name) else value

    return cell
