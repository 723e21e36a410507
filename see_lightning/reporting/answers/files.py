"""The files of the page of answers, and the prompts in those that an earlier command wrote.

``index.html`` loads its data by script tags, so that it works from a disk. ``index.js`` has tasks, experts and stages;
``after-1.js`` the columns of all queries after the first stage that filters and orders need; ``page-1.js`` the texts of the
first few hundred queries.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from see_lightning.files.reading import file_bytes
from see_lightning.reporting.answers.queries import Query, TestQueries
from see_lightning.reporting.pages import page_template
from see_lightning.reporting.report.sections import title

INDEX = "index.html"
ROWS, CHARACTERS = 250, 250_000  # most queries in a file of texts, and its usual size
COLUMNS = ("id", "prompt", "references", "texts", "cut", "after", "log_odds")
BROKEN = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


def answers_files(queries: TestQueries) -> Iterator[tuple[str, str]]:
    """The name and content of every file, the same bytes for the same queries.

    Args:
        queries: of a run.
    """
    starts: list[int] = []
    for start, columns in _pages(queries):
        starts.append(start)
        body = ",".join(f"{_json(name)}:[{','.join(cells)}]" for name, cells in columns.items())
        name = f"page-{len(starts)}"
        yield f"{name}.js", f"answers({_json(name)},{{{body}}})\n"
    for place in range(len(queries.stages)):
        experts, scores = queries.columns_after(place)
        name = f"after-{place + 1}"
        cells: dict[str, Any] = {"expert": experts if queries.experts else [], "score": list(map(_short, scores))}
        yield f"{name}.js", f"answers({_json(name)},{_json(cells)})\n"
    yield "index.js", f'answers("index",{_json(_index(queries, starts))})\n'
    results = queries.results
    yield (
        INDEX,
        page_template("answers.html.j2").render(
            title=f"Test queries of {title(results)}",
            results=results,
            queries=len(queries.keys),
            without_prompt=queries.without_prompt,
            experts=bool(queries.experts),
            routed=queries.right() is not None,
        ),
    )


def kept_prompts(folder: Path) -> dict[str, str]:
    """The prompts in the files that an earlier command wrote, by the first 16 hex digits of their sha256.

    A file that is missing or damaged gives none: whether a prompt is that of a query is told by its sha256.

    Args:
        folder: of the files; may be missing.
    """
    found: dict[str, str] = {}
    with suppress(*BROKEN):
        index = _read(folder / "index.js")
        ends = list(accumulate(size for _, size, _ in index["tasks"]))
        task = 0
        for place, start in enumerate(index["pages"]):
            with suppress(*BROKEN):
                for row, prompt in enumerate(_read(folder / f"page-{place + 1}.js")["prompt"], start):
                    while row >= ends[task]:
                        task += 1
                    if isinstance(prompt, str):
                        whole = index["beginnings"][task] + prompt
                        found[hashlib.sha256(whole.encode()).hexdigest()[:16]] = whole
    return found


def _pages(queries: TestQueries) -> Iterator[tuple[int, dict[str, list[str]]]]:
    """The number of the first query in each file of texts, and the file's columns, with cells in JSON."""
    columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
    start, size = 0, 0
    for row, query in enumerate(queries):
        cells = _cells(query)
        length = sum(map(len, cells.values()))
        if row > start and (row - start == ROWS or size + length > CHARACTERS):
            yield start, columns
            columns, start, size = {name: [] for name in COLUMNS}, row, 0
        size += length
        for name, cell in cells.items():
            columns[name].append(cell)
    if columns["id"]:
        yield start, columns


def _cells(query: Query) -> dict[str, str]:
    """The cells of a query in JSON; a list with the digest stands for a prompt that is not known."""
    values = {name: getattr(query, name) for name in COLUMNS}
    values["prompt"] = [query.prompt_sha] if query.prompt is None else query.prompt
    return {name: _json(value) for name, value in values.items()}


def _index(queries: TestQueries, starts: list[int]) -> dict[str, Any]:
    """The content of ``index.js``; experts are numbers."""
    results, right = queries.results, queries.right()
    place = {name: number for number, name in enumerate(queries.experts)}
    thresholds = (results.get("routing") or {}).get("thresholds", {})
    return {
        "tasks": [[task, size, results.get("score", {}).get(task, "")] for task, size in queries.sizes.items()],
        "beginnings": [queries.beginnings[task] for task in queries.sizes],
        "experts": queries.experts,
        "right": None if right is None else [[place[name] for name in right[task]] for task in queries.sizes],
        "thresholds": {place[name]: value for name, value in thresholds.items() if name in place},
        "stages": [[stage.name, queries.experts_after(stage)] for stage in queries.stages],
        "pages": starts,
    }


def _read(path: Path) -> Mapping[str, Any]:
    """The content of a file of data."""
    text = file_bytes(path).decode()
    content: Mapping[str, Any] = json.loads(text[text.index(",") + 1 : text.rindex(")")])
    return content


def _short(score: float | None) -> float | None:
    """A score as few digits: 100 instead of 100.0."""
    return int(score) if isinstance(score, float) and score.is_integer() else score


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
