"""The rows and sentences of a comparison of routers, for the terminal, the page and the table of a document."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from see_lightning.reporting.terminal import print_table
from see_lightning.reporting.words import number, percent

Comparison = Mapping[str, Any]  # content of ``route.json``
Row = Mapping[str, Any]  # of one router
FOREIGN = {"ood": "foreign to base", "ood_input_only": "foreign, no definition"}
BOUND = "bound: inputs alone"
MEANINGS = {
    "as is": "queries routed to their own task's expert, as they stand",
    "input only": "the same queries without the definition that their task's prompts begin with",
    "paraphrased": "the same queries with a paraphrase of the definition",
    "foreign to base": "queries of tasks that no expert was trained on, answered by the base model",
    "AR": "mean score over the tasks, own queries as they stand",
    "kept": "bytes that the router keeps",
    "reads": "how often a query's prompt is read until its answer begins",
    "asked": "experts that are asked for a query: verdicts, or 1 where the router chooses an expert without one",
}


def wordings(found: Comparison) -> dict[str, str]:
    """The head of each set of the run's own queries, by its name."""
    return {name: name.replace("_", " ") for name in found["queries"] if name not in FOREIGN}


def foreign_sets(found: Comparison) -> dict[str, str]:
    """The head of each set of foreign queries, by its name."""
    return {name: head for name, head in FOREIGN.items() if name in found["queries"]}


def routed(row: Row, name: str) -> float | None:
    """The share that the figures show of a set of queries: routed right, or of foreign queries to the base model."""
    figures = row["sets"].get(name) if row["cannot"] is None else None
    if figures is None:
        return None
    share: float = figures["base_share"] if name in FOREIGN else figures["right"]
    return share


def measured(found: Comparison) -> list[Row]:
    """The rows of routers that can route the run's experts."""
    return [row for row in found["routers"] if row["cannot"] is None]


def router_name(row: Row) -> str:
    """A router's name; the run's own has a star."""
    return f"{row['router']}{'*' if row['is_own'] else ''}"


def bound_row(found: Comparison) -> Row | None:
    """The share that a classifier of inputs alone reaches, in the form of a router's row; None if it is not known."""
    if found["bound"] is None:
        return None
    sets = {"input_only": {"right": found["bound"]}}
    return {"router": BOUND, "is_own": False, "is_bound": True, "cannot": None, "told": False, "sets": sets}


def router_rows(found: Comparison) -> list[list[str]]:
    """Head and rows of a table with a row for each router that can route the run's experts, and one for the bound."""
    sets = wordings(found) | foreign_sets(found)
    rows = [["router", *sets.values(), "AR", "kept", "reads", "asked"]]
    for row in measured(found):
        shares = [percent(routed(row, name)) for name in sets]
        costs = [size(row["bytes"]), number(float(row["prefills"])), number(float(row["asked"]))]
        rows.append([router_name(row), *shares, number(row["AR"]), *costs])
    if found["bound"] is not None:
        shares = [percent(found["bound"]) if name == "input_only" else "" for name in sets]
        rows.append([BOUND, *shares, "", "", "", ""])
    return rows


def router_grid(found: Comparison) -> tuple[list[str], list[str], list[list[str]], list[list[float | None]]]:
    """Rows, columns, texts and shades of the picture: the share of each set of queries that goes where it should.

    Rows are the routers that no query has to tell its task, and the bound.
    """
    sets = wordings(found) | foreign_sets(found)
    rows = {router_name(row): [routed(row, name) for name in sets] for row in measured(found) if row["sets"]}
    if found["bound"] is not None:
        rows[BOUND] = [found["bound"] if name == "input_only" else None for name in sets]
    texts = [["" if share is None else f"{100 * share:.0f}" for share in shares] for shares in rows.values()]
    return list(rows), list(sets.values()), texts, list(rows.values())


def size(count: int) -> str:
    """A readable number of bytes.

    >>> size(0), size(2560), size(3 * 2**20)
    ('0', '2.5 KiB', '3.0 MiB')
    """
    if count < 2**20:
        return f"{count / 2**10:.1f} KiB" if count else "0"
    return f"{count / 2**20:,.1f} MiB"


def router_notes(found: Comparison) -> list[str]:
    """Sentences below the table: what the columns mean, what each router cannot do, and what was left out."""
    notes = []
    if any(row["is_own"] for row in found["routers"]):
        notes.append("* the router of the run itself")
    notes += [f"{row['router']}: {limit}" for row in found["routers"] if (limit := limits(row))]
    notes += [f"left out: {reason}" for reason in found["left_out"].values()]
    if not foreign_sets(found):
        notes.append("no foreign queries: --ood NAME chooses some, such as --ood wide")
    if found["bound"] is not None:
        notes.append("bound: a classifier that is trained on the inputs of the training rows alone, for input only")
    many = ", ".join(f"{number(count)} {name.replace('_', ' ')}" for name, count in found["queries"].items())
    first = f", the first {found['size']} of each task" if found["size"] else ""
    notes.append(f"queries: {many}{first}; the experts themselves take {size(found['expert_bytes'])}")
    return notes


def limits(row: Row) -> str:
    """What a router cannot do on these experts; empty if it can do all."""
    if row["cannot"] is not None:
        return f"cannot route these experts: {row['cannot']}"
    if row.get("is_bound"):
        return "a classifier that is trained on the inputs of the training rows, no router"
    if row["told"]:
        return "each query must come with its task, so only answers are measured"
    if not any(figures["base_share"] for figures in row["sets"].values()):
        return "sent no query to the base model"
    return ""


def print_routers(found: Comparison, console: Console) -> None:
    """Print a row for each router, the meaning of the columns, and notes."""
    head, *rows = router_rows(found)
    table = Table(
        Column(head[0], no_wrap=True), *(Column(name, justify="right") for name in head[1:]), box=box.SIMPLE_HEAD
    )
    for row in rows:
        table.add_row(*map(Text, row))
    print_table(table, console)
    for note in (*meanings(head), *router_notes(found)):
        console.print(Text(f" {note}"), soft_wrap=True)


def meanings(head: Sequence[str]) -> list[str]:
    """A sentence on each column that has one."""
    return [f"{name}: {meaning}" for name, meaning in MEANINGS.items() if name in head]
