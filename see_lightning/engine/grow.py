"""Takes over finished stages of another run.

All of them for a longer task list; without answers, those before the first task whose rows have changed; the trained weights
for another router, new thresholds, or another expert of some task.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from see_lightning.adapters.files import EXPERT_FILE, QUANTIZED, STATE, THRESHOLD, WEIGHTS, quantize_folder
from see_lightning.config.former_names import folder_names, with_current_names, with_former_names
from see_lightning.config.identity import switched_on
from see_lightning.engine.contents import Contents
from see_lightning.engine.find import Compared, comparable, compare
from see_lightning.engine.ledger import EVAL_SETS, Ledger, LedgerError
from see_lightning.engine.made_from import check_same_prompts, folders_of_twin
from see_lightning.engine.record import starts_of
from see_lightning.engine.router import FILE as ROUTER
from see_lightning.engine.stages import Stage
from see_lightning.errors import listed
from see_lightning.files.reading import sha256
from see_lightning.files.writing import copy_folder, refuse_links
from see_lightning.methods.lookup import method_class
from see_lightning.tasks.task import changed_data


def without_tasks(config: dict[str, Any], tasks: int) -> dict[str, Any]:
    """The settings of a run that has only the first ``tasks`` tasks."""
    order, benchmark = config["order"], config["benchmark"]
    first = order["tasks"][:tasks]
    experts = {task: one for task, one in order.get("experts", {}).items() if task in first}
    rest = {name: value for name, value in order.items() if name != "experts"}
    return {
        **config,
        "order": {**rest, "tasks": first, **({"experts": experts} if experts else {})},
        "benchmark": {**benchmark, "tasks": {task: benchmark["tasks"][task] for task in first}},
    }


def _training_settings(config: dict[str, Any], after_training: AbstractSet[str]) -> dict[str, Any]:
    """The settings that the weights of all experts depend on."""
    rest = {key: value for key, value in config.items() if key not in ("router", "rule")}
    rest["order"] = {name: value for name, value in config["order"].items() if name != "experts"}
    method = with_former_names(config)["method"]
    left_out = with_former_names({"method": {"_target_": method["_target_"], **dict.fromkeys(after_training)}})
    return {**rest, "method": switched_on(method, left_out=left_out["method"].keys() - {"_target_"})}


def trains_alike(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether runs with these two ``numbers_config`` train the same experts, but for those that ``order.experts`` names."""
    # Our own settings name the class: those of another run could name any code.
    method = with_current_names(ours)["method"]
    cls = method_class(method)
    after_training = cls.after_training(method)
    kept, wanted = (_training_settings(comparable(one), after_training) for one in (theirs, ours))
    if "quantization" not in kept.get("adapter", {}):  # an expert in fp32 can be rounded, and not the other way round
        adapter = wanted.get("adapter", {})
        wanted |= (
            {"adapter": {name: value for name, value in adapter.items() if name != "quantization"}} if adapter else {}
        )
    if cls.traits.trains_as:  # the other method's settings are none that this one lacks
        wanted["method"] = {**wanted["method"], "_target_": cls.traits.trains_as}
        if kept["method"]["_target_"] == method["_target_"]:
            kept["method"] = {**kept["method"], "_target_": cls.traits.trains_as}
    return kept == wanted


@dataclass(frozen=True, slots=True)
class Earlier:
    """A run whose finished stages another run may take over.

    Args:
        directory: of the run.
        stages: how many of its stages, from the first on, can be taken over.
        ended: whether what the method made of each task after its training is valid too. With another router, other
            thresholds or another expert, only the trained weights and cached responses are.
        compared: the inputs of both runs. If some have changed, answers are not valid.
    """

    directory: Path
    stages: int
    ended: bool
    compared: Compared

    @property
    def answers_too(self) -> bool:
        """Whether its answers are valid, as they are for a longer task list."""
        return self.ended and not self.compared.changed


def earlier_run(directory: Path, config: dict[str, Any], data: Mapping[str, str], contents: Contents) -> Earlier | None:
    """The run beside ``directory`` with most finished stages that this one can take over.

    Args:
        directory: ``runs/<order>/<method>/<key>/seed=<n>`` of the run that starts.
        config: its ``numbers_config``.
        data: digests of its tasks, by name.
        contents: its inputs.

    Returns:
        That run; if there is none, a run whose stages could be taken over if its inputs had not been edited since, with 0
        stages; or None.
    """
    found: list[tuple[int, bool, Path, Earlier]] = []  # copied stages, whether they have ended
    order, method = directory.parents[2], directory.parents[1].name
    alike = [*folder_names(method), *folders_of_twin(config)]
    for other in (path for name in alike for path in (order / name).glob(f"*/{directory.name}")):
        # The ledger's settings are compared, not config.yaml: there the data root is resolved, and it may move.
        if other == directory:
            continue
        try:
            ledger = Ledger(other).read()
            noted = ledger.content["about"].get("numbers")
            if noted is None or not ledger.trained_tasks():
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
        ours = comparable(without_tasks(config, len(tasks)))
        if not trains_alike(theirs, ours):
            continue
        compared = compare(contents, about, lambda: data, tasks=tasks)
        others = _differing(noted, config, contents)  # these experts are trained or imported in this run
        compared.forget(f"order.experts.{task}" for task in others)
        whole = not compared.changed
        names = list(about["data"])  # of the tasks that it learned, in their order
        same = len(names) if whole else 0 if "stream" in config["order"] else _before_changes(compared, tasks)
        # If rows for thresholds are held out of the training rows, the data differ.
        ended = theirs == ours and not others & {*tasks}
        noted_data = {name: about["data"][name] for name in names[:same]}
        untrained = {task for task, one in config["order"].get("experts", {}).items() if isinstance(one, str)}
        copied = len({*ledger.trained_tasks()} & {*noted_data} - others - untrained)
        if copied and ((ended and whole) or not changed_data(noted_data, data)):
            found.append((copied, ended, other, Earlier(other, same, ended, compared)))
        elif compared.is_edited:
            found.append((0, ended, other, Earlier(other, 0, ended, compared)))
    return max(found, key=lambda one: one[:3])[-1] if found else None


def _before_changes(compared: Compared, tasks: Sequence[str]) -> int:
    """The number of stages before the first one whose rows have changed; 0 if anything else has.

    Args:
        compared: inputs of both runs, of which at least one has changed.
        tasks: of the stages, in their order.
    """
    changed = {name.removeprefix("task ") for name in compared.changed}
    return min(tasks.index(task) for task in changed) if changed <= {*tasks} else 0


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any], contents: Contents | None = None) -> set[str]:
    """The tasks whose experts come from elsewhere in another run, by ``order.experts``.

    Args:
        theirs: settings of the other run, as its ledger has them: with digests in place of folders.
        ours: settings of the run that starts.
        contents: digests of its folders; None if its settings have them.
    """
    then, now = (one["order"].get("experts", {}) for one in (theirs, ours))
    digests = contents.digests if contents else {}
    now = {task: digests.get(f"order.experts.{task}", one) for task, one in now.items()}
    return {task for task in {*then, *now} if then.get(task) != now.get(task)}


def adopt(ledger: Ledger, stages: list[Stage], earlier: Earlier) -> int:
    """Copy the stages that another run has finished, and make them final here in one commit.

    Stages are copied from the first on, up to the first one that the other run has not trained; without those whose experts
    come from elsewhere by ``order.experts``.

    Args:
        ledger: of the run that starts, still without stages.
        stages: of the run that starts.
        earlier: the other run, which stays as it is.

    Returns:
        The number of trained stages that were taken over.

    Raises:
        LedgerError: data or prompts of the other run differ, or a file of it is damaged.
    """
    other = earlier.directory
    theirs = Ledger(other).read()  # final entries never change, so a run in progress can be read too
    names = {stage.task.name for stage in stages if stage.task}
    noted_data = {name: one for name, one in theirs.content["about"]["data"].items() if name in names}
    if changed := changed_data(noted_data, ledger.content["about"]["data"]):
        raise LedgerError(
            f"{other} was made from other data: {listed(changed)} changed since. Restore them, or move it away."
        )
    check_same_prompts(ledger, theirs)
    taken: dict[str, dict[str, Any]] = {}
    others = _differing(*(one.content["about"]["numbers"] for one in (theirs, ledger)))
    quantization = ledger.content["about"]["numbers"]["adapter"].get("quantization", "none")
    for stage in stages:
        if stage.task and stage.task.name in others:
            taken[stage.name] = {"trained": None, "answers": {}}  # in its place
            continue
        noted = theirs.stage(stage.name)
        if not noted["trained"]:
            break
        folder = ledger.folder(stage.name)
        ledger.check_held()
        refuse_links(folder, ledger.directory)
        folder.parent.mkdir(exist_ok=True)
        copy_folder(theirs.verified(stage.name), folder)
        noted = _quantized(noted, folder, quantization)
        theirs.answers(stage.name), theirs.remembered(stage.name)  # reading checks the digests
        for kind in EVAL_SETS:
            theirs.answers(stage.name, kind), theirs.remembered(stage.name, f"{kind}_remembered")
        taken[stage.name] = noted if earlier.answers_too else _without_answers(noted, ended=earlier.ended)
    ours, about = ledger.content["about"], theirs.content["about"]
    ours["dtype"], ours["grown_from"] = about["dtype"], str(other)
    if "engine" in about:
        ours["engine"] = about["engine"]
    ours["commits"] = [*about["commits"], *(commit for commit in ours["commits"] if commit != about["commits"][-1])]
    earlier_starts, start = starts_of(about), {**starts_of(ours)[-1], "dtype": about["dtype"]}
    ours["starts"] = earlier_starts if start == earlier_starts[-1] else [*earlier_starts, start]
    ledger.content["stages"] = taken
    ledger.commit()
    return sum(bool(stage["trained"]) for stage in taken.values())


def _quantized(noted: dict[str, Any], folder: Path, kind: str) -> dict[str, Any]:
    """A stage's entry after the expert's weights have been rounded in the stage's folder, if they are stored in fp32 there.

    Args:
        noted: the entry.
        folder: the copy of the stage's folder.
        kind: ``adapter.quantization`` of the run that starts.
    """
    files, exact, stored = noted["trained"]["files"], f"expert/{WEIGHTS}", f"expert/{QUANTIZED}"
    if kind == "none" or exact not in files:
        return noted
    error = quantize_folder(folder / "expert", kind)
    files = {name: digest for name, digest in files.items() if name != exact}
    files[stored] = sha256(folder / stored)
    return {**noted, "trained": {**noted["trained"], "files": files, "quantization_error": round(error, 6)}}


def _without_answers(noted: dict[str, Any], *, ended: bool) -> dict[str, Any]:
    """A stage's entry without its answers and their costs.

    Args:
        noted: the entry.
        ended: False leaves out what ``end_task`` made too, and marks that it is still to be run.
    """
    again = () if ended else (THRESHOLD, STATE, ROUTER)
    written_again = {f"expert/{name}" for name in (*again, EXPERT_FILE)}
    files = {file: digest for file, digest in noted["trained"]["files"].items() if file not in written_again}
    responses: dict[str, Any] = {
        kind: {task: {key: block[key] for key in ("start", "end", "sha256")} for task, block in noted[kind].items()}
        for kind in ("remembered", *(f"{kind}_remembered" for kind in EVAL_SETS))
        if kind in noted
    }
    trained = {**noted["trained"], "files": files, **({} if ended else {"ended": False})}
    return {"trained": trained, "answers": {}, **responses}
