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
from see_lightning.config.schema import RESERVED
from see_lightning.config.trust import add_trust
from see_lightning.engine.finished import finished_results
from see_lightning.engine.latest import find_run
from see_lightning.engine.ledger import dump
from see_lightning.errors import ConfigError, Refusal, nearest, with_cause
from see_lightning.files.run_files import read_file, seal
from see_lightning.files.writing import check_out, write_text

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from see_lightning.cli.lm_eval import ExpertLM
    from see_lightning.evaluation.expert_scorer import ExpertScorer

ADAPTERS = ("base", "experts", "ensemble")
DESCRIPTION = """\
Evaluate a finished run on tasks of lm-evaluation-harness: its base model, every expert alone (their mean is SEE-AE), and the
ensemble, which routes each query. Prints a table and keeps all metrics, and the routes, as harness.json in the run's
directory. Each query is prefilled alone, so that the base model has the same score within the ensemble."""
EPILOG = """\
Task names, groups and data are the harness's own; it downloads data that the cache of Hugging Face lacks. An expert scores
an answer after its positive indicator, even for a query that it would not accept. Decoding is greedy."""

Metrics = dict[str, dict[str, float | None]]


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a run and tasks."""
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
        "--adapters",
        type=_words,
        metavar="NAME,...",
        help="base, experts, ensemble (default: all that the run has)",
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: a GPU if there is one)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="instead of harness.json in the run's directory; no link"
    )
    add_trust(parser)


@command("harness", DESCRIPTION, add_arguments, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Print the scores of a run's base model, experts and ensemble."""
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
    """Evaluate a run on tasks of lm-evaluation-harness, print a table and keep the metrics.

    Args:
        run_dir: of a finished run.
        tasks: names of tasks or groups.
        include_path: a folder with YAML files of further tasks.
        limit: number of queries of each task; None is all.
        num_fewshot: examples before each query; None is the task's own number.
        adapters: of ``ADAPTERS``; None takes all that the run has.
        device: where to compute; by default on a GPU if there is one.
        out: where the metrics are kept; by default ``harness.json`` in the run's directory.
        command: recorded in the file of metrics.
        trust: dotted names of classes that may be imported, see ``load_ensemble``.
        trust_remote_code: whether Python code that comes with the base model may run.

    Returns:
        The path of the metrics.

    Raises:
        Refusal: the run is not finished or has no such adapter, the harness is not installed, or a task cannot be read.
    """
    for adapter in adapters or ():
        one_of("--adapters", adapter, ADAPTERS)
    run_dir = find_run(run_dir)
    finished_results(run_dir, "it is evaluated after its last task")
    wanted = {"tasks": list(tasks), "limit": limit, "num_fewshot": num_fewshot}
    if out is None:
        out = run_dir / "harness.json"
        _check_same(out, wanted)
    check_out(out)
    manager = _task_manager(include_path)
    specs, members = _load_all(manager, tasks)
    # Late, because these import torch, which takes longer than a refusal should.
    from rich.console import Console

    from see_lightning.cli.lm_eval import ExpertLM, experts, load_scorer
    from see_lightning.reporting.harness import columns, print_scores

    scorer = load_scorer(run_dir, device, trust, trust_remote_code=trust_remote_code)
    models = [ExpertLM(scorer, name) for name in _names(run_dir, scorer, adapters, members)]
    found = {lm.adapter: _evaluate(lm, specs, manager, limit, num_fewshot) for lm in models}
    content = {"command": command, **_content(wanted, found), **_routes(models[-1])}
    shown = [getattr(spec, "task_name", None) or spec.name for spec in specs]
    print_scores(content, columns(shown, next(iter(found.values()))), len(experts(scorer)), Console())
    write_text(out, dump(seal(content)))
    return out


def _names(
    run_dir: Path, scorer: "ExpertScorer", adapters: Sequence[str] | None, members: Mapping[str, Any]
) -> list[str]:
    """Names to evaluate: base model, each expert and ensemble, if chosen with ``--adapters`` and present in the run."""
    from see_lightning.cli.lm_eval import BASE, ENSEMBLE, experts

    names = experts(scorer)
    if adapters is None:
        absent = {"experts": not names, "ensemble": scorer.method.needs_task_id}
        adapters = [adapter for adapter in ADAPTERS if not absent.get(adapter)]
    if "experts" in adapters and not names:
        raise ConfigError(f"{run_dir} has no experts to evaluate alone; choose --adapters base,ensemble.")
    alone = names if "experts" in adapters else []
    textual = [name for name, one in members.items() if one.OUTPUT_TYPE == "loglikelihood_rolling"]
    if alone and textual:
        raise ConfigError(
            f"{textual[0]} scores texts without a query, which no expert can accept; leave it out, or leave out the experts:"
            f" --adapters base,ensemble."
        )
    return [name for name in (BASE, *alone, ENSEMBLE) if name in (*adapters, *alone)]


def _content(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``harness.json`` without the command and the routes.

    Args:
        wanted: ``tasks``, ``limit`` and ``num_fewshot``, as typed.
        found: results of the harness, by adapter.
    """
    from see_lightning.engine.record import commit, versions

    first = next(iter(found.values()))
    metrics: dict[str, Any] = {name: _metrics(found[name]) for name in RESERVED if name in found}
    each = {name: _metrics(one) for name, one in found.items() if name not in RESERVED}
    if each:
        metrics["experts"] = {"mean": _mean(list(each.values())), "each": each}
    return {
        "commit": commit(),
        "versions": {**versions(), "lm_eval": version("lm_eval"), "datasets": version("datasets")},
        "tasks": wanted["tasks"],
        "task_versions": first["versions"],
        "limit": wanted["limit"],
        "num_fewshot": wanted["num_fewshot"],
        "shots": first["n-shot"],
        "queries": {task: counts["effective"] for task, counts in first["n-samples"].items()},
        "metrics": metrics,
    }


def _check_same(path: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse to overwrite measured metrics by those of a trial or of other tasks."""
    found = read_file(path, "harness.json") if path.exists() else wanted
    for name, value in wanted.items():
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
    """Load a task, or the tasks of a group or tag, with their data: the harness's ``tasks`` and ``groups`` by name."""
    if name not in manager.all_tasks:
        raise Refusal(
            f"lm_eval has no task {name!r}.{nearest(name, manager.all_tasks)} `lm_eval ls tasks` lists its own; with"
            f" --include-path DIR yours are found too."
        )
    try:
        loaded = manager.load([name])
    except Exception as error:  # any library that reads data: no network, no such file, a broken YAML
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


def _load_all(manager: "TaskManager", names: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Load the tasks and groups of these names for the harness, and all their tasks by name.

    Raises:
        Refusal: a task cannot be read, or wants sampled answers.
    """
    specs: list[Any] = []
    members: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        loaded = _load(manager, name)
        members |= loaded["tasks"]
        specs += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    from see_lightning.cli.lm_eval import greedy  # late: it imports torch

    for one in members.values():
        if one.OUTPUT_TYPE == "generate_until":
            greedy(one.config.generation_kwargs or {})
    return specs, members


def _evaluate(lm: Any, specs: list[Any], manager: "TaskManager", limit: int | None, num_fewshot: int | None) -> Any:
    from lm_eval import simple_evaluate

    return simple_evaluate(
        lm, tasks=specs, task_manager=manager, limit=limit, num_fewshot=num_fewshot, log_samples=False
    )


def _metrics(found: Mapping[str, Any]) -> Metrics:
    """Each ``metric,filter`` by task and group; None if it is not a finite number."""
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


def _routes(last: "ExpertLM") -> dict[str, Any]:
    """Routes of an ensemble: the share of each task's queries by adapter, and the base model's share of all queries."""
    from see_lightning.cli.lm_eval import BASE, ENSEMBLE

    every = [adapter for own in last.answered.values() for adapter in own.values()]
    if last.adapter != ENSEMBLE or not every:
        return {}
    return {
        "answered_by": {task: _shares(own.values()) for task, own in last.answered.items()},
        "base_share": round(every.count(BASE) / len(every), 6),
    }


def _shares(adapters: Iterable[str]) -> dict[str, float]:
    counts = Counter(adapters)
    return {adapter: round(count / counts.total(), 6) for adapter, count in counts.most_common()}


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]
