"""General ability of a finished run: ``see-lightning harness RUN_DIR --tasks mmlu,gsm8k``."""

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from see_lightning.cli.command import Parser, at_least, command
from see_lightning.config.checks import one_of
from see_lightning.config.trust import add_trust
from see_lightning.engine.finished import finished_results
from see_lightning.engine.latest import find_run
from see_lightning.engine.ledger import dump
from see_lightning.errors import ConfigError, Refusal, nearest, with_cause
from see_lightning.files.run_files import read_file, seal
from see_lightning.files.writing import check_out, write_text

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from rich.console import Console

ADAPTERS = ("base", "experts", "ensemble")
DESCRIPTION = """\
Tasks of lm-evaluation-harness, put to a finished run: to its base model, to every expert alone (their mean is SEE-AE), and
to the ensemble, whose experts walk on each query. Prints a table and keeps all metrics, and who answered, as harness.json
in the run's directory. Each query is read by itself, so that the base model's score is the same wherever it answers."""
EPILOG = """\
Task names, groups and data are the harness's own; it fetches what is not in the cache of Hugging Face. An expert scores an
answer behind the word with which it accepts, whether it would have accepted or not. Everything is greedy."""

Metrics = dict[str, dict[str, float | None]]


def add_arguments(parser: Parser) -> None:
    """Take a run and tasks."""
    parser.add_run_dir()
    parser.add_argument(
        "--tasks", required=True, type=_words, metavar="TASK,...", help="tasks or groups of the harness"
    )
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="a folder with YAML files of further tasks")
    parser.add_argument(
        "--limit", type=at_least(1), metavar="N", help="only the first N queries of each task, for a trial"
    )
    parser.add_argument(
        "--num-fewshot", type=at_least(0), metavar="N", help="examples before each query (default: the task's own)"
    )
    parser.add_argument(
        "--voices", type=_words, metavar="VOICE,...", help="base, experts, ensemble (default: all that the run has)"
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: a GPU if there is one)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="instead of harness.json in the run's directory; no link"
    )
    add_trust(parser)


@command("harness", DESCRIPTION, add_arguments, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Print the scores of a run's voices."""
    print(run_harness(**vars(given)))


def run_harness(
    run_dir: Path,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    adapters: Sequence[str] | None = None,
    device: str | None = None,
    out: Path | None = None,
    command: str | None = None,
    trust: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Path:
    """Put tasks of lm-evaluation-harness to the voices of a run, print a table and keep the metrics.

    Args:
        run_dir: of a finished run.
        tasks: names of tasks or groups.
        include_path: a folder with YAML files of further tasks.
        limit: how many queries of each task are put; None puts all.
        num_fewshot: examples before each query; None leaves it to the task.
        adapters: of ``ADAPTERS``; None takes all that the run has.
        device: where to compute; by default on a GPU if there is one.
        out: where the metrics are kept; by default ``harness.json`` in the run's directory.
        command: what to note as the command.
        trust: as ``load_ensemble`` takes it.
        trust_remote_code: likewise.

    Returns:
        The path of the metrics.

    Raises:
        Refusal: the run is not finished or has no such voice, the harness is not installed, or a task cannot be read.
    """
    for adapter in adapters or ():
        one_of("--voices", adapter, ADAPTERS)
    run_dir = find_run(run_dir)
    finished_results(run_dir, "its voices are asked when all have learned")
    if out is None:
        out = run_dir / "harness.json"
        _check_same(out, {"tasks": list(tasks), "limit": limit, "num_fewshot": num_fewshot})
    check_out(out)
    manager = _task_manager(include_path)
    specs: list[Any] = []
    members: dict[str, Any] = {}
    for name in dict.fromkeys(tasks):
        loaded = _load(manager, name)
        members |= loaded["tasks"]
        specs += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    # Late, because these import torch, which takes longer than a refusal should.
    from rich.console import Console

    from see_lightning.cli.lm_eval import BASE, ENSEMBLE, ExpertLM, experts, greedy, load_scorer
    from see_lightning.engine.record import commit, versions

    for one in members.values():
        if one.OUTPUT_TYPE == "generate_until":
            greedy(one.config.generation_kwargs or {})

    scorer = load_scorer(run_dir, device, trust, trust_remote_code=trust_remote_code)
    names = experts(scorer)
    if adapters is None:
        silent = {"experts": not names, "ensemble": scorer.method.needs_task_id}
        adapters = [adapter for adapter in ADAPTERS if not silent.get(adapter)]
    if "experts" in adapters and not names:
        raise ConfigError(f"{run_dir} has no experts to be asked alone; choose --voices base,ensemble.")
    alone = names if "experts" in adapters else []
    textual = [name for name, one in members.items() if one.OUTPUT_TYPE == "loglikelihood_rolling"]
    if alone and textual:
        raise ConfigError(
            f"{textual[0]} scores texts without a query, which no expert can accept; leave it out, or leave out the experts:"
            f" --voices base,ensemble."
        )
    asked = [ExpertLM(scorer, name) for name in (BASE, *alone, ENSEMBLE) if name in (*adapters, *alone)]
    found = {lm.adapter: _evaluate(lm, specs, manager, limit, num_fewshot) for lm in asked}
    first, last = next(iter(found.values())), asked[-1]
    metrics: dict[str, Any] = {name: _metrics(found[name]) for name in (BASE, ENSEMBLE) if name in found}
    if alone:
        each = {name: _metrics(found[name]) for name in alone}
        metrics["experts"] = {"mean": _mean(list(each.values())), "each": each}
    content = {
        "command": command,
        "commit": commit(),
        "versions": {**versions(), "lm_eval": version("lm_eval"), "datasets": version("datasets")},
        "tasks": list(tasks),
        "task_versions": first["versions"],
        "limit": limit,
        "num_fewshot": num_fewshot,
        "shots": first["n-shot"],
        "queries": {task: counts["effective"] for task, counts in first["n-samples"].items()},
        "metrics": metrics,
        **(_routes(last.answered) if last.adapter == ENSEMBLE else {}),
    }
    shown = [task for spec in specs for task in _shown(getattr(spec, "task_name", None) or spec.name, first)]
    print_scores(content, shown, len(names), Console())
    write_text(out, dump(seal(content)))
    return out


def print_scores(content: Mapping[str, Any], tasks: Sequence[str], experts: int, console: "Console") -> None:
    """Print a row for each voice and a column for each task's first metric.

    Args:
        content: of ``harness.json``.
        tasks: those to show.
        experts: how many there are.
        console: where to.
    """
    from rich import box
    from rich.table import Column, Table

    from see_lightning.reporting.terminal import print_table
    from see_lightning.reporting.words import number, percent

    metrics = content["metrics"]
    rows = {
        "base": metrics.get("base"),
        f"mean of {experts} experts (SEE-AE)": metrics.get("experts", {}).get("mean"),
        "ensemble" if experts else "adapted model": metrics.get("ensemble"),
    }
    spoken = {name: row for name, row in rows.items() if row}
    any_row = next(iter(spoken.values()))
    chosen = [
        (task, next(key for key in any_row[task] if "_stderr," not in key)) for task in tasks if any_row.get(task)
    ]
    heads = [f"{task} {key.removesuffix(',none').replace(',', ' ')}" for task, key in chosen]
    table = Table("voice", *(Column(head, justify="right") for head in (*heads, "at the base")), box=box.SIMPLE_HEAD)
    for name, row in spoken.items():
        share = {"base": 1.0}.get(name, content.get("base_share") if row is metrics.get("ensemble") else None)
        table.add_row(name, *(number(row[task][key], 4) for task, key in chosen), percent(share))
    print_table(table, console)
    if content["limit"] is not None:
        console.print(f" The first {content['limit']} queries of each task alone: no result of the benchmark.")


def _check_same(path: Path, asked: Mapping[str, Any]) -> None:
    """Refuse to put a trial or other tasks in the place of what was measured."""
    found = read_file(path, "harness.json") if path.exists() else asked
    for name, value in asked.items():
        if found.get(name) != value:
            raise Refusal(
                f"{path} has {name} {found.get(name)}, and {value} is asked for; keep both with --out FILE, or move it away."
            )


def _task_manager(include_path: Path | None) -> "TaskManager":
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise Refusal(f"{error.name} is missing; install it with: pip install 'see-lightning[harness]'") from error
    if include_path is not None and not include_path.is_dir():
        raise Refusal(
            f"--include-path {include_path} is no folder; give the one that holds the YAML files of your tasks."
        )
    return TaskManager(include_path=include_path)


def _load(manager: "TaskManager", name: str) -> Mapping[str, Any]:
    """A task, or those of a group or tag, with their data: ``tasks`` and ``groups`` by name, as the harness has them."""
    if name not in manager.all_tasks:
        raise Refusal(
            f"lm_eval has no task {name!r}.{nearest(name, manager.all_tasks)} `lm_eval ls tasks` lists its own; with"
            f" --include-path DIR yours are found too."
        )
    try:
        loaded = manager.load([name])
    except Exception as error:  # from whatever reads the data: no network, no such file, a broken YAML
        raise Refusal(
            f"lm_eval cannot load {name}: {type(error).__name__}: {with_cause(error)} Its data come from the Hub of Hugging"
            f" Face, or from where its YAML says; without a network they must be in HF_HOME."
        ) from error
    unsafe = [task for task, one in loaded["tasks"].items() if getattr(one, "UNSAFE_CODE", False)]
    if unsafe:
        raise Refusal(
            f"{unsafe[0]} runs code that the model wrote. If you want that: see-lightning lm-eval run --model"
            f" see_lightning --model_args run_dir=RUN_DIR --tasks {unsafe[0]} --confirm_run_unsafe_code"
        )
    found: Mapping[str, Any] = loaded
    return found


def _evaluate(lm: Any, specs: list[Any], manager: "TaskManager", limit: int | None, num_fewshot: int | None) -> Any:
    from lm_eval import simple_evaluate

    return simple_evaluate(
        lm, tasks=specs, task_manager=manager, limit=limit, num_fewshot=num_fewshot, log_samples=False
    )


def _metrics(found: Mapping[str, Any]) -> Metrics:
    """By task and group each ``metric,filter``; None where it is no number."""
    return {
        task: {
            key: float(value) if isinstance(value, Real) and math.isfinite(value) else None
            for key, value in values.items()
            if "," in key
        }
        for task, values in found["results"].items()
    }


def _mean(each: Sequence[Metrics]) -> Metrics:
    """The mean of every metric, without the standard errors of single experts."""
    return {
        task: {key: _mean_of([one[task][key] for one in each]) for key in row if "_stderr," not in key}
        for task, row in each[0].items()
    }


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def _routes(answered: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Who answered what share of each task's queries, and what share of all the base model did."""
    every = [adapter for own in answered.values() for adapter in own.values()]
    if not every:
        return {}
    return {
        "answered_by": {task: _shares(own.values()) for task, own in answered.items()},
        "base_share": round(every.count("base") / len(every), 6),
    }


def _shares(adapters: Iterable[str]) -> dict[str, float]:
    counts = Counter(adapters)
    return {adapter: round(count / counts.total(), 6) for adapter, count in counts.most_common()}


def _shown(name: str, found: Mapping[str, Any]) -> list[str]:
    """What stands for a name in the table: itself, or its tasks if it has no score of its own."""
    if any("," in key for key in found["results"].get(name, {})):
        return [name]
    return [task for child in found["group_subtasks"].get(name, []) for task in _shown(child, found)]


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]
