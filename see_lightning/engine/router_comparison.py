"""The comparison of routers on the experts of a finished run, and its files: ``route.json``, a table and a picture."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from see_lightning.config.compose import composed
from see_lightning.config.instantiate import instantiate
from see_lightning.config.schema import VARIANTS
from see_lightning.config.trust import Trust, load_config, refuse_code
from see_lightning.config.validation import validate
from see_lightning.engine.build import build_template
from see_lightning.engine.build_further import build_ood, build_variants
from see_lightning.engine.ledger import FORCED, REMEMBERED, ROUTED, Ledger
from see_lightning.engine.loaded_run import load_remembering, read_tasks
from see_lightning.engine.measured import Content, Measurement
from see_lightning.engine.router_options import RouterOption, router_options
from see_lightning.engine.router_trial import RouterTrial
from see_lightning.engine.run_report import run_report
from see_lightning.errors import ConfigError, Refusal
from see_lightning.evaluation.input_bound import input_bound
from see_lightning.evaluation.router_figures import AS_IS
from see_lightning.files.writing import check_out, write_text
from see_lightning.methods.lookup import method_class
from see_lightning.reporting.figures.routers import routers_csv, routers_picture
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Benchmark, Task, told_apart


@dataclass(frozen=True)
class Asked:
    """The routers and queries of one command.

    Args:
        routers: as typed; none takes the run's own and every option of ``conf/router``.
        ood: foreign queries, an option of ``conf/ood`` with settings; None takes those that the run was evaluated on.
        variants: wordings of the run's own queries; None takes all that the benchmark has.
        size: test queries of each task, the first ones; None takes all.
        answers: whether the run's own queries are answered as well.
    """

    routers: Sequence[str] = ()
    ood: str | None = None
    variants: Sequence[str] | None = None
    size: int | None = None
    answers: bool = True

    def queries(self) -> dict[str, Any]:
        """The choices of queries, as they are recorded."""
        variants = None if self.variants is None else list(self.variants)
        return {"ood": self.ood, "variants": variants, "size": self.size}

    def after(self, earlier: Content | None) -> "Asked":
        """This choice, with the queries of an earlier comparison where none were chosen."""
        if earlier is None:
            return self
        kept = {name: earlier[name] for name, value in self.queries().items() if value is None}
        for name, value in kept.items():
            if value is not None:
                print(f"note: as in the comparison that there is: {name} {value}", file=sys.stderr)
        return replace(self, **kept)


@dataclass(frozen=True)
class QuerySets:
    """The queries of a comparison.

    Args:
        tasks: of the run, with their training rows and the test queries that are routed.
        further: variants of these queries and foreign ones, by name of the set.
        left_out: reasons why a wording is missing, by name of the set.
    """

    tasks: list[Task]
    further: dict[str, list[Task]]
    left_out: dict[str, str]


def compare_routers(path: Path, command: str, asked: Asked, out: Path | None, trust: Trust) -> Content:
    """Measure the routers that a comparison lacks, keep it, and return its content.

    Args:
        path: of ``route.json`` in the run's directory.
        command: as it was typed.
        asked: routers and queries.
        out: file that is written instead, with a .csv and an .svg beside it; then nothing is written into the run.
        trust: the code named in the run's or the user's settings that may run.

    Raises:
        Refusal: the run is not finished or has no experts, a router, wording or foreign set is unknown, or a file cannot
            be written.
        LedgerError: a file of the run is damaged, or tokenizer, template or data differ from the run's.
    """
    chosen = {name: value for name, value in asked.queries().items() if value is not None}
    one = Measurement(path, command, chosen, out)
    cfg = load_config(path.parent / "config.yaml", trust)
    if not method_class(cfg.method).traits.has_experts:
        raise Refusal(
            f"{path.parent} is a run of {one.results['method']}, whose answers come from one model, so there is nothing to"
            f" route; give a run with experts, such as one of see or stl."
        )
    stages = Ledger(path.parent).read().content["stages"].items()
    never = [name.partition("-")[2] for name, stage in stages if (stage["trained"] or {}).get("never_refuses")]
    options = router_options(cfg, asked.routers, trust, never)
    asked = asked.after(one.read())
    cfg = _with_foreign(cfg, asked.ood, one.results, path.parent, trust)
    foreign: Any = OmegaConf.to_container(cfg.ood, resolve=True) if cfg.ood else None
    one = Measurement(path, command, {**asked.queries(), "foreign": foreign}, out)
    found = one.read()
    if found is None or any(not _has(found, option, asked.answers) for option in options):
        for file in _beside(out) if out else ():
            check_out(file)
        with one.held() as ledger:
            found = _measured(one, ledger, cfg, asked, options)
    return found


def _has(found: Content, option: RouterOption, answers: bool) -> bool:
    """Whether a comparison has a router with these settings, with its AR if there are to be answers."""
    for row in found["routers"]:
        if row["router"] == option.name and row["settings"] == option.settings:
            if option.cannot or not row["tried"]:
                return bool(row["cannot"] == option.cannot)
            return row["cannot"] is not None or row["AR"] is not None or not answers
    return False


def _measured(
    one: Measurement, ledger: Ledger, cfg: DictConfig, asked: Asked, options: Sequence[RouterOption]
) -> Content:
    """Measure router by router, each of which is kept before the next begins."""
    config = validate(cfg)
    template = build_template(config, ledger.content["about"].get("date"))
    sets = _read_sets(cfg, asked, ledger, template)
    kinds = (FORCED, ROUTED, *(f"{name}_{REMEMBERED}" for name in sets.further))
    method = load_remembering(cfg, ledger, *kinds)
    given = one.results.get("given") or {task.name: task.name for task in sets.tasks}
    trial = RouterTrial(cfg, method, sets.tasks, sets.further, given, ledger, config.data.eval_batch_size)
    numbers = {AS_IS: sets.tasks, **sets.further}
    content = {
        "tasks": [task.name for task in sets.tasks],
        "queries": {name: sum(len(task.test) for task in some) for name, some in numbers.items()},
        "left_out": sets.left_out,
        "expert_bytes": sum(size for part, size in method.storage().items() if part != "pool"),
    }
    found = one.read() or {"routers": [], "bound": _bound(trial)}
    for option in options:
        if not _has(found, option, asked.answers):
            others = [row for row in found["routers"] if row["router"] != option.name]
            rows = [*others, trial.row(option, answers=asked.answers)]
            found = one.write(ledger, {**content, "bound": found["bound"], "routers": rows})
            _draw(one, ledger, found)
    return found


def _bound(trial: RouterTrial) -> float | None:
    """The share of inputs without their definitions whose task a classifier tells; None if these are not routed."""
    if "input_only" not in trial.sets:
        return None
    method = trial.method
    return input_bound(method.pool, method.template, trial.tasks, embedded=trial.embedded).accuracy


def _with_foreign(
    cfg: DictConfig, words: str | None, results: Mapping[str, Any], run_dir: Path, trust: Trust
) -> DictConfig:
    """The run's configuration with foreign queries: those of an option of ``conf/ood``, or of the run's last evaluation."""
    node: Any = (results.get("ood") or {}).get("asked")
    if words is not None:
        name, *typed = shlex.split(words) or [""]
        typed = [word if word.startswith("ood.") else f"ood.{word}" for word in typed]
        whole = composed([f"ood={name}", *typed, f"paths.data={cfg.paths.data}"])
        node = OmegaConf.to_container(whole.ood, resolve=True, throw_on_missing=True) if whole.ood else None
    elif node:
        refuse_code(run_dir / "results.json", {"ood": node}, trust)
    cfg.ood = None
    if not node:
        return cfg
    return cast("DictConfig", OmegaConf.merge(cfg, {"ood": {**node, "variants": ["input_only"]}}))


def _read_sets(cfg: DictConfig, asked: Asked, ledger: Ledger, template: PromptTemplate) -> QuerySets:
    """Read the queries, cut to the asked number; a wording that the benchmark lacks is left out unless it was named."""
    config = validate(cfg)
    tasks = read_tasks(cfg, ledger, template)
    further: dict[str, list[Task]] = {}
    left_out: dict[str, str] = {}
    benchmark: Benchmark = instantiate(cfg.benchmark)
    texts = max(1, *(len(benchmark.paraphrases.get(task.name, ())) for task in tasks))
    for name in VARIANTS[: 1 + texts] if asked.variants is None else asked.variants:
        try:
            if name not in VARIANTS:
                raise ConfigError(f"--variants names {name!r}; there are {', '.join(VARIANTS)}.")
            further |= build_variants(cfg, replace(config, variants=[name]), template, tasks)
        except ConfigError as error:
            if asked.variants is not None:
                raise
            left_out[name] = str(error)
    foreign = {name: told_apart(some, tasks) for name, some in build_ood(cfg, config, template).items() if some}
    further = {name: [_first(task, asked.size) for task in some] for name, some in further.items()}
    return QuerySets([_first(task, asked.size) for task in tasks], further | foreign, left_out)


def _first(task: Task, size: int | None) -> Task:
    return replace(task, test=task.test[:size])


def _beside(out: Path) -> list[Path]:
    return [out.with_suffix(suffix) for suffix in (".csv", ".svg")]


def _draw(one: Measurement, ledger: Ledger, content: Content) -> None:
    """Write table and picture beside the comparison, and with the run's results the report."""
    texts = (routers_csv(content), routers_picture(content))
    for file, text in zip(_beside(one.path), texts, strict=True):
        write_text(file, text) if one.out else ledger.write(file, text)
    if not one.out:
        ledger.write(one.run_dir / "report.html", run_report(one.run_dir, one.results))
