"""Computes ``results.json`` from the ledger of a run and its answers."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from statistics import mean
from typing import Any

from omegaconf import DictConfig, OmegaConf

from see_lightning.adapters.files import THRESHOLD
from see_lightning.config.former_names import with_current_fields
from see_lightning.config.identity import method_name, numbers_config
from see_lightning.config.schema import PARAPHRASED, VARIANTS
from see_lightning.engine.contents import ood_digests, ood_queries, placed
from see_lightning.engine.ledger import OOD, OOD_INPUT_ONLY
from see_lightning.engine.merge_rule import rule_name
from see_lightning.engine.method_costs import HOOKS, STEP_HOOKS
from see_lightning.engine.quantized import quantization_notices, quantization_of
from see_lightning.engine.record import starts_of
from see_lightning.engine.remote import engine_notices
from see_lightning.engine.router import router_class, router_name
from see_lightning.engine.run_data import RunData
from see_lightning.engine.stream_facts import (
    assigned_experts,
    assignment_notices,
    right_experts,
    same_task,
    stream_notices,
    stream_of,
)
from see_lightning.engine.validation import validation_costs, validation_of
from see_lightning.evaluation.continual import continual_metrics
from see_lightning.evaluation.last_row import last_row
from see_lightning.evaluation.matrix import ResultsMatrix
from see_lightning.evaluation.ood import asked_records, ood_report, reached_report
from see_lightning.evaluation.protocols import summaries
from see_lightning.evaluation.routing import BASE, misrouted, routing_report
from see_lightning.evaluation.variants import variant_report
from see_lightning.files.run_files import read_file
from see_lightning.models.base import model_id
from see_lightning.routing.walk import Verifying, Walk
from see_lightning.tasks.paraphrases import paraphrase_texts

#: Counts of each stage that runs of old versions lack.
NEWER = ("past_tokens", "negative_tokens", "trained_weights", "stored_rows", "stored_bytes")


def collect(run: RunData) -> dict[str, Any]:
    """The content of ``results.json``; its fields stay readable by later versions.

    Args:
        run: finished.
    """
    results = _origin(run) | _scores(run) | validation_of(run) | quantization_of(run)
    results |= _storage(run) | assigned_experts(run) | _method_report(run) | stream_of(run)
    if run.method.traits.has_experts and not router_class(run.cfg).needs_task:
        results |= _routing(run, results.get("given"))
    if run.cfg.method.get("warm_start", "none") != "none":
        results["warm_start"] = [stage.get("parent") for stage in run.trained]
    if OOD in run.eval_sets:
        results["ood"] = _ood(run, routed="routing" in results)
    if any(name in run.eval_sets for name in VARIANTS):
        results["variants"] = _variants(run, routed="routing" in results, given=results.get("given"))
    results |= {"timing": _timing(run), "counts": (counts := _counts(run))}
    if "validation" in results:
        results["timing"]["validate_s"] = validation_costs(run, "seconds")
        results["counts"]["validation_tokens"] = validation_costs(run, "tokens")
    if "routing" in results:
        results["routing"]["decided_again_share"] = _rate(counts["decided_again"], counts["decisions"])
    results["notices"] = _notices(run, results)
    results["benchmark"] = _benchmark(run)
    results["config"] = OmegaConf.to_container(run.cfg, resolve=True)
    if digests := run.about.get("contents", {}).get("digests"):
        results["contents"] = {"digests": digests, "in_key": placed(numbers_config(run.cfg), digests)}
    return with_current_fields(results)


def _origin(run: RunData) -> dict[str, Any]:
    """Command, code, settings and tasks that identify the run."""
    about = run.about
    return {
        "command": about["command"],
        "commit": about["commits"][-1],
        "commits": about["commits"],
        "starts": starts_of(about),
        "finished": datetime.fromtimestamp(run.last_written(), UTC).date().isoformat(),
        "grown_from": about.get("grown_from"),
        "versions": about["versions"],
        "seed": run.config.seed,
        "method": method_name(run.cfg),
        "router": router_name(run.cfg),
        **({"rule": rule} if (rule := rule_name(run.cfg)) else {}),
        "ratio": run.cfg.method.get("ratio"),
        "model": model_id(run.config.model),
        **{name: about[name] for name in ("dtype", "engine") if name in about},
        "order": run.config.order.name,
        "tasks": run.names,
    }


def _scores(run: RunData) -> dict[str, Any]:
    """The results matrix, its metrics, and details of the answers after the last task."""
    matrix = ResultsMatrix(run.names)
    for stage in run.stages:
        for test in stage.tests:
            scores = [record["score"] for record in run.answers[stage.name] if record["task"] == test.name]
            for row in stage.rows:
                matrix.set(row + 1, test.name, round(sum(scores) / len(scores), 4))
    score = {task.name: task.score for task in run.tasks}
    found: dict[str, Any] = {
        "score": score,
        "matrix": matrix.to_list(),
        "metrics": continual_metrics(matrix.to_list()),
        "last_row": last_row(run.final, score),
        "lengths": {
            task.name: {
                "rule": task.rule,
                "max_new_tokens": task.max_new_tokens,
                "cut": sum(one["truncated"] for one in run.final if one["task"] == task.name),
            }
            for task in run.tasks
        },
    }
    return {**found, "protocols": summaries({"tasks": run.names, **found})}


def _storage(run: RunData) -> dict[str, Any]:
    """Bytes that the method stores after each task, and as a share of the adapters' size; empty for runs of old versions."""
    stored = [stage["storage"] for stage in run.trained if stage.get("storage")]
    if not stored or len(stored) < len(run.trained):
        return {}
    return {
        "storage": {part: [stage.get(part, 0) for stage in stored] for part in dict.fromkeys(chain(*stored))},
        "capacity": [round(sum(n for part, n in one.items() if part != "pool") / one["pool"], 6) for one in stored],
    }


def _method_report(run: RunData) -> dict[str, Any]:
    """The values of ``Method.report`` after each task; null where a value is missing."""
    reports = [stage.get("report", {}) for stage in run.trained]
    found = {name: [report.get(name) for report in reports] for name in dict.fromkeys(chain(*reports))}
    return {"method_report": found} if found else {}


def _routing(run: RunData, given: Mapping[str, str] | None) -> dict[str, Any]:
    """The routing of test queries after the last task: confusion, refusals, thresholds."""
    routing = routing_report(run.final, run.names, given)
    if issubclass(router_class(run.cfg), Verifying):
        routing["asked"] = round(mean(len(record["verdicts"]) for record in run.final), 4)
    if run.method.traits.learns_refusals:
        routing["refused"] = {name: stage.get("refused") for name, stage in zip(run.names, run.trained, strict=True)}
    routing |= same_task(run)
    routing["thresholds"] = {
        stage.task.name: read_file(path)["log_odds"]
        for stage in run.stages
        if stage.task and (path := run.ledger.folder(stage.name) / "expert" / THRESHOLD).exists()
    }
    return {"routing": routing, **({"task_id_accuracy": routing["accuracy"]} if "task_id" in run.cfg.method else {})}


def _ood(run: RunData, *, routed: bool) -> dict[str, Any]:
    """Scores on ``ood`` tasks after the last task, and their routing if the method routes."""
    ledger, eval_set = run.ledger, run.eval_sets[OOD]
    ood = run.last_answers(eval_set)
    by_task = {task.name: [record for record in ood if record["task"] == task.name] for task in eval_set.tasks}
    found: dict[str, Any] = {
        "asked": OmegaConf.to_container(run.cfg.ood, resolve=True),
        "digests": ood_digests(run.cfg),
        "command": run.about["asked_by"],
        "scores": {name: round(mean(record["score"] for record in some), 4) for name, some in by_task.items()},
        "cut": {name: sum(record["truncated"] for record in some) for name, some in by_task.items()},
    }
    if OOD_INPUT_ONLY in run.eval_sets:
        found["input_only"] = _ood_input_only(run, routed=routed)
    if not routed:
        return found
    queries = {(record["task"], record["prompt_sha"]) for record in ood}
    cached = [record for stage in run.stages for record in ledger.remembered(stage.name, eval_set.responses)]
    responses = [record for record in cached if (record["task"], record["prompt_sha"]) in queries]
    own = [record for stage in run.stages for record in ledger.remembered(stage.name)]
    if not eval_set.decide:  # other experts may have decided in a run from which responses were taken over
        responses, own = asked_records(responses, ood), asked_records(own, run.final)
    after = {stage.name: ledger.answers(stage.name, OOD, eval_set.digests) for stage in run.stages}
    return {
        **found,
        **ood_report(ood, responses, own, run.names),
        "after": {
            stage: round(mean(record["expert"] == BASE for record in records), 4)
            for stage, records in after.items()
            if len(records) == len(ood)  # else the stage answered only some of the tasks
        },
    }


def _ood_input_only(run: RunData, *, routed: bool) -> dict[str, Any]:
    """Scores on ``ood`` tasks without their definitions, and their routing; and the tasks that have no definition."""
    tasks = run.eval_sets[OOD_INPUT_ONLY].tasks
    answers = run.last_answers(run.eval_sets[OOD_INPUT_ONLY])
    scores = {task.name: mean(record["score"] for record in answers if record["task"] == task.name) for task in tasks}
    return {
        "scores": {name: round(score, 4) for name, score in scores.items()},
        "without_definition": [task.name for task in run.eval_sets[OOD].tasks if task.name not in scores],
        **(reached_report(answers, run.names) if routed else {}),
    }


def _variants(run: RunData, *, routed: bool, given: Mapping[str, str] | None) -> dict[str, Any]:
    """Scores and routing on the run's own queries in other words."""
    asked = [name for name in VARIANTS if name in run.eval_sets]
    found: dict[str, Any] = {"asked": asked, "command": run.about["variants_asked_by"]}
    for name in asked:
        if name in PARAPHRASED:
            found[texts_of(name)] = paraphrases(run.cfg, name)
        found[name] = variant_report(run.last_answers(run.eval_sets[name]), run.names, routed=routed, given=given)
    return found


def _timing(run: RunData) -> dict[str, Any]:
    """Seconds of training and evaluation by stage, and rates over all stages."""
    spent, queries = ([sum(one.get(of, 0) for one in some) for some in run.blocks] for of in ("seconds", "queries"))
    return {
        "train_s": [stage["seconds"] for stage in run.trained],
        "evaluate_s": [round(seconds, 3) for seconds in spent],
        "train_tokens_per_s": _rate(sum(s["tokens"] for s in run.trained), sum(s["seconds"] for s in run.trained)),
        "queries_per_s": _rate(sum(queries), sum(spent)),
        "method_s": _by_hook(run, "seconds", HOOKS),
        "method_step_s": _by_hook(run, "seconds", STEP_HOOKS),
    }


def _by_hook(run: RunData, unit: str, hooks: Sequence[str]) -> dict[str, list[Any]]:
    """Seconds or tokens of each of these hooks, by stage; null where it did not run or an older version trained."""
    noted = [stage.get("hooks", {}).get(unit, {}) for stage in run.trained]
    ran = [hook for hook in hooks if any(hook in stage for stage in noted)]
    return {hook: [stage.get(hook) for stage in noted] for hook in ran}


def _counts(run: RunData) -> dict[str, Any]:
    """Examples and steps of training; prefills, decisions and generations of evaluation."""
    trained, answered = run.trained, sum(map(len, run.answers.values()))
    names = ["generations", "prefills", "decisions", "decided_again", "new_tokens"]
    names += ["second_chances"] if run.cfg.method.get("second_chance") == "on" else []
    counted = {
        name: sum(block.get("counts", {}).get(name, 0) for stage in run.blocks for block in stage) for name in names
    }
    return {
        "train_examples": [stage["examples"] for stage in trained],
        "rehearsed": [stage["rehearsed"] for stage in trained],
        "negatives": [stage["negatives"] for stage in trained],
        "steps": [stage["steps"] for stage in trained],
        "train_tokens": [stage["tokens"] for stage in trained],
        **{name: [stage.get(name) for stage in trained] for name in NEWER},
        **counted,
        "truncated": sum(record["truncated"] for records in run.answers.values() for record in records),
        # Responses of frozen experts are cached; where weights change, every answer is generated again.
        "remembered": answered - counted["generations"] if run.method.traits.has_experts else None,
        "token_efficiency": _rate(sum(s["tokens"] for s in trained), sum(s["computed"] for s in trained)),
        "method_tokens": _by_hook(run, "tokens", (*HOOKS, *STEP_HOOKS)),
    }


def _notices(run: RunData, results: Mapping[str, Any]) -> list[str]:
    """Notices about the numbers, for their readers."""
    notices = [notice for one in run.eval_sets.values() for task in one.tasks for notice in task.notices]
    notices += stream_notices(run.config.order) + assignment_notices(run, results) + quantization_notices(results)
    notices += engine_notices(results)
    if router_class(run.cfg) is Walk and "routing" in results:
        notices += misrouted(
            results["routing"],
            ratio=run.cfg.method.get("ratio", 0.0),
            sizes={task.name: len(task.train) for task in run.tasks},
            most_in_all=run.cfg.method.get("max_negatives", 0),
            calibrated=bool(run.cfg.method.get("calibrate_on")),
            right=right_experts(run, results.get("given")),
        )
    if run.method.traits.schedule == "sequential":
        records, changes = sum(map(len, run.answers.values())), "weights" if run.method.traits.trains else "prompts"
        notices.append(
            f"{results['counts']['remembered']} of {records} answers came from the cache: frozen experts and the base model"
            " answer a query once."
            if run.method.traits.has_experts
            else f"all {records} answers were generated: the {changes} change with every task, so none could come from a"
            " cache."
        )
    return notices


def _benchmark(run: RunData) -> dict[str, Any]:
    """Origin and licence of the benchmark and its tasks."""
    origins = {name: run.cfg.benchmark.tasks.get(task) or {} for name, task in run.config.order.learned().items()}
    return {
        **{key: run.cfg.benchmark[key] for key in ("name", "version", "licence", "citation")},
        "tasks": {
            name: {key: origin[key] for key in ("package", "licence", "citation") if key in origin}
            for name, origin in origins.items()
        },
    }


def keep_earlier(results: dict[str, Any], earlier: Mapping[str, Any]) -> None:
    """Keep the sections ``ood`` and ``variants`` of earlier commands that this command did not compute again.

    Args:
        results: from ``collect``, changed in place.
        earlier: the run's ``results.json`` of the command before.
    """
    if "ood" in earlier:
        results["ood"] = _with_input_only(results.get("ood"), earlier["ood"])
    if "variants" in earlier:
        found = {**earlier["variants"], **results.get("variants", {})}
        results["variants"] = {**found, "asked": [name for name in VARIANTS if name in found]}


def _with_input_only(ood: dict[str, Any] | None, earlier: dict[str, Any]) -> dict[str, Any]:
    """The section ``ood``, with the part ``input_only`` of an earlier section of the same queries; or the earlier one."""
    if ood is None:
        return earlier
    if "input_only" in ood or "input_only" not in earlier or ood.get("digests") != earlier.get("digests"):
        return ood
    if ood_queries(ood["asked"]) != ood_queries(earlier["asked"]):
        return ood
    asked = {**ood["asked"], "variants": earlier["asked"]["variants"]}
    return {**ood, "input_only": earlier["input_only"], "asked": asked}


def paraphrases(cfg: DictConfig, variant: str) -> dict[str, str | None]:
    """The paraphrase of each task's definition that a variant uses, None for a task without it.

    Args:
        cfg: composed.
        variant: one of ``PARAPHRASED``.
    """
    place, given = PARAPHRASED.index(variant), cfg.benchmark.get("paraphrases") or {}
    texts = {task: paraphrase_texts(task, given.get(task)) for task in cfg.order.tasks}
    return {task: some[place] if place < len(some) else None for task, some in texts.items()}


def texts_of(variant: str) -> str:
    """The field of the section ``variants`` with the paraphrases that a variant uses.

    >>> texts_of("paraphrased"), texts_of("paraphrased_2")
    ('paraphrases', 'paraphrases_2')
    """
    return variant.replace("paraphrased", "paraphrases")


def _rate(amount: float, per: float) -> float | None:
    return round(amount / per, 4) if per else None
