"""Experts that are not trained as all others are: imported ones, and the file that says where a task's expert comes from."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from see_lightning.adapters.files import CONFIG, EXPERT_FILE
from see_lightning.adapters.foreign import read_foreign
from see_lightning.config.origins import Origin
from see_lightning.errors import ConfigError
from see_lightning.files.run_files import read_file
from see_lightning.files.writing import make_folder, write_text
from see_lightning.methods.method import Method
from see_lightning.routing.walk import Walk

FILE = "origin.json"  # in the folder of a task without an expert, and of an imported expert


def write_origin(folder: Path, content: Mapping[str, Any]) -> None:
    """Write where a task's expert comes from into its folder, which is made."""
    make_folder(folder)
    write_text(folder / FILE, json.dumps(content, ensure_ascii=False) + "\n")


def read_origin(folder: Path) -> dict[str, Any]:
    """What ``write_origin`` wrote into a folder; empty for an expert that was trained.

    Returns:
        ``from``: the imported folder, None if the task has no expert; ``verdicts``: whether it gives verdicts.
    """
    return read_file(folder / FILE) if (folder / FILE).exists() else {}


def check_folders(origins: Mapping[str, Origin]) -> None:
    """Refuse folders without an adapter, before anything is trained.

    Raises:
        ConfigError: a folder or its adapter is missing.
    """
    for task, origin in origins.items():
        if origin.folder is not None and not (Path(origin.folder).expanduser() / CONFIG).is_file():
            raise ConfigError(
                f"order.experts.{task}={origin.folder} has no {CONFIG}; give the folder of a LoRA adapter that PEFT has"
                f" saved, none, or settings such as {{epochs: 5}}."
            )


def import_expert(method: Method, task: str, source: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Load a PEFT folder's adapter into a task's new expert.

    Args:
        method: has an expert of this name, whose weights are replaced.
        task: name of the expert.
        source: the folder.
        facts: of the run's experts, see ``build.expert_facts``.

    Returns:
        The content of ``origin.json``, with ``notes`` on what differs from the run's own experts.

    Raises:
        ConfigError: the adapter cannot be an expert of this run.
    """
    method.pool.load_weights(task, read_foreign(method.pool, task, source))
    about = read_file(source / EXPERT_FILE) if (source / EXPERT_FILE).exists() else {}
    verdicts = method.traits.learns_refusals and _gives_verdicts(about, source, facts)
    if method.traits.learns_refusals and not verdicts:
        if "learns_refusals" in method.router.needs and not isinstance(method.router, Walk):
            raise ConfigError(
                f"{source} holds an adapter that gives no verdicts, and this run's router needs them of every expert; import"
                f" it into a run without router=, where it answers what the others refuse, or with router=analytic."
            )
        if getattr(method, "second_chance", None):
            raise ConfigError(
                f"{source} holds an adapter that never refuses, so nothing is left for method.second_chance=on; leave that"
                f" out."
            )
        method.never_refusing.append(task)
    trained_on, base = read_file(source / CONFIG).get("base_model_name_or_path"), facts["base_model"]
    notes = [f"it was trained on the base model {trained_on}; here this is {base}"] if trained_on != base else []
    if about and about.get("template_sha256") != facts["template_sha256"]:
        notes.append("it was trained with prompts of another form")
    return {"from": str(source), "verdicts": verdicts, "notes": notes}


def _gives_verdicts(about: Mapping[str, Any], source: Path, facts: Mapping[str, Any]) -> bool:
    """Whether an adapter has learned to accept and to refuse with the run's indicators.

    Args:
        about: content of its ``expert.json``; empty if there is none, as in folders of other programs.
        source: its folder.
        facts: of the run's experts.

    Raises:
        ConfigError: it accepts and refuses with other indicators.
    """
    refused = about.get("training", {}).get("negatives", 0) > 0
    if not about.get("verdicts", refused):
        return False
    theirs, ours = about["indicators"], facts["indicators"]
    if theirs != ours:
        raise ConfigError(
            f"{source} accepts with {theirs['pos']!r} and refuses with {theirs['neg']!r}; this run's experts do so with"
            f" {ours['pos']!r} and {ours['neg']!r}."
        )
    return True


def has_expert(method: Method, task: str, folder: Path) -> bool:
    """Whether the folder of a task's stage holds an expert; the method is told of one that never refuses."""
    origin = read_origin(folder)
    if origin and origin["from"] is None:
        return False
    if origin and method.traits.learns_refusals and not origin["verdicts"]:
        method.never_refusing.append(task)
    return True


@contextmanager
def own_settings(method: Method, training: Mapping[str, float]) -> Iterator[None]:
    """A context in which a method makes and trains an expert with the learning rate and the seed of one task.

    Args:
        method: of the run.
        training: see ``config.origins.Origin``.
    """
    optim, run_seed = method.optim, method.run_seed
    method.optim = replace(optim, lr=training.get("lr", optim.lr))
    method.run_seed = int(training.get("seed", run_seed))
    try:
        yield
    finally:
        method.optim, method.run_seed = optim, run_seed
