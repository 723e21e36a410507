"""Finds a run's directory: that of an earlier start of the same experiment, even if its data have moved, or a new one."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from see_lightning.config.former_names import folder_names
from see_lightning.config.identity import key_of, method_name, numbers_config, switched_on, with_values
from see_lightning.config.schema import RunConfig
from see_lightning.engine.contents import (
    MODEL,
    ROWS,
    Contents,
    changed_rows,
    model_places,
    placed,
    places,
    read_model,
    task_name,
    without_places,
)
from see_lightning.engine.ledger import Ledger, LedgerError
from see_lightning.engine.user_files import source_files
from see_lightning.errors import Refusal, listed
from see_lightning.files.run_files import read_file, well_shaped
from see_lightning.models.digest import changed_files
from see_lightning.tasks.task import is_same_data

Digests = Callable[[], Mapping[str, str]]


@dataclass(slots=True)
class Compared:
    """The comparison of a run's present inputs with those of an earlier start or another run.

    Args:
        changed: inputs (names as in ``Contents``) whose content differs.
        same_place: the changed inputs whose path or name is the same.
        unread: inputs that cannot be read now, so they were not compared.
    """

    changed: list[str] = field(default_factory=list)
    same_place: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def forget(self, names: Iterable[str]) -> None:
        """Leave inputs out of the comparison."""
        left_out = {*names}
        for found in (self.changed, self.same_place, self.unread):
            found[:] = [name for name in found if name not in left_out]

    @property
    def is_edited(self) -> bool:
        """Whether inputs changed, and all of them at the same path: the user edited them, and did not choose others."""
        return bool(self.changed) and self.changed == self.same_place


@dataclass(frozen=True, slots=True)
class Found:
    """The directory and the inputs of a run.

    Args:
        directory: of the run; may not exist yet.
        settings: from which the run key is computed.
        contents: its inputs.
        notes: notices about edited inputs of other runs, and about inputs that could not be compared.
        left_out: notices about damaged runs beside it, which were not compared.
    """

    directory: Path
    settings: dict[str, Any]
    contents: Contents
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def compare(
    ours: Contents,
    about: Mapping[str, Any],
    digests: Digests,
    *,
    tasks: list[str] | None = None,
    one_name: bool = False,
) -> Compared:
    """Compare the inputs of a run with those of another.

    Args:
        ours: inputs of the run.
        about: ``about`` in the other run's ledger.
        digests: gives the digests of our tasks by name, for runs of versions whose ledgers have no digests of rows.
        tasks: those of our tasks that are compared; None for all.
        one_name: whether both have the same run key, so that inputs with a name instead of a path are the same.
    """
    theirs = about.get("contents") or _old_contents(about)
    left_out = (
        () if tasks is None else {name for name in ours.digests if name.startswith("task ")} - {*map(task_name, tasks)}
    )
    found = Compared()
    for name in (name for name in ours.digests if name not in left_out):
        now, then = ours.digests[name], theirs["digests"].get(name)
        here, there = ours.places.get(name) or ["packaged"], theirs["places"].get(name) or ["packaged"]
        together = one_name or not set(here).isdisjoint(there)
        if now and not then and name.startswith("task "):
            now, then = _of_task(name.removeprefix("task "), about, digests)
        if name == MODEL and together and now and then:
            alike = not changed_files(theirs["files"], ours.files, chat=_is_chat(about))
        elif now and then:
            alike = is_same_data(then, now)
        elif now is None:
            alike = together
            if together and (then or name != MODEL):
                found.unread.append(name)
        else:
            alike = together  # the other run has no digest
        if not alike:
            found.changed.append(name)
            if together:
                found.same_place.append(name)
    return found


def _of_task(task: str, about: Mapping[str, Any], digests: Digests) -> tuple[str | None, str | None]:
    try:
        return digests().get(task), about["data"].get(task)
    except Refusal:
        return None, None


def _old_contents(about: Mapping[str, Any]) -> dict[str, Any]:
    """The paths in the settings of a run of an earlier version, whose ledger has no digests."""
    kept = about.get("numbers")
    if kept is None:
        return {"digests": {}, "places": {}}
    own = {
        task_name(task): [place for path in _texts(kept["benchmark"]["reader"], task) for place in places(path)]
        for task in kept["order"]["tasks"]
    }
    files = {name: places(source) for name, source in source_files(kept).items()}
    return {
        "digests": {},
        "places": {**own, MODEL: model_places(kept["model"]), **files},
    }


def _texts(reader: Mapping[str, Any], task: str) -> list[str]:
    of = (reader.get("datasets") or {}).get(task, reader)
    return [value for key, value in of.items() if isinstance(value, str) and key in ("folder", "path")]


def _is_same_experiment(theirs: dict[str, Any] | None, kept: dict[str, Any], *, one_name: bool) -> bool:
    """Whether another run has these settings, paths aside; one without settings in its ledger is compared by its key."""
    if theirs is None:
        return one_name
    # Compared first: the other run's reader may be a class that no longer exists, and is not imported.
    return _reader(theirs) == _reader(kept) and comparable(theirs) == comparable(kept)


def find_run(cfg: DictConfig, config: RunConfig, contents: Contents, digests: Digests) -> Found:
    """Find the directory of this experiment, ``runs/<order>/<method>/<key>/seed=<n>``, by its settings and inputs.

    Args:
        cfg: composed.
        config: its typed form.
        contents: its inputs.
        digests: gives the digests of its tasks by name.

    Raises:
        LedgerError: the run was started with other files of a model of the same name, or its ledger is damaged.
    """
    kept = numbers_config(cfg)
    order = Path(config.paths.runs) / config.order.name
    roots = [order / name for name in folder_names(method_name(cfg))]
    seed = f"seed={config.seed}"
    settings = with_values(kept, placed(kept, contents.digests))
    key, old_key = key_of(settings), key_of(kept)
    same: list[tuple[tuple[Any, ...], Path, Compared]] = []
    siblings: list[Path] = []
    edited: list[tuple[float, Path, Compared]] = []
    left_out: list[str] = []
    for path in sorted(path for root in roots for path in root.glob("*/seed=*/ledger.json")):
        other = path.parent
        one_name = other.parent.name in (key, old_key)
        try:
            about = Ledger(other).read().content["about"]
            if "data" not in about:  # never started
                continue
            with well_shaped(path):
                if not _is_same_experiment(about.get("numbers"), kept, one_name=one_name):
                    continue
                compared = compare(contents, about, digests, one_name=one_name)
        except LedgerError as error:
            if one_name and other.name == seed:
                raise
            left_out.append(f"left out, as a run beside this one: {error}")
            continue
        if other.name != seed:
            if not compared.changed and not compared.unread:
                siblings.append(other.parent)
        elif not compared.changed:
            names = (other.parent.name == key, other.parent.name == old_key, (other / "results.json").exists())
            same.append(((-len(compared.unread), *names, path.stat().st_mtime), other, compared))
        elif compared.is_edited:
            edited.append((path.stat().st_mtime, other, compared))
    if same:
        _, directory, compared = max(same, key=lambda one: one[0])
        return Found(directory, settings, contents, tuple(_unread(directory, compared, contents)), tuple(left_out))
    for _, other, compared in edited:
        refuse_other_model(other, compared, contents, config)
    directory = (siblings[0] if siblings else roots[0] / key) / seed
    if (directory / "ledger.json").exists():  # a run on other inputs has this key
        settings = with_values(kept, placed(kept, contents.digests, everything=True))
        directory = roots[0] / key_of(settings) / seed
    notes = tuple(_edited(directory, edited, contents)) if contents.digests else ()
    return Found(directory, settings, contents, notes, tuple(left_out))


def _reader(kept: Mapping[str, Any]) -> str:
    return str(kept["benchmark"]["reader"]["_target_"])


def comparable(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run without paths and without settings that are switched off, as JSON has them."""
    plain = without_places({**kept, "method": switched_on(kept["method"])})
    read: dict[str, Any] = json.loads(json.dumps(plain))
    return read


def _about(directory: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = Ledger(directory).read().content["about"]
    except (LedgerError, OSError):  # refused where that run is needed
        return {}
    return about


def refuse_other_model(other: Path, compared: Compared, contents: Contents, config: RunConfig) -> None:
    """Refuse to continue a run with other weights under the same model name.

    Raises:
        LedgerError: the run has trained stages, and of its inputs only the model's files changed.
    """
    begun = any(stage["trained"] for stage in Ledger(other).read().content["stages"].values())
    if compared.changed == [MODEL] and begun:
        about = _about(other)
        changed = changed_files(about["contents"]["files"], contents.files, chat=_is_chat(about))
        raise LedgerError(_other_model(other, config.model.name, changed))


def _other_model(directory: Path, name: str, changed: list[str]) -> str:
    """The message about a base model whose files differ from those of a run."""
    return (
        f"{directory} was made with other files of the model {name}: {listed(changed)} changed since. Put them back"
        f" (for a model of the Hub, give the model.revision of then), or give another paths.runs."
    )


def _is_chat(about: Mapping[str, Any]) -> bool:
    """Whether a run uses the chat template of its model; so does one whose ledger has no settings."""
    return bool(about.get("numbers", {}).get("model", {}).get("prompt", "chat") == "chat")


def edits(other: Path, compared: Compared, contents: Contents) -> str:
    """The changes of the inputs since a run was made, in words."""
    path = other / ROWS
    try:
        before = read_file(path)
    except LedgerError:
        before = {}
    changes = []
    for name in compared.changed:
        task = name.removeprefix("task ")
        if name == MODEL:
            about = _about(other)
            theirs = about.get("contents", {}).get("files", {})
            changes.append(f"the model's {listed(changed_files(theirs, contents.files, chat=_is_chat(about)))}")
        elif task not in before or task not in contents.rows:
            changes.append(task)
        else:
            changes.append(f"{task} ({changed_rows(before[task], contents.rows[task])})")
    return ", ".join(changes)


def _unread(directory: Path, compared: Compared, contents: Contents) -> Iterator[str]:
    if compared.unread:
        names = ", ".join(name.removeprefix("task ") for name in compared.unread)
        reason = next((contents.missing[name] for name in compared.unread if name in contents.missing), "")
        yield f"inputs that cannot be read were not compared with those of {directory}: {names} ({reason})"


def _edited(directory: Path, edited: list[tuple[float, Path, Compared]], contents: Contents) -> Iterator[str]:
    if edited:
        _, other, compared = max(edited, key=lambda one: one[0])
        more = f" and {len(edited) - 1} more" if len(edited) > 1 else ""
        yield (
            f"changed since {other} was made{more}: {edits(other, compared, contents)}; this command has a run of its own,"
            f" {directory}"
        )


def check_model(ledger: Ledger, config: RunConfig, *, note: bool = False) -> None:
    """Refuse a base model whose files differ from those with which a run was started.

    Args:
        ledger: of the run.
        config: of the run.
        note: whether to record the files' digests if the ledger, which is held, lacks them.

    Raises:
        LedgerError: a file differs. Files without a recorded digest are not compared.
    """
    noted = ledger.content["about"].get("contents")
    now = Contents()
    read_model(now, config)
    if not noted or not now.files:
        return
    if changed := changed_files(noted["files"], now.files, chat=config.model.prompt == "chat"):
        raise LedgerError(_other_model(ledger.directory, config.model.name, changed))
    if note and "config.json" not in noted["files"] and noted["files"] != now.files:
        noted["files"], noted["digests"][MODEL] = now.files, now.digests[MODEL]
        ledger.commit()
