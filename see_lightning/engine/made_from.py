"""What a run's prompts are made from: noted when it starts, compared whenever it goes on, grows or is asked."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import torch

from see_lightning.config.schema import RESERVED
from see_lightning.engine.ledger import Ledger, LedgerError
from see_lightning.errors import Refusal
from see_lightning.files.run_files import read_file
from see_lightning.tasks.prompts import PromptTemplate


def date_of(ledger: Ledger, model: str | None) -> str:
    """The date that chat templates write in a run, in ISO form: that of its start, whenever it goes on.

    A run that starts takes the date of those beside it, of the same order, method and model, so that it can grow from them.

    Args:
        ledger: of the run.
        model: its name in the settings by which the run is named.
    """
    about = ledger.content["about"]
    if "date" in about:
        return str(about["date"])
    dates = []
    for other in ledger.directory.parent.parent.glob("*/seed=*") if not about else ():
        with suppress(LedgerError):  # a damaged one is told where that run itself is needed
            noted = Ledger(other).read().content["about"]
            if "date" in noted and noted["numbers"]["model"]["name"] == model:
                dates.append(noted["date"])
    return str(min(dates, default=datetime.now().isoformat(timespec="seconds")))


def prompt_facts(template: PromptTemplate) -> dict[str, Any]:
    """What a run notes of its prompts: digests, and the date if the chat template writes it."""
    return {"prompts": template.made_from(), **({"date": template.date} if template.date else {})}


def check_prompts(ledger: Ledger, template: PromptTemplate) -> None:
    """Compare a run's prompts with what they were when it started; what an older run did not note is not compared.

    Raises:
        LedgerError: template or tokenizer are others.
    """
    _refuse_changes(
        ledger,
        _noted(ledger),
        template.made_from(),
        "Restore it, or give the run another folder (paths.runs=DIR).",
    )


def check_same_prompts(ledger: Ledger, other: Ledger) -> None:
    """Compare the prompts of a run with those of another, which it is to go on from.

    Raises:
        LedgerError: template, tokenizer or date are others.
    """
    ours, theirs = (_noted(one) for one in (ledger, other))
    _refuse_changes(other, theirs, ours, "Restore it, or move that folder away.")


@contextmanager
def taken_up(ledger: Ledger, stage: str, facts: Mapping[str, Any]) -> Iterator[None]:
    """Within this, an expert is read that comes from where this run's experts do, or is refused.

    A base model whose files the ledger names is compared by these: its name may be another by now, and its revision.

    Args:
        ledger: of the run.
        stage: name of the one that trained it.
        facts: what this run's experts say, see ``expert_facts``.

    Raises:
        LedgerError: it is of another task, model, precision, template, or has other indicators; or its files lack something.
    """
    if "expert/expert.json" in ledger.stage(stage)["trained"]["files"]:  # else its own task is not evaluated yet
        _check_expert(ledger, stage, facts)
    try:
        yield
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, Refusal | torch.OutOfMemoryError):
            raise
        told = next(iter(str(error).strip().splitlines()), "")
        raise LedgerError(
            f"{ledger.folder(stage) / 'expert'} does not hold what this run's method saves ({type(error).__name__}:"
            f" {told[:200]}). Put its files back, or delete {ledger.directory} to run anew."
        ) from error


def _check_expert(ledger: Ledger, stage: str, facts: Mapping[str, Any]) -> None:
    path = ledger.folder(stage) / "expert" / "expert.json"
    said = read_file(path)
    named = ledger.content["about"].get("contents", {}).get("files")
    task = stage.partition("-")[2]
    if task in RESERVED:
        raise LedgerError(f"{ledger.directory} has a stage {stage}, but {task!r} is no name of an expert.")
    for name, value in {"task": task, **facts}.items():
        if name in said and said[name] != value and not (named and name in ("base_model", "base_revision")):
            raise LedgerError(
                f"{path} says that its expert's {name} is {said[name]!r:.100}, and this run's is {value!r:.100}. Put the file"
                f" back, or delete {ledger.directory} to run anew."
            )


def _noted(ledger: Ledger) -> dict[str, Any]:
    about = ledger.content["about"]
    return {**about.get("prompts", {}), **({"date in its prompts": about["date"]} if "date" in about else {})}


def _refuse_changes(made: Ledger, then: Mapping[str, Any], now: Mapping[str, Any], cure: str) -> None:
    # Other prompts have other ids too, so the first that differs is the cause.
    changed = next((name for name, noted in then.items() if name in now and noted != now[name]), None)
    if changed:
        raise LedgerError(f"{made.directory} was made with another {changed} than there is now. {cure}")
