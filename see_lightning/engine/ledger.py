"""The ledger of a run: the record of finished work, updated atomically, so that a run may be killed at any moment.

``ledger.json`` names every final file with its sha256. Work that it does not name is repeated.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from see_lightning.config.schema import VARIANTS
from see_lightning.engine.hold import Hold
from see_lightning.errors import Refusal
from see_lightning.files.reading import file_bytes, sha256
from see_lightning.files.run_files import LedgerError as LedgerError
from see_lightning.files.run_files import check, read_file, read_records, seal, well_shaped
from see_lightning.files.run_shapes import NEEDED
from see_lightning.files.writing import (
    append,
    make_folder,
    refuse_link,
    refuse_links,
    refuse_links_in,
    remove_unfinished,
    write_text,
)

OOD, OOD_INPUT_ONLY = "ood", "ood_input_only"
#: Kinds of cached responses: to queries that experts decide on, the answers that ``transfer`` has each expert give, and those
#: that ``route`` needs.
REMEMBERED, FORCED, ROUTED = "remembered", "transfer_remembered", "route_remembered"
EVAL_SETS = (OOD, OOD_INPUT_ONLY, *VARIANTS)  # names of the eval sets beside the run's own
#: Files and folders of a run in its directory; all others are the user's.
OURS = (
    *(
        "config.yaml",
        "ledger.json",
        "rows.json",
        "matrix.csv",
        "report.html",
        "results.json",
        "answers",
        "tasks",
        "wandb",
        "tensorboard",
        "mlflow",
    ),
    *("study.json", "perplexity.json", "transfer.json", "route.json", "route.csv", "route.svg", "harness.json"),
    *(".lock-holder", ".lock"),
)


def _is_below(name: str) -> bool:
    """Whether a relative path stays within its folder."""
    return name.isprintable() and bool(name) and not {"", ".", ".."} & set(name.split("/"))


def dump(value: Any) -> str:
    """A value as JSON text, in the format of a run's files."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


class Ledger:
    """The ledger of one run directory. As a context it locks the directory for this process.

    The directory may be reached through symbolic links, and may be one that leads to a run; a run's files in it may not.

    Args:
        directory: of the run; made if missing.
        writes: False for a rank that keeps the same content in memory, while the first rank writes and locks.
    """

    def __init__(self, directory: Path, *, writes: bool = True) -> None:
        self.directory, self.writes = directory, writes
        self._made: list[Path] = []  # folders that this start created, the innermost first
        self._hold = Hold(directory)
        self.content: dict[str, Any] = {"about": {}, "stages": {}}

    def __enter__(self) -> "Ledger":
        if not self.writes:
            return self
        self._made = [folder for folder in (self.directory, *self.directory.parents) if not folder.exists()]
        # A link to a folder of other files would let them be replaced.
        if not (self.directory / "ledger.json").exists():
            refuse_link(self.directory)
        make_folder(self.directory)
        for name in OURS:
            refuse_link(self.directory / name)
        refuse_links_in(self.directory / "tasks")
        self._hold.take()
        try:
            remove_unfinished(self.directory)
            return self.read()
        except BaseException:
            self._hold.release()
            raise

    def check_held(self) -> None:
        """Refuse to write if another process may have locked the directory by now.

        Raises:
            LedgerError: directory or lock file is no longer the one that this process locked.
        """
        if self.writes:
            self._hold.check()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind and issubclass(kind, Refusal):
                self._abandon()
        finally:
            self._hold.release()

    def _abandon(self) -> None:
        """Remove the files of a run that was refused at its first start, so that it is not listed as unfinished."""
        if not self._made or not self._hold.is_taken() or Ledger(self.directory).read().content["stages"]:
            return
        for name in OURS:  # the lock last
            path = self.directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with suppress(OSError):  # a folder with other files stays
            for folder in self._made:
                folder.rmdir()

    def read(self) -> "Ledger":
        """Read ``ledger.json``, which needs no lock.

        Raises:
            LedgerError: ``ledger.json`` is damaged.
        """
        path = self.directory / "ledger.json"
        if path.exists():
            self.content = read_file(path)
            with well_shaped(path):
                invalid = [name for name in self._names() if not _is_below(name)]
                if invalid:
                    raise ValueError(f"{invalid[0][:60]!r} is no name of a stage or of its file")
        return self

    def _names(self) -> Iterator[str]:
        """Names of stages and of their files, which become parts of paths."""
        for name, stage in self.content["stages"].items():
            yield name
            yield from (stage["trained"] or {"files": ()})["files"]

    def facts(self) -> dict[str, Any]:
        """The facts about the run as a whole, with every field that a run of any version has.

        Raises:
            LedgerError: a field is missing.
        """
        about: dict[str, Any] = self.content["about"]
        with well_shaped(self.directory / "ledger.json"):
            check(about, NEEDED, "about")
        return about

    def commit(self) -> None:
        """Write all changes of ``content`` to ``ledger.json`` atomically; they are final then."""
        self.write(self.directory / "ledger.json", dump(seal(self.content)))

    def write(self, path: Path, text: str) -> None:
        """Replace a file of the run atomically; does nothing on ranks that do not write.

        Args:
            path: of the file, in the directory.
            text: its new content.

        Raises:
            LedgerError: the directory is no longer locked by this process.
            Refusal: the path leads through a link.
        """
        if self.writes:
            self.check_held()
            refuse_links(path, self.directory)
            try:
                write_text(path, text)
            except FileNotFoundError:  # between the check and the writing
                self.check_held()
                raise

    def about(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The facts about the run as a whole: those given here at the first start, the recorded ones at later starts."""
        if not self.content["about"]:
            self.content["about"] = dict(facts)
            self.commit()
        about: dict[str, Any] = self.content["about"]
        return about

    def stage(self, name: str) -> dict[str, Any]:
        """The entry of a stage: ``trained`` (files, counts, seconds), and by task ``answers`` and ``remembered``."""
        stage: dict[str, Any] = self.content["stages"].setdefault(name, {"trained": None, "answers": {}})
        return stage

    def folder(self, stage: str) -> Path:
        """The folder of a stage's files."""
        return self.directory / "tasks" / stage

    def begin(self, stage: str) -> Path:
        """Empty the folder of a stage that is about to be trained: a killed run may have left files there."""
        folder = self.folder(stage)
        if not self.writes:
            return folder
        self.check_held()
        refuse_links(folder, self.directory)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def only_final(self, stage: str, part: str) -> None:
        """Remove files that are not final from a subfolder of a trained stage's folder."""
        self.check_held()
        refuse_links(self.folder(stage) / part, self.directory)
        for path in (self.folder(stage) / part).iterdir():
            if f"{part}/{path.name}" not in self.stage(stage)["trained"]["files"]:
                path.unlink()

    def commit_trained(self, stage: str, files: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Make a stage's training final.

        Args:
            stage: its name.
            files: paths within its folder, already written; those that are final already are not hashed again.
            facts: counts and seconds for the report.
        """
        folder = self.folder(stage)
        final = (self.stage(stage)["trained"] or {}).get("files", {})
        hashes = {file: final[file] for file in files if file in final}
        for file in files if self.writes else ():
            if file in final:
                continue
            hashes[file] = sha256(folder / file)
        self.stage(stage)["trained"] = {**facts, "files": hashes}
        self.commit()

    def verified(self, stage: str) -> Path:
        """The folder of a trained stage, after a check of every file against its sha256.

        Raises:
            LedgerError: a file is missing or was changed.
        """
        folder = self.folder(stage)
        for file, expected in self.stage(stage)["trained"]["files"].items():
            path = folder / file
            with well_shaped(path):
                found = sha256(path) if path.exists() else "nothing"
            if found != expected:
                raise LedgerError(
                    f"{path} is damaged: sha256 {expected} was written, {found} is there. Put the file back, or delete"
                    f" {self.directory} to run again."
                )
        return folder

    def trained_tasks(self) -> list[str]:
        """The tasks whose training is final, in their order."""
        return [name.partition("-")[2] for name, stage in self.content["stages"].items() if stage["trained"]]

    def digest(self) -> str:
        """sha256 over data, trained files and last answers; stored with measurements of the run to detect outdated ones."""
        stages = self.content["stages"]
        trained = [stage["trained"]["files"] for stage in stages.values() if stage["trained"]]
        *_, last = stages.values()
        answers = {task: block["sha256"] for task, block in last["answers"].items()}
        facts = [self.content["about"]["data"], trained, answers]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def note_answers(
        self, stage: str, task: str, blocks: Mapping[str, Sequence[Mapping[str, Any]]], facts: Mapping[str, Any]
    ) -> None:
        """Append records of one task's test queries to the stage's files; final with the next commit.

        Args:
            stage: its name.
            task: name of the task.
            blocks: records by kind: ``answers``, ``remembered``; each kind has a file of its own.
            facts: counts and seconds for the report, recorded with the first kind.
        """
        for place, (kind, records) in enumerate(blocks.items()):
            final, name = self.stage(stage).setdefault(kind, {}), task
            while name in final:  # a later record of the same task; the final one stays unchanged
                name += "+"
            written = self._append(stage, kind, records) if self.writes else {}
            final[name] = {**(facts if place == 0 else {}), **written}

    def _append(self, stage: str, kind: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Append records to a file behind the final ones, and return their bytes and digest."""
        start = max((block["end"] for block in self.stage(stage).get(kind, {}).values()), default=0)
        block = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        path = self.folder(stage) / f"{kind}.jsonl"
        self.check_held()
        refuse_links(path, self.directory)
        path.parent.mkdir(parents=True, exist_ok=True)
        if block:
            append(path, start, block)  # overwrites lines of a killed run that did not become final
        return {"start": start, "end": start + len(block), "sha256": hashlib.sha256(block).hexdigest()}

    def answers(
        self, stage: str, kind: str = "answers", digests: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """The final answers of a stage.

        Args:
            stage: its name.
            kind: ``answers`` to the run's own queries, ``ood``, or a variant.
            digests: ``Task.asked`` by task: only answers to tasks in this state are returned; None returns all.

        Raises:
            LedgerError: the file was changed.
        """
        return self._records(stage, kind, digests)

    def remembered(self, stage: str, kind: str = REMEMBERED) -> list[dict[str, Any]]:
        """The responses of frozen experts that were cached at a stage; of two records with one key the later is valid.

        Args:
            stage: its name.
            kind: ``REMEMBERED`` (the run's own queries), ``FORCED``, ``ROUTED``, ``ood_remembered``, or that of a variant.

        Raises:
            LedgerError: the file was changed.
        """
        return self._records(stage, kind)

    def knows(self, stage: str, kind: str, task: str, digest: str) -> bool:
        """Whether answers of this kind to a task in its present state, the digest ``Task.asked``, are final after a stage."""
        blocks = self.stage(stage).get(kind, {}).values()
        return any(block["task"] == task and block["digest"] == digest for block in blocks)

    def _records(self, stage: str, kind: str, digests: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        path = self.folder(stage) / f"{kind}.jsonl"
        records: list[dict[str, Any]] = []
        with well_shaped(path):
            content = file_bytes(path) if path.exists() else b""
            for task, block in self.stage(stage).get(kind, {}).items():
                if digests is not None and digests.get(block["task"]) != block["digest"]:
                    continue
                lines = content[block["start"] : block["end"]]
                if hashlib.sha256(lines).hexdigest() != block["sha256"]:
                    raise LedgerError(
                        f"{path} is damaged: the answers to {task!r} (bytes {block['start']} to {block['end']}) are not those"
                        f" that were written. Put the file back, or delete {self.directory} to run again."
                    )
                records += read_records(lines, kind, path)
        return records
