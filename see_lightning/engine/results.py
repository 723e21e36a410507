"""``results.json``: every number of a run, computed from its ledger and its answers."""

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import mean
from typing import Any

from omegaconf import DictConfig, OmegaConf

from see_lightning.config import VARIANTS, RunConfig, method_name, numbers_config
from see_lightning.engine.contents import ood_digests, placed
from see_lightning.engine.ledger import OOD, Ledger
from see_lightning.engine.record import starts_of
from see_lightning.engine.stages import Stage
from see_lightning.evaluation.continual import continual_metrics
from see_lightning.evaluation.last_row import last_row
from see_lightning.evaluation.matrix import ResultsMatrix
from see_lightning.evaluation.ood import ood_report
from see_lightning.evaluation.protocols import summaries
from see_lightning.evaluation.routing import BASE, misrouted, routing_report
from see_lightning.evaluation.variants import variant_report
from see_lightning.experts.files import THRESHOLD
from see_lightning.methods.method import Method
from see_lightning.models.base import model_id
from see_lightning.run_files import read_file
from see_lightning.tasks.task import Task


def collect(
    ledger: Ledger,
    stages: list[Stage],
    tasks: list[Task],
    beside: Mapping[str, Sequence[Task]],
    cfg: DictConfig,
    config: RunConfig,
    method: type[Method],
) -> dict[str, Any]:
    """The content of ``results.json``; its form is part of the project's contract.

    Args:
        ledger: with every stage finished.
        stages: of the run.
        tasks: in their order.
        beside: tasks that were asked beside the run's own, by kind, see ``ContinualRun``.
        cfg: the composed config.
        config: its typed form.
        method: the method's class, for what it declares.
    """
    names = [task.name for task in tasks]
    answers = {stage.name: ledger.answers(stage.name) for stage in stages}
    matrix = ResultsMatrix(names)
    for stage in stages:
        for test in stage.tests:
            scores = [record["score"] for record in answers[stage.name] if record["task"] == test.name]
            for row in stage.rows:
                matrix.set(row + 1, test.name, round(sum(scores) / len(scores), 4))
    about = ledger.content["about"]
    trained = [ledger.stage(stage.name)["trained"] for stage in stages if stage.task]
    asked = {
        stage.name: [
            block
            for kind in ("answers", "remembered")
            for block in ledger.stage(stage.name).get(kind, {}).values()
            if "start" in block
        ]
        for stage in stages
    }
    blocks = [block for stage in asked.values() for block in stage]
    evaluate_s = [sum(block.get("seconds", 0) for block in stage) for stage in asked.values()]
    results: dict[str, Any] = {
        "command": about["command"],
        "commit": about["commits"][-1],
        "commits": about["commits"],
        "starts": starts_of(about),
        "grown_from": about.get("grown_from"),
        "versions": about["versions"],
        "seed": config.seed,
        "method": method_name(cfg),
        "ratio": cfg.method.get("ratio"),
        "model": model_id(config.model),
        "dtype": about["dtype"],
        "order": config.order.name,
        "tasks": names,
        "score": {task.name: task.score for task in tasks},
        "matrix": matrix.to_list(),
        "metrics": continual_metrics(matrix.to_list()),
    }
    results["last_row"] = last_row(answers[stages[-1].name], results["score"])
    results["lengths"] = {
        task.name: {
            "rule": task.rule,
            "max_new_tokens": task.max_new_tokens,
            "cut": sum(one["truncated"] for one in answers[stages[-1].name] if one["task"] == task.name),
        }
        for task in tasks
    }
    results["protocols"] = summaries(results)
    stored = [stage["storage"] for stage in trained if stage.get("storage")]
    if stored and len(stored) == len(trained):
        results["storage"] = {part: [stage[part] for stage in stored] for part in stored[0]}
        results["capacity"] = [
            round(sum(size for part, size in stage.items() if part != "pool") / stage["pool"], 6) for stage in stored
        ]
    if method.traits.may_reuse:
        assigned = [stage["assigned"] for stage in trained]
        results["given"] = {name: one["expert"] for name, one in zip(names, assigned, strict=True)}
        results["expanded"] = [name == expert for name, expert in results["given"].items()]
        results["z"] = [one["z"] for one in assigned]
    if method.traits.has_experts and not method.is_told(cfg.method):
        results["routing"] = routing_report(answers[stages[-1].name], names, results.get("given"))
        if method.traits.learns_refusals:
            results["routing"]["refused"] = {
                name: stage.get("refused") for name, stage in zip(names, trained, strict=True)
            }
        if "task_id" in cfg.method:
            results["task_id_accuracy"] = results["routing"]["accuracy"]
        results["routing"]["thresholds"] = {
            stage.task.name: read_file(path)["log_odds"]
            for stage in stages
            if stage.task and (path := ledger.folder(stage.name) / "expert" / THRESHOLD).exists()
        }
    if cfg.method.get("warm_start", "none") != "none":
        results["warm_start"] = [stage["parent"] for stage in trained]
    strangers = beside.get(OOD, ())
    if strangers:
        digests = {task.name: task.asked() for task in strangers}
        foreign, _ = ledger.beside(stages[-1].name, OOD, digests)
        results["ood"] = {
            "asked": OmegaConf.to_container(cfg.ood, resolve=True),
            "digests": ood_digests(cfg),
            "command": about["asked_by"],
            "scores": {
                task.name: round(mean(record["score"] for record in foreign if record["task"] == task.name), 4)
                for task in strangers
            },
            "cut": {
                task.name: sum(record["truncated"] for record in foreign if record["task"] == task.name)
                for task in strangers
            },
        }
        if "routing" in results:
            queries = {(record["task"], record["prompt_sha"]) for record in foreign}
            heard = [record for stage in stages for record in ledger.beside(stage.name, OOD)[1]]
            said = [record for record in heard if (record["task"], record["prompt_sha"]) in queries]
            own = [record for stage in stages for record in ledger.remembered(stage.name)]
            results["ood"] |= ood_report(foreign, said, own, names)
            after = {stage.name: ledger.beside(stage.name, OOD, digests)[0] for stage in stages}
            results["ood"]["after"] = {
                stage: round(mean(record["expert"] == BASE for record in records), 4)
                for stage, records in after.items()
                if len(records) == len(foreign)  # others were asked less
            }
    if variants := [name for name in VARIANTS if name in beside]:
        results["variants"] = {"asked": variants, "command": about["variants_asked_by"]}
        if "paraphrased" in variants:
            results["variants"]["paraphrases"] = paraphrases(cfg)
        for name in variants:
            found, _ = ledger.beside(stages[-1].name, name, {task.name: task.asked() for task in beside[name]})
            results["variants"][name] = variant_report(
                found, names, routed="routing" in results, given=results.get("given")
            )
    results["timing"] = {
        "train_s": [stage["seconds"] for stage in trained],
        "evaluate_s": [round(seconds, 3) for seconds in evaluate_s],
        "train_tokens_per_s": _rate(sum(s["tokens"] for s in trained), sum(s["seconds"] for s in trained)),
        "queries_per_s": _rate(sum(block.get("queries", 0) for block in blocks), sum(evaluate_s)),
    }
    counted = {
        name: sum(block.get("counts", {}).get(name, 0) for block in blocks)
        for name in ("generations", "prefills", "decisions", "decided_again", "new_tokens")
    }
    results["counts"] = {
        "train_examples": [stage["examples"] for stage in trained],
        "rehearsed": [stage["rehearsed"] for stage in trained],
        "negatives": [stage["negatives"] for stage in trained],
        "steps": [stage["steps"] for stage in trained],
        **counted,
        "truncated": sum(record["truncated"] for records in answers.values() for record in records),
        # Frozen experts are asked once and remembered; where weights move, every answer is made anew.
        "remembered": sum(map(len, answers.values())) - counted["generations"] if method.traits.has_experts else None,
        "token_efficiency": _rate(sum(s["tokens"] for s in trained), sum(s["computed"] for s in trained)),
    }
    if "routing" in results:
        results["routing"]["decided_again_share"] = _rate(counted["decided_again"], counted["decisions"])
    results["notices"] = [notice for task in (*tasks, *chain.from_iterable(beside.values())) for notice in task.notices]
    results["notices"] += [
        f"{task} has no expert of its own: that of {expert} explains it (z {z[expert]:.2f})."
        for (task, expert), z in zip(results.get("given", {}).items(), results.get("z", []), strict=True)
        if task != expert
    ]
    if method.traits.learns_refusals:
        results["notices"] += misrouted(
            results["routing"],
            ratio=cfg.method.get("ratio", 0.0),
            sizes={task.name: len(task.train) for task in tasks},
            calibrated=bool(cfg.method.get("calibrate_on")),
        )
    if method.traits.schedule == "sequential":
        records = sum(map(len, answers.values()))
        results["notices"].append(
            f"{results['counts']['remembered']} of {records} answers were remembered: frozen experts and the base model"
            " answer a query once."
            if method.traits.has_experts
            else f"all {records} answers were made anew: the weights move with every task, so none can be remembered."
        )
    results["benchmark"] = {key: cfg.benchmark[key] for key in ("name", "version", "licence", "citation")}
    origins = {name: cfg.benchmark.tasks.get(name) or {} for name in names}
    results["benchmark"]["tasks"] = {
        name: {key: origin[key] for key in ("package", "licence", "citation") if key in origin}
        for name, origin in origins.items()
    }
    results["config"] = OmegaConf.to_container(cfg, resolve=True)
    if "contents" in about:
        results["contents"] = {
            "digests": about["contents"]["digests"],
            "in_key": placed(numbers_config(cfg), about["contents"]["digests"]),
        }
    return results


def keep_earlier(results: dict[str, Any], earlier: Mapping[str, Any]) -> None:
    """Let stay what a finished run was asked beside its own queries by earlier commands, unless it was asked anew.

    Args:
        results: from ``collect``, changed in place.
        earlier: the run's ``results.json`` as it was.
    """
    if "ood" in earlier:
        results.setdefault("ood", earlier["ood"])
    if "variants" in earlier:
        found = {**earlier["variants"], **results.get("variants", {})}
        results["variants"] = {**found, "asked": [name for name in VARIANTS if name in found]}


def paraphrases(cfg: DictConfig) -> dict[str, str | None]:
    """What a config says in the place of each task's definition."""
    given = cfg.benchmark.get("paraphrases") or {}
    return {task: given.get(task) for task in cfg.order.tasks}


def _rate(amount: float, per: float) -> float | None:
    return round(amount / per, 4) if per else None
