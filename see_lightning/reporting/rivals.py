"""What each method trains, keeps and costs, from ``results.json`` alone: numbers for a table and a figure of many methods."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from see_lightning.reporting.comparison.groups import Group, typed
from see_lightning.reporting.runs import read_results

Results = Mapping[str, Any]

BASELINE = "seqft"  # to the cost of whose training those of others are compared
EXPERTS = "stl"  # to whose scores, those of a task's own expert, others are compared


def trained_weights(results: Results) -> float | None:
    """Number of weights that a stage trained, the mean over stages; None if an older version trained the run.

    >>> trained_weights({"counts": {"trained_weights": [10, 20]}}), trained_weights({"counts": {"trained_weights": []}})
    (15.0, 0.0)
    """
    found = _counted(results, "trained_weights")
    return None if found is None else statistics.fmean(found) if found else 0.0


def stored_rows(results: Results) -> int | None:
    """Largest number of past examples that had to be stored for a stage.

    >>> stored_rows({"counts": {"stored_rows": [0, 12]}}), stored_rows({"counts": {}})
    (12, None)
    """
    found = _counted(results, "stored_rows")
    return None if found is None else max(found, default=0)


def kept_bytes(results: Results) -> int | None:
    """Bytes of all that is kept after the last task: adapters, the method's state, and past examples.

    >>> kept_bytes({"counts": {"stored_bytes": [0, 5]}, "storage": {"pool": [8, 8], "weights": [8, 8], "state": [1, 2]}})
    15
    """
    found = _counted(results, "stored_bytes")
    if found is None:
        return None
    kept: list[int] = [sizes[-1] for part, sizes in results.get("storage", {}).items() if sizes and part != "pool"]
    return sum(kept) + max(found, default=0)


def training_tokens(results: Results) -> int | None:
    """Tokens of all training rows in all epochs; those that hooks read are in ``hook_tokens``."""
    found = _counted(results, "train_tokens")
    return None if found is None else sum(found)


def hook_tokens(results: Results) -> int | None:
    """Tokens that the model read in the method's hooks, padding included."""
    by_hook = results.get("counts", {}).get("method_tokens")
    return None if by_hook is None else int(_sum(by_hook))


def hook_s(results: Results) -> float | None:
    """Seconds in all hooks of the method, those within the steps of training included."""
    timing = results.get("timing", {})
    if "method_step_s" not in timing:
        return None
    return _sum(timing.get("method_s", {})) + _sum(timing["method_step_s"])


def training_s(results: Results) -> float | None:
    """Seconds of training: of the steps, and of the hooks before and after them.

    >>> training_s({"timing": {"train_s": [4.0, 6.0], "method_s": {"assign": [1.0, 1.0], "end_task": [2.0, None]}}})
    12.0
    """
    timing = results.get("timing", {})
    if "method_s" not in timing:
        return None
    beside = {hook: some for hook, some in timing["method_s"].items() if hook != "assign"}  # train_s has that one
    seconds: float = sum(timing.get("train_s", ())) + _sum(beside)
    return seconds


def relative_cost(groups: Sequence[Group]) -> Callable[[Results], float | None]:
    """A function that gives the cost of a run's training as a multiple of sequential fine-tuning's on the same rows.

    Seconds of two runs are not compared: they are of other days, and of machines that others use.

    Args:
        groups: among which is ``BASELINE``, with its mean over seeds; of several on the same rows, the one whose command has
            the fewest settings. Without one, the function gives None.
    """
    baselines = _of_plainest(groups, BASELINE, lambda runs: [one for run in runs if (one := _cost(run))])

    def relative(results: Results) -> float | None:
        cost, costs = _cost(results), baselines.get(_rows(results))
        return None if cost is None or not costs else cost / statistics.fmean(costs)

    return relative


def _cost(results: Results) -> float | None:
    """Training tokens, times the factor by which the hooks lengthened the run."""
    tokens, factor = training_tokens(results), hook_factor(results)
    return None if tokens is None or factor is None else tokens * factor


def hook_factor(results: Results) -> float | None:
    """Seconds of a run's training by those without the method's hooks; 1 if nothing was trained, None if unknown.

    >>> timing = {"train_s": [4.0, 6.0], "method_s": {"assign": [1.0, 1.0], "end_task": [4.0, None]}}
    >>> hook_factor({"timing": {**timing, "method_step_s": {"penalty": [1.0, 2.0]}}})
    2.8
    """
    whole, hooks = training_s(results), hook_s(results)
    if whole is None or hooks is None:
        return None
    return whole / (whole - hooks) if whole > hooks else 1.0


def of_own_experts(groups: Sequence[Group]) -> Callable[[Results], float | None]:
    """A function that gives a run's last scores in percent of those of each task's own expert, the mean over tasks.

    It is MergeBench's normalised score. Tasks whose expert scores 0 are left out.

    Args:
        groups: among which is ``EXPERTS``, on the same rows. Without one, the function gives None.
    """
    baselines = _of_plainest(groups, EXPERTS, lambda runs: [_last_scores(run) for run in runs])

    def share(results: Results) -> float | None:
        several = baselines.get(_rows(results), [])
        own = {task: statistics.fmean(one[task] for one in several) for task in (several[0] if several else ())}
        shares = [score / own[task] for task, score in _last_scores(results).items() if own.get(task)]
        return 100 * statistics.fmean(shares) if shares else None

    return share


def _last_scores(results: Results) -> dict[str, float]:
    return {
        task: score for task, score in zip(results["tasks"], results["matrix"][-1], strict=True) if score is not None
    }


def _of_plainest(
    groups: Sequence[Group], method: str, measure: Callable[[Sequence[Results]], list[Any]]
) -> dict[tuple[Any, ...], list[Any]]:
    """What is measured of a method's runs, by the rows that they share; of several, those with the fewest settings."""
    found: dict[tuple[Any, ...], tuple[int, list[Any]]] = {}
    for group in (one for one in groups if one.first.method == method):
        runs = [read_results(run.path) for run in group.runs]
        if measured := measure(runs):
            rows, length = _rows(runs[0]), len(typed(group))
            if rows not in found or length < found[rows][0]:
                found[rows] = length, measured
    return {rows: measured for rows, (_, measured) in found.items()}


def _rows(results: Results) -> tuple[Any, ...]:
    """What tells whether two runs of one order trained and tested the same model on the same rows."""
    config = results.get("config", {})
    sizes = config.get("train_size"), config.get("test_size")
    return (tuple(results["tasks"]), results["model"], *sizes, *protocol(results).values())


def protocol(results: Results) -> dict[str, str]:
    """How a run was scored, in words: its scores, the benchmark's version, limits of answers, and the order of its tasks."""
    benchmark, scores = results.get("config", {}).get("benchmark", {}), results.get("score", {})
    each = scores if isinstance(scores, Mapping) else {"all": scores}
    return {
        "scores": f"scores {', '.join(f'{task} {score}' for task, score in sorted(each.items()))}",
        "version": f"version {benchmark.get('version')}",
        # Limits by the training answers were the rule before there was the setting.
        "limits": f"answers of at most {benchmark.get('max_new_tokens') or 'training'} tokens",
        "tasks": f"tasks in the order {', '.join(results['tasks'])}",
    }


def _counted(results: Results, name: str) -> list[int] | None:
    """A count of each stage; None if some stage has none, as in runs of older versions."""
    found = results.get("counts", {}).get(name)
    return None if found is None or None in found else found


def _sum(by_hook: Mapping[str, Sequence[float | None]]) -> float:
    return sum(value for some in by_hook.values() for value in some if value is not None)
