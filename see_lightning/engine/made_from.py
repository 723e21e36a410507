"""Checks that tokenizer, chat template and experts are those with which a run was started, when it is continued or used."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import torch

from see_lightning.config.former_names import folder_names, with_current_names
from see_lightning.config.schema import RESERVED
from see_lightning.engine.ledger import Ledger, LedgerError
from see_lightning.errors import Refusal
from see_lightning.files.run_files import read_file
from see_lightning.methods.lookup import method_class
from see_lightning.tasks.prompts import PromptTemplate


def folders_of_twin(config: Mapping[str, Any]) -> list[str]:
    """Names of the folders of another method that trains the same weights, whose stages are taken over too."""
    twin = method_class(with_current_names(config)["method"]).traits.trains_as
    return folder_names(twin.split(".")[-2]) if twin else []


def date_of(ledger: Ledger, settings: Mapping[str, Any]) -> str:
    """The date in the prompts of a run, for chat templates that contain one: that of its first start, in ISO form.

    A new run takes the earliest date of runs beside it with the same order, method and model, so that it can take over
    their stages.

    Args:
        ledger: of the run.
        settings: of the run.
    """
    about = ledger.content["about"]
    if "date" in about:
        return str(about["date"])
    dates, (method, order) = [], ledger.directory.parents[1:3]
    model, names = settings["model"]["name"], [*folder_names(method.name), *folders_of_twin(settings)]
    beside = (path for name in names for path in (order / name).glob("*/seed=*"))
    for other in beside if not about else ():
        with suppress(LedgerError):  # a damaged run is refused where it is needed
            noted = Ledger(other).read().content["about"]
            if "date" in noted and noted["numbers"]["model"]["name"] == model:
                dates.append(noted["date"])
    return str(min(dates, default=datetime.now().isoformat(timespec="seconds")))


def prompt_facts(template: PromptTemplate) -> dict[str, Any]:
    """Facts about the prompts of a run, for its ledger: digests, and the date if the chat template contains it."""
    return {"prompts": template.made_from(), **({"date": template.date} if template.date else {})}


def check_prompts(ledger: Ledger, template: PromptTemplate) -> None:
    """Refuse a template or tokenizer that has changed since the run started; facts that its ledger lacks are not compared.

    Raises:
        LedgerError: template or tokenizer has changed.
    """
    _refuse_changes(
        ledger,
        _noted(ledger),
        template.made_from(),
        "Restore it, or give the run another folder (paths.runs=DIR).",
    )


def check_same_prompts(ledger: Ledger, other: Ledger) -> None:
    """Refuse to take over stages from a run with other prompts.

    Raises:
        LedgerError: template, tokenizer or date differ.
    """
    ours, theirs = (_noted(one) for one in (ledger, other))
    _refuse_changes(other, theirs, ours, "Restore it, or move that folder away.")


@contextmanager
def taken_up(ledger: Ledger, stage: str, facts: Mapping[str, Any]) -> Iterator[None]:
    """A context in which an expert's files are read: its facts are checked before, and unusable files are refused.

    If the ledger has digests of the base model's files, its name and revision may differ from those in ``expert.json``.

    Args:
        ledger: of the run.
        stage: name of the stage that trained the expert.
        facts: of this run's experts, see ``expert_facts``.

    Raises:
        LedgerError: the expert's task, model, precision, template or indicators differ, or its files are incomplete.
    """
    if "expert/expert.json" in ledger.stage(stage)["trained"]["files"]:  # missing until its task is evaluated
        _check_expert(ledger, stage, facts)
    try:
        yield
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, Refusal | torch.OutOfMemoryError):
            raise
        reason = next(iter(str(error).strip().splitlines()), "")
        raise LedgerError(
            f"{ledger.folder(stage) / 'expert'} does not hold what this run's method saves ({type(error).__name__}:"
            f" {reason[:200]}). Put its files back, or delete {ledger.directory} to run again."
        ) from error


def _check_expert(ledger: Ledger, stage: str, facts: Mapping[str, Any]) -> None:
    path = ledger.folder(stage) / "expert" / "expert.json"
    recorded = read_file(path)
    named = ledger.content["about"].get("contents", {}).get("files")
    task = stage.partition("-")[2]
    if task in RESERVED:
        raise LedgerError(f"{ledger.directory} has a stage {stage}, but {task!r} is no name of an expert.")
    for name, value in {"task": task, **facts}.items():
        if name in recorded and recorded[name] != value and not (named and name in ("base_model", "base_revision")):
            raise LedgerError(
                f"{path}: its expert's {name} is {recorded[name]!r:.100}, and this run's is {value!r:.100}. Put the file"
                f" back, or delete {ledger.directory} to run again."
            )


def _noted(ledger: Ledger) -> dict[str, Any]:
    about = ledger.content["about"]
    return {**about.get("prompts", {}), **({"date in its prompts": about["date"]} if "date" in about else {})}


def _refuse_changes(made: Ledger, then: Mapping[str, Any], now: Mapping[str, Any], cure: str) -> None:
    # Changed prompts have changed token ids too; the first difference is the cause.
    changed = next((name for name, noted in then.items() if name in now and noted != now[name]), None)
    if changed:
        raise LedgerError(f"{made.directory} was made with another {changed} than there is now. {cure}")
