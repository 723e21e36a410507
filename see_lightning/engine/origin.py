"""Experts that are not trained as all others are: imported ones, and the file that says where a task's expert comes from."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from see_lightning.adapters.files import CONFIG, EXPERT_FILE
from see_lightning.adapters.foreign import read_foreign
from see_lightning.errors import ConfigError
from see_lightning.files.run_files import read_file
from see_lightning.files.writing import make_folder, write_text
from see_lightning.methods.method import Method
from see_lightning.routing.router import Router
from see_lightning.routing.walk import needs_every_verdict

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


def check_never_refusing(source: Path, router: type[Router], *, second_chance: bool) -> None:
    """Refuse an adapter without verdicts where every expert must give them.

    Args:
        source: of the adapter.
        router: of the run.
        second_chance: whether refused queries are put to an expert again.

    Raises:
        ConfigError: it cannot be used.
    """
    if needs_every_verdict(router):
        raise ConfigError(
            f"{source} holds an adapter that gives no verdicts, and this run's router needs them of every expert; use it in a"
            f" run without router=, where it answers what the others refuse, or with router=analytic."
        )
    if second_chance:
        raise ConfigError(
            f"{source} holds an adapter that never refuses, so nothing is left for method.second_chance=on; leave that out."
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
    pool = method.pool
    pool.load_weights(task, read_foreign(source, pool.layers, pool.adapter, pool.header_ids))
    verdicts = method.traits.learns_refusals and gives_verdicts(source, facts["indicators"])
    if method.traits.learns_refusals and not verdicts:
        _add_never_refusing(method, task, source)
    base = str(facts["base_model"])
    trained_on = _about(source).get("base_model") or read_file(source / CONFIG).get("base_model_name_or_path")
    is_same = trained_on in (base, base.partition("@")[0], pool.place)
    notes = [] if is_same else [f"it was trained on the base model {trained_on}; here this is {base}"]
    then, now = (facts.get("base_quantization", "none") for facts in (_about(source), facts))
    if then != now:
        notes.append(f"it was trained with model.quantization={then}; here it answers with {now}")
    if _about(source).get("template_sha256", facts["template_sha256"]) != facts["template_sha256"]:
        notes.append("it was trained with prompts of another form")
    return {"from": str(source), "verdicts": verdicts, "notes": notes}


def _about(source: Path) -> dict[str, Any]:
    """The content of ``expert.json`` of an adapter that this package has trained; empty for others."""
    return read_file(source / EXPERT_FILE) if (source / EXPERT_FILE).exists() else {}


def gives_verdicts(source: Path, indicators: Mapping[str, str]) -> bool:
    """Whether an adapter has learned to accept and to refuse with a run's indicators.

    Args:
        source: its folder.
        indicators: of the run: ``pos`` and ``neg``.

    Raises:
        ConfigError: it does so with other indicators, or an earlier version did not note whether it does.
    """
    about = _about(source)
    refused = about.get("training", {}).get("negatives", 0) > 0
    if about and "verdicts" not in about and not refused:
        raise ConfigError(
            f"{source / EXPERT_FILE} is of a version that did not note whether an expert gives verdicts; export it first:"
            f" see-lightning experts RUN_DIR export TASK DIR."
        )
    if not about.get("verdicts", refused):
        return False
    theirs = about["indicators"]
    if theirs != dict(indicators):
        raise ConfigError(
            f"{source} accepts with {theirs['pos']!r} and refuses with {theirs['neg']!r}; this run's experts do so with"
            f" {indicators['pos']!r} and {indicators['neg']!r}."
        )
    return True


def _add_never_refusing(method: Method, task: str, source: Path) -> None:
    check_never_refusing(source, type(method.router), second_chance=bool(getattr(method, "second_chance", None)))
    method.never_refusing.append(task)


def has_expert(method: Method, task: str, folder: Path) -> bool:
    """Whether the folder of a task's stage holds an expert; one without verdicts is added to ``method.never_refusing``."""
    origin = read_origin(folder)
    if origin and origin["from"] is None:
        return False
    if origin and method.traits.learns_refusals and not origin["verdicts"]:
        _add_never_refusing(method, task, folder)
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
