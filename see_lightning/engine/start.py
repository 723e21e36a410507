"""The start of a run: facts are recorded, compared with those of earlier starts, and finished stages are taken over."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from see_lightning.config.identity import numbers_config
from see_lightning.config.schema import RunConfig
from see_lightning.config.trust import read_settings, sealed_settings
from see_lightning.engine.contents import ROWS
from see_lightning.engine.find import Found, comparable, edits, refuse_other_model
from see_lightning.engine.grow import adopt, earlier_run
from see_lightning.engine.ledger import Ledger, LedgerError
from see_lightning.engine.made_from import check_prompts, prompt_facts
from see_lightning.engine.record import commit, differing, starts_of, versions, why_no_commit
from see_lightning.engine.stages import Stage
from see_lightning.errors import listed
from see_lightning.files.run_files import seal
from see_lightning.models.base import fast_dtype
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import changed_data


def start_run(
    cfg: DictConfig,
    config: RunConfig,
    ledger: Ledger,
    found: Found,
    *,
    command: str,
    ranks: int,
    template: PromptTemplate,
    data: Mapping[str, str],
    growing: list[Stage],
    console: Console,
) -> None:
    """Record the facts of a run's first start, or compare those of a later start with them.

    Args:
        cfg: composed.
        config: its typed form.
        ledger: of the run, held.
        found: directory and inputs of the run.
        command: as it was typed.
        ranks: number of ranks.
        template: prompt style and tokenizer.
        data: digests of the tasks, by name.
        growing: stages that may be taken over from another run, see ``earlier_run``.
        console: for progress.

    Raises:
        LedgerError: data, template or tokenizer have changed since the first start.
    """
    resolved = _dtype(cfg, config)
    about = _note_start(ledger, found, command, ranks, resolved, template, data, console)
    for name, asked in (("asked_by", config.ood), ("variants_asked_by", config.variants)):
        if asked and about.get(name) != command:
            about[name] = command
            ledger.commit()
    ledger.write(ledger.directory / "config.yaml", sealed_settings(cfg))
    if growing and not ledger.content["stages"]:
        _take_over(cfg, config, ledger, found, data, growing, console)
    if about["dtype"] != resolved:
        console.print(
            f"going on in {about['dtype']}, with which this run was started; this machine's own choice is {resolved}"
        )


def _dtype(cfg: DictConfig, config: RunConfig) -> str:
    """The dtype of a run that is started on this machine."""
    return fast_dtype(cfg.trainer.get("accelerator", "auto")) if config.model.dtype == "auto" else config.model.dtype


def _note_start(
    ledger: Ledger,
    found: Found,
    command: str,
    ranks: int,
    dtype: str,
    template: PromptTemplate,
    data: Mapping[str, str],
    console: Console,
) -> dict[str, Any]:
    """Record the first start of a run, or compare a later one with it; return the ledger's ``about``."""
    start = {
        "command": command,
        "commit": commit(),
        "versions": versions(),
        "dtype": ledger.content["about"].get("dtype", dtype),
        "ranks": ranks,
    }
    if start["commit"] is None and (why := why_no_commit()):
        console.print(f"note: the commit of this code is not recorded: {why}")
    about = ledger.about(
        {
            "command": command,
            "commits": [start["commit"]],
            "versions": start["versions"],
            "starts": [start],
            "dtype": dtype,
            "data": dict(data),
            **prompt_facts(template),
            "numbers": found.settings,
            "contents": found.contents.noted(),
        }
    )
    if changed := changed_data(data, about["data"]):
        raise LedgerError(
            f"{ledger.directory} was started on other data: {listed(changed)} changed since."
            f" Restore them, or move that folder away."
        )
    check_prompts(ledger, template)
    note_contents(ledger, found)
    if start != (last := starts_of(about)[-1]):  # a start equal to the last one writes nothing
        if differences := differing(last, start):
            console.print(f"going on with {differences}")
        about["starts"] = [*starts_of(about), start]
        if start["commit"] != about["commits"][-1]:
            about["commits"].append(start["commit"])
        ledger.commit()
    return about


def _take_over(
    cfg: DictConfig,
    config: RunConfig,
    ledger: Ledger,
    found: Found,
    data: Mapping[str, str],
    growing: list[Stage],
    console: Console,
) -> None:
    """Take over the finished stages of another run, if there is one."""
    earlier = earlier_run(ledger.directory, numbers_config(cfg), data, found.contents)
    if not earlier:
        return
    edited = edits(earlier.directory, earlier.compared, found.contents) if earlier.compared.changed else ""
    if not earlier.stages:
        refuse_other_model(earlier.directory, earlier.compared, found.contents, config)
        console.print(f"note: nothing is taken over from {earlier.directory}: {edited} changed since")
        return
    kept = growing if not edited else growing[: earlier.stages]
    taken = adopt(ledger, kept, earlier)
    stages = "finished stages" if earlier.answers_too else "trained stages"
    if earlier.answers_too:
        reason = "the list of tasks has grown"
    else:
        reason = (
            f"{edited} changed since"
            if edited
            else "only thresholds, the router, the rule, the quantization or single experts differ"
        )
    console.print(f"{taken} {stages} copied from {earlier.directory}: {reason}")


def note_contents(ledger: Ledger, found: Found) -> None:
    """Record the digests of a run's inputs, if its ledger lacks them.

    Args:
        ledger: of the run, held.
        found: directory and inputs of the run.
    """
    about = ledger.content["about"]
    if "contents" not in about:
        about["contents"] = found.contents.noted()
        ledger.commit()
    if not (ledger.directory / ROWS).exists():
        ledger.write(ledger.directory / ROWS, json.dumps(seal(found.contents.rows)))


def note_places(ledger: Ledger, cfg: DictConfig) -> None:
    """Update the paths of data and model in a finished run's ``config.yaml``, for commands that read them.

    Args:
        ledger: of the run, held.
        cfg: composed.
    """
    path = ledger.directory / "config.yaml"
    before, now = _with_places(path, cfg)
    if now != before:
        ledger.write(path, now)


def is_noted(directory: Path, cfg: DictConfig) -> bool:
    """Whether ``note_contents`` and ``note_places`` would change nothing in a finished run.

    Args:
        directory: of the run.
        cfg: composed.
    """
    before, now = _with_places(directory / "config.yaml", cfg)
    return before == now and "contents" in Ledger(directory).read().content["about"]


def _with_places(path: Path, cfg: DictConfig) -> tuple[str, str]:
    """The content of ``config.yaml``, empty if it is missing, and the content with the present paths of data and model."""
    if not path.exists():
        return "", sealed_settings(cfg)
    kept, now = read_settings(path), OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True))
    before = sealed_settings(kept)
    for name in ("benchmark.reader", "model.name", *(("order.experts",) if cfg.order.experts else ())):
        OmegaConf.update(kept, name, OmegaConf.select(now, name))
    if comparable(numbers_config(kept)) != comparable(numbers_config(cfg)):
        return before, before  # settings of another run stay unchanged
    return before, sealed_settings(kept)
