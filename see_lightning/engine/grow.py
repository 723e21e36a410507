"""Takes over finished stages of another run.

All of them for a longer task list; the trained weights for another router or new thresholds.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from see_lightning.adapters.files import STATE, THRESHOLD
from see_lightning.config.former_names import folder_names, with_current_names, with_former_names
from see_lightning.config.identity import switched_on
from see_lightning.engine.contents import Contents
from see_lightning.engine.find import Compared, comparable, compare
from see_lightning.engine.ledger import EVAL_SETS, Ledger, LedgerError
from see_lightning.engine.made_from import check_same_prompts
from see_lightning.engine.record import starts_of
from see_lightning.engine.router import FILE as ROUTER
from see_lightning.engine.stages import Stage
from see_lightning.errors import listed
from see_lightning.files.writing import copy_folder, refuse_links
from see_lightning.methods.lookup import method_class
from see_lightning.tasks.task import changed_data


def _without_tasks(config: dict[str, Any], tasks: int) -> dict[str, Any]:
    """The settings of a run that has only the first ``tasks`` tasks."""
    order, benchmark = config["order"], config["benchmark"]
    first = order["tasks"][:tasks]
    return {
        **config,
        "order": {**order, "tasks": first},
        "benchmark": {**benchmark, "tasks": {task: benchmark["tasks"][task] for task in first}},
    }


def _training_settings(config: dict[str, Any], after_training: AbstractSet[str]) -> dict[str, Any]:
    """The settings that trained weights depend on."""
    rest = {key: value for key, value in config.items() if key != "router"}
    method = with_former_names(config)["method"]
    left_out = with_former_names({"method": {"_target_": method["_target_"], **dict.fromkeys(after_training)}})
    return {**rest, "method": switched_on(method, left_out=left_out["method"].keys() - {"_target_"})}


def trains_alike(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether runs with these two ``numbers_config`` train the same experts."""
    # Our own settings name the class: those of another run could name any code.
    method = with_current_names(ours)["method"]
    after_training = method_class(method).after_training(method)
    kept, wanted = (_training_settings(comparable(one), after_training) for one in (theirs, ours))
    return kept == wanted


@dataclass(frozen=True, slots=True)
class Earlier:
    """A run whose finished stages another run may take over.

    Args:
        directory: of the run.
        answers_too: whether its answers are valid too, as they are for a longer task list. With other thresholds only its
            trained weights and cached responses are.
        edited: the changes of inputs that prevent it; None if its stages can be taken over.
    """

    directory: Path
    answers_too: bool
    edited: Compared | None = None


def earlier_run(directory: Path, config: dict[str, Any], data: Mapping[str, str], contents: Contents) -> Earlier | None:
    """The run beside ``directory`` with most finished stages that this one can take over.

    Args:
        directory: ``runs/<order>/<method>/<key>/seed=<n>`` of the run that starts.
        config: its ``numbers_config``.
        data: digests of its tasks, by name.
        contents: its inputs.

    Returns:
        That run; if there is none, a run whose stages could be taken over if its inputs had not been edited since; or None.
    """
    found: list[tuple[bool, int, bool, Path, Compared]] = []
    order, method = directory.parents[2], directory.parents[1].name
    for other in (path for name in folder_names(method) for path in (order / name).glob(f"*/{directory.name}")):
        # The ledger's settings are compared, not config.yaml: there the data root is resolved, and it may move.
        if other == directory:
            continue
        try:
            ledger = Ledger(other).read()
            noted = ledger.content["about"].get("numbers")
            trained = sum(bool(stage["trained"]) for stage in ledger.content["stages"].values())
            if noted is None or not trained:
                continue
            about = ledger.facts()
        except LedgerError:
            continue  # a notice was given when this run's directory was looked for
        if noted["benchmark"]["reader"]["_target_"] != config["benchmark"]["reader"]["_target_"]:
            continue
        theirs, tasks = comparable(noted), noted["order"]["tasks"]
        more = len(config["order"]["tasks"]) - len(tasks)
        if more < 0 or (more and "stream" in config["order"]):  # with another task the stages of a stream are others
            continue
        ours = comparable(_without_tasks(config, len(tasks)))
        if not trains_alike(theirs, ours):
            continue
        compared = compare(contents, about, lambda: data, tasks=tasks)
        # If rows for thresholds are held out of the training rows, the data differ.
        answers_too = theirs == ours
        if not compared.changed and (answers_too or not changed_data(about["data"], data)):
            found.append((True, trained, answers_too, other, compared))
        elif compared.is_edited:
            found.append((False, trained, answers_too, other, compared))
    if not found:
        return None
    serves, _, answers_too, other, compared = max(found, key=lambda one: one[:4])
    return Earlier(other, answers_too, None if serves else compared)


def adopt(ledger: Ledger, stages: list[Stage], other: Path, *, answers_too: bool = True) -> int:
    """Copy the stages that another run has finished, and make them final here in one commit.

    Stages are copied from the first on, up to the first one that the other run has not trained.

    Args:
        ledger: of the run that starts, still without stages.
        stages: of the run that starts.
        other: directory of the other run, which stays as it is.
        answers_too: whether to copy its answers too; if not, the method's ``end_task`` is still to be run for each stage.

    Returns:
        The number of trained stages that were taken over.

    Raises:
        LedgerError: data or prompts of the other run differ, or a file of it is damaged.
    """
    theirs = Ledger(other).read()  # final entries never change, so a run in progress can be read too
    changed = changed_data(theirs.content["about"]["data"], ledger.content["about"]["data"])
    if changed:
        raise LedgerError(
            f"{other} was made from other data: {listed(changed)} changed since. Restore them, or move it away."
        )
    check_same_prompts(ledger, theirs)
    taken: dict[str, dict[str, Any]] = {}
    for stage in stages:
        noted = theirs.stage(stage.name)
        if not noted["trained"]:
            break
        folder = ledger.folder(stage.name)
        ledger.check_held()
        refuse_links(folder, ledger.directory)
        folder.parent.mkdir(exist_ok=True)
        copy_folder(theirs.verified(stage.name), folder)
        theirs.answers(stage.name), theirs.remembered(stage.name)  # reading checks the digests
        for kind in EVAL_SETS:
            theirs.answers(stage.name, kind), theirs.remembered(stage.name, f"{kind}_remembered")
        taken[stage.name] = noted if answers_too else _only_responses(noted)
    ours, about = ledger.content["about"], theirs.content["about"]
    ours["dtype"], ours["grown_from"] = about["dtype"], str(other)
    ours["commits"] = [*about["commits"], *(commit for commit in ours["commits"] if commit != about["commits"][-1])]
    earlier_starts, start = starts_of(about), {**starts_of(ours)[-1], "dtype": about["dtype"]}
    ours["starts"] = earlier_starts if start == earlier_starts[-1] else [*earlier_starts, start]
    ledger.content["stages"] = taken
    ledger.commit()
    return len(taken)


def _only_responses(noted: dict[str, Any]) -> dict[str, Any]:
    """A stage's entry without its answers and their costs, marked so that ``end_task`` is still to be run."""
    written_again = {f"expert/{name}" for name in (THRESHOLD, STATE, ROUTER, "expert.json")}
    files = {file: digest for file, digest in noted["trained"]["files"].items() if file not in written_again}
    responses: dict[str, Any] = {
        kind: {task: {key: block[key] for key in ("start", "end", "sha256")} for task, block in noted[kind].items()}
        for kind in ("remembered", *(f"{kind}_remembered" for kind in EVAL_SETS))
        if kind in noted
    }
    return {"trained": {**noted["trained"], "files": files, "ended": False}, "answers": {}, **responses}
