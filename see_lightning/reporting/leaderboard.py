"""The leaderboard: for each order and size, all methods with their scores, what they keep, and what is within noise."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from see_lightning.errors import Refusal
from see_lightning.evaluation.bootstrap import Interval, Scores, paired_bootstrap
from see_lightning.reporting.comparison.groups import Group, compare
from see_lightning.reporting.markdown import routers
from see_lightning.reporting.markdown_cells import as_code, escaped, markdown_table
from see_lightning.reporting.markdown_groups import (
    Cell,
    cells_of,
    command_of,
    metric,
    percent_of,
    results_of,
    routed_right,
)
from see_lightning.reporting.pages import page_template
from see_lightning.reporting.rivals import kept_bytes, protocol, training_tokens
from see_lightning.reporting.runs import find_runs, read_run
from see_lightning.reporting.words import number

#: Two-sided 95 % of a normal distribution, in standard deviations.
NORMAL = 1.96
STATISTIC = """\
Each interval holds 95 % for one comparison; the first row is the best of all, so with many rows a few are told apart by
chance. Rows of `stl`, and of `moses` without `method.task_id`, are told each query's task, and `mtl` learns all tasks at
once: they are bounds. Training tokens do not include those that a method's hooks read. *Behind the first* is the AR of the
first row less that of this one. Where both have the scores of their queries, its interval is that of a paired bootstrap over
queries and seeds (10,000 draws of the same ones for both); else that of a normal distribution, with the standard errors of
both over queries (marked with ~). *Noise*: the interval includes 0, so the two are not told apart. One seed has no spread
over seeds: its interval is that of other queries alone, and two or three seeds show little of it."""


@dataclass(frozen=True)
class Row:
    """One setting of a method.

    Args:
        group: its runs, which differ in their seeds.
        results: their results.
        own: its AR with the interval; None where neither scores nor standard errors of queries were kept.
        behind: AR of the first row less this one's; None in the first.
        is_paired: whether ``behind`` is from a paired bootstrap.
    """

    group: Group
    results: Sequence[Mapping[str, Any]]
    own: Interval | None
    behind: Interval | None
    is_paired: bool


@dataclass(frozen=True)
class Board:
    """The rows of one order, model and size, the best first.

    Args:
        title: names them.
        rows: at least one.
    """

    title: str
    rows: Sequence[Row]


def boards(folder: Path) -> list[Board]:
    """The boards of all kept results in a folder, by their titles.

    Raises:
        Refusal: the folder does not exist, or a ``results.json`` is damaged.
    """
    found, _ = find_runs([folder])
    by_title: dict[str, dict[tuple[str, ...], list[Group]]] = {}
    for group in compare(map(read_run, found)).groups:
        told = tuple(protocol(results_of(group.first)).values())
        by_title.setdefault(_title(group), {}).setdefault(told, []).append(group)
    return [
        Board("; ".join([title, *_apart(told, by_protocol)]), _rows(groups))
        for title, by_protocol in sorted(by_title.items())
        for told, groups in sorted(by_protocol.items())
    ]


def _apart(told: Sequence[str], others: Iterable[Sequence[str]]) -> list[str]:
    """The parts of a protocol in which it differs from others."""
    return [one for one, *column in zip(told, *others, strict=True) if len(set(column)) > 1]


def _title(group: Group) -> str:
    config = results_of(group.first)["config"]
    sizes = [
        f"{config[name]} {what}"
        for name, what in (("train_size", "training"), ("test_size", "test"))
        if config.get(name)
    ]
    rows = f"{' and '.join(sizes)} rows a task" if sizes else "all rows"
    return f"{group.first.order}: {len(group.first.tasks)} tasks, {rows}, {group.first.model}"


def _rows(groups: Sequence[Group]) -> list[Row]:
    ranked = sorted(groups, key=lambda group: -(mean.mean if (mean := group.metrics["AR"]) else -1.0))
    first = [results_of(run) for run in ranked[0].runs]
    rows = []
    for group in ranked:
        found = [results_of(run) for run in group.runs]
        behind, is_paired = (None, False) if group is ranked[0] else _difference(first, found)
        rows.append(Row(group, found, _interval(found), behind, is_paired))
    return rows


def _difference(first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> tuple[Interval | None, bool]:
    """The AR of some runs less that of others, and whether their queries could be paired."""
    by_seed = {results["seed"]: results for results in other}
    pairs = [(results, by_seed[results["seed"]]) for results in first if results["seed"] in by_seed]
    scores = [(query_scores(one), query_scores(two)) for one, two in pairs]
    alike = [(one, two) for one, two in scores if one and two and _shape(one) == _shape(two)]
    is_same = all(_test_rows(one) == _test_rows(two) and protocol(one) == protocol(two) for one, two in pairs)
    if alike and len(alike) == len(first) == len(other) and is_same:
        ours, theirs = zip(*alike, strict=True)
        return paired_bootstrap(ours, theirs), True
    one, two = _normal(first), _normal(other)
    if not one or not two:
        return None, False
    (ours_mean, ours_error), (theirs_mean, theirs_error) = one, two
    reach = NORMAL * math.hypot(ours_error, theirs_error)
    mean = ours_mean - theirs_mean
    return Interval(mean, mean - reach, mean + reach), False


def difference_text(first: Path, second: Path) -> str:
    """How the AR of the runs in one folder compares with that of the runs in another, in one line.

    Args:
        first: holds the runs of one setting, one for each seed.
        second: holds those of another.

    Raises:
        Refusal: a folder holds no run, or runs of several settings.
    """
    sides = []
    for folder in (first, second):
        groups = compare(map(read_run, find_runs([folder])[0])).groups
        if len(groups) > 1:
            raise Refusal(f"{folder} holds runs of {len(groups)} settings; give the folder of one, ORDER/METHOD/KEY.")
        sides.append([results_of(run) for run in groups[0].runs])
    found, is_paired = _difference(*sides)
    if found is None:
        raise Refusal(f"{first} or {second} has neither scores nor standard errors of its queries.")
    kind = "paired bootstrap" if is_paired else "normal distribution, not paired"
    noise = "noise" if found.is_noise else "no noise"
    return f"AR of {first} less that of {second}: {number(found.mean, digits=2)} ({_between(found)}; {kind}): {noise}"


def _interval(found: Sequence[Mapping[str, Any]]) -> Interval | None:
    scores = [one for one in map(query_scores, found) if one]
    if len(scores) == len(found) and len({str(_shape(one)) for one in scores}) == 1:
        return paired_bootstrap(scores)
    if not (normal := _normal(found)):
        return None
    mean, error = normal
    return Interval(mean, mean - NORMAL * error, mean + NORMAL * error)


def query_scores(results: Mapping[str, Any]) -> Scores | None:
    """The scores of a run's queries after its last task, by task; None if its version did not keep them."""
    row = results.get("last_row") or {}
    found = {task: facts["scores"] for task, facts in row.items() if facts.get("scores")}
    return found if found and len(found) == len(row) else None


def _shape(scores: Scores) -> dict[str, int]:
    return {task: len(values) for task, values in scores.items()}


def _test_rows(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """What tells the rows of a run's tasks from others."""
    found: Mapping[str, Any] = results.get("contents", {}).get("digests", {})
    return {name: digest for name, digest in found.items() if name.startswith("task ")}


def _normal(found: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Mean AR of runs, and its standard error over queries; the queries of all seeds are the same."""
    rows = [results.get("last_row") or {} for results in found]
    errors = [[facts.get("stderr") for facts in row.values()] for row in rows]
    if not all(row and None not in some for row, some in zip(rows, errors, strict=True)):
        return None
    means = [results["metrics"]["AR"] for results in found]
    own = [math.sqrt(sum(error**2 for error in some)) / len(some) for some in errors]
    return sum(means) / len(means), sum(own) / len(own)


# ------------------------------------------------------------------------------------------------ as text and as a page

COLUMNS: dict[str, Cell] = {
    "BWT": metric("BWT"),
    "routed right, %": routed_right,
    "reworded, %": lambda results: _of_variants(results, "paraphrased"),
    "input only, %": lambda results: _of_variants(results, "input_only"),
    "foreign to base, %": lambda results: percent_of((results.get("ood") or {}).get("base_share")),
    "kept, KiB": lambda results: None if (size := kept_bytes(results)) is None else size / 1024,
    "training tokens, k": lambda results: None if (size := training_tokens(results)) is None else size / 1000,
}


def _of_variants(results: Mapping[str, Any], kind: str) -> float | None:
    """Own queries under other words that reached their expert, in percent: the mean over the variants of a kind."""
    found = results.get("variants") or {}
    shares = [found[name].get("routing_accuracy") for name in found.get("asked", ()) if name.startswith(kind)]
    known = [share for share in shares if share is not None]
    return percent_of(sum(known) / len(known)) if known else None


def heads() -> list[str]:
    """The heads of a board's columns."""
    return ["", "run.py", "AR", "95 %", "behind the first", *COLUMNS, "seeds", "finished", "commit"]


def cells(board: Board) -> list[list[str]]:
    """The cells of a board's rows, as plain text but for the command, which is Markdown."""
    lines = []
    for place, row in enumerate(board.rows, start=1):
        mean = row.group.metrics["AR"]
        dates = sorted({str(one["finished"]) for one in row.results if "finished" in one})
        lines.append(
            [
                str(place),
                command_of(row.group),
                number(mean.mean, digits=2) if mean else "–",
                _between(row.own),
                _behind(row),
                *cells_of(row.results, COLUMNS),
                ", ".join(str(run.seed) for run in row.group.runs),
                dates[-1] if dates else "–",
                ", ".join(dict.fromkeys(as_code(run.made["commit"]) for run in row.group.runs)),
            ]
        )
    return lines


def _between(interval: Interval | None) -> str:
    """An interval's ends.

    >>> _between(Interval(1.0, 0.5, 1.25))
    '0.5 to 1.2'
    """
    return "–" if interval is None else f"{number(interval.low, digits=1)} to {number(interval.high, digits=1)}"


def _behind(row: Row) -> str:
    if row.behind is None:
        return "–"
    about = "" if row.is_paired else "~"
    noise = ", noise" if row.behind.is_noise else ""
    return f"{about}{number(row.behind.mean, digits=2)} ({_between(row.behind)}{noise})"


def leaderboard_text(found: Sequence[Board], command: str) -> str:
    """The leaderboard in Markdown.

    Args:
        found: from ``boards``.
        command: that writes it, for the record.
    """
    parts = [f"# Leaderboard\n\n    {command}\n\n{_all_about(found)}\n\n{STATISTIC}\n"]
    for board in found:
        parts.append(f"\n## {escaped(board.title)}\n\n{markdown_table(heads(), cells(board))}")
        if table := _routers(board):
            parts.append(f"\nOther routers on the experts of these runs:\n\n{table}")
    return "".join(parts)


def _all_about(found: Sequence[Board]) -> str:
    runs = sum(len(row.group.runs) for board in found for row in board.rows)
    return (
        f"{runs} runs, {len(found)} tables, from `results/` alone. To add a row: run an experiment, `see-lightning publish"
        f" results RESULTS.md --add RUN_DIR`, and the command above; commit the new file in `results/`."
    )


def _routers(board: Board) -> str:
    """The table of routers over the same experts; empty if none was measured."""
    groups = [
        row.group for row in board.rows if any(run.path.with_name("route.json").exists() for run in row.group.runs)
    ]
    return routers(groups) if groups else ""


def leaderboard_page(found: Sequence[Board], command: str) -> str:
    """The leaderboard as a self-contained page; its script only sorts the tables."""
    return page_template("leaderboard.html.j2").render(
        title="Leaderboard",
        heads=heads(),
        boards=[
            (board.title, [[cell.strip("`").replace("\\|", "|") for cell in line] for line in cells(board)])
            for board in found
        ],
        statistic=STATISTIC.replace("*", ""),
        command=command,
    )
