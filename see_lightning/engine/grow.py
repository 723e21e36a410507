"""Growing: a run whose task list only got longer takes over what a shorter one has finished."""

import shutil
from pathlib import Path
from typing import Any

from see_lightning.engine.ledger import BESIDE, Ledger, LedgerError
from see_lightning.engine.stages import Stage


def _without_tasks(config: dict[str, Any], tasks: int) -> dict[str, Any]:
    """What two runs must share to be one sequence: all but the tasks behind the first ``tasks``."""
    order, benchmark = config["order"], config["benchmark"]
    first = order["tasks"][:tasks]
    return {
        **config,
        "order": {**order, "tasks": first},
        "benchmark": {**benchmark, "tasks": {task: benchmark["tasks"][task] for task in first}},
    }


def shorter_run(directory: Path, config: dict[str, Any]) -> Path | None:
    """The longest run beside ``directory`` whose configuration is this one's with fewer tasks at the end.

    Args:
        directory: ``runs/<order>/<method>/<key>/seed=<n>`` of the run that starts.
        config: its ``numbers_config``.
    """
    found: list[tuple[int, Path]] = []
    for other in directory.parent.parent.glob(f"*/{directory.name}"):
        # What the run noted itself: in its config.yaml the data root is resolved, and another one is no other data.
        theirs = Ledger(other).read().content["about"].get("numbers")
        if other == directory or theirs is None:
            continue
        length = len(theirs["order"]["tasks"])
        if length < len(config["order"]["tasks"]) and theirs == _without_tasks(config, length):
            found.append((length, other))
    return max(found)[1] if found else None


def adopt(ledger: Ledger, stages: list[Stage], other: Path) -> int:
    """Copy what another run has finished of these stages, and make it final here in one act.

    Only stages from the first on count, and the other run keeps its own files.

    Args:
        ledger: of the run that starts, still without stages.
        stages: of the run that starts.
        other: directory of the shorter run.

    Returns:
        How many trained stages were taken over.
    """
    theirs = Ledger(other).read()  # what is final there never changes, so a run in progress may be read too
    their_data = theirs.content["about"]["data"]
    changed = [task for task, digest in their_data.items() if ledger.content["about"]["data"].get(task) != digest]
    if changed:
        raise LedgerError(
            f"{other} was made from other data: {', '.join(changed)} changed since. Restore them, or move it away."
        )
    taken = []
    for stage in stages:
        if not theirs.stage(stage.name)["trained"]:
            break
        folder = ledger.folder(stage.name)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(theirs.verified(stage.name), folder)
        theirs.answers(stage.name), theirs.remembered(stage.name)  # read, which checks them
        for kind in BESIDE:
            theirs.beside(stage.name, kind)
        taken.append(stage.name)
    ours, about = ledger.content["about"], theirs.content["about"]
    ours["dtype"], ours["grown_from"] = about["dtype"], str(other)
    ours["commits"] = [*about["commits"], *(commit for commit in ours["commits"] if commit != about["commits"][-1])]
    ledger.content["stages"] = {name: theirs.stage(name) for name in taken}
    ledger.commit()
    return len(taken)
