"""The ledger of a run: what is finished, by one atomic act each, so a run may be killed at any moment.

``ledger.json`` names every file that is final, with its sha256. What it does not name does not count and is made anew.
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

OOD = "ood"
REMEMBERED, FORCED = (
    "remembered",
    "transfer_remembered",
)  # said of their own accord, and because they were told to answer
EVAL_SETS = (OOD, *VARIANTS)  # names of the eval sets beside the run's own
#: What a run keeps in its directory; anything else there is the user's.
OURS = (
    *("config.yaml", "ledger.json", "rows.json", "matrix.csv", "report.html", "results.json", "tasks", "wandb"),
    *("study.json", "perplexity.json", "transfer.json", "harness.json", ".lock-holder", ".lock"),
)


def _is_below(name: str) -> bool:
    """Whether a name, of a file or with its folders, leads nowhere but further down."""
    return name.isprintable() and bool(name) and not {"", ".", ".."} & set(name.split("/"))


def dump(value: Any) -> str:
    """JSON as the run's files hold it."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


class Ledger:
    """One run directory, held by one process at a time.

    The directory may lie behind links, and be one if it leads to a run; nothing of ours in it may be one.

    Args:
        directory: of the run; made if missing.
        writes: False for a rank that only follows: it notes what becomes final, and leaves files and hold to the first.
    """

    def __init__(self, directory: Path, *, writes: bool = True) -> None:
        self.directory, self.writes = directory, writes
        self._made: list[Path] = []  # folders that were not there before, the innermost first
        self._hold = Hold(directory)
        self.content: dict[str, Any] = {"about": {}, "stages": {}}

    def __enter__(self) -> "Ledger":
        if not self.writes:
            return self
        self._made = [folder for folder in (self.directory, *self.directory.parents) if not folder.exists()]
        if not (
            self.directory / "ledger.json"
        ).exists():  # a link to a folder of other files would let them be replaced
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
        """Stop before anything is written where another process may be at work by now.

        Raises:
            LedgerError: the directory, or the lock in it, is no longer the one that this process took.
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
        """Leave nothing of a run that was refused at its first start, so that nobody waits for its end."""
        if not self._made or not self._hold.is_taken() or Ledger(self.directory).read().content["stages"]:
            return
        for name in OURS:  # the lock last
            path = self.directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with suppress(OSError):  # notes of the user's, or runs of others, are there by now
            for folder in self._made:
                folder.rmdir()

    def read(self) -> "Ledger":
        """Take in what is final on disk; reading needs no hold on the directory.

        Raises:
            LedgerError: the ledger itself is damaged.
        """
        path = self.directory / "ledger.json"
        if path.exists():
            self.content = read_file(path)
            with well_shaped(path):
                strange = [name for name in self._names() if not _is_below(name)]
                if strange:
                    raise ValueError(f"{strange[0][:60]!r} is no name of a stage or of its file")
        return self

    def _names(self) -> Iterator[str]:
        """Of stages and their files, as they become parts of paths."""
        for name, stage in self.content["stages"].items():
            yield name
            yield from (stage["trained"] or {"files": ()})["files"]

    def facts(self) -> dict[str, Any]:
        """What the run was started with, all that every run notes.

        Raises:
            LedgerError: some of it is missing.
        """
        about: dict[str, Any] = self.content["about"]
        with well_shaped(self.directory / "ledger.json"):
            check(about, NEEDED, "about")
        return about

    def commit(self) -> None:
        """Make all that was noted since the last commit final, in one act."""
        self.write(self.directory / "ledger.json", dump(seal(self.content)))

    def write(self, path: Path, text: str) -> None:
        """Replace a file of the run as a whole; only the rank that writes does so.

        Args:
            path: of the file, in the directory.
            text: of the file.

        Raises:
            LedgerError: the directory is no longer held.
            Refusal: a link is on the way.
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
        """What the run was started with; noted at the first start, given back at every later one."""
        if not self.content["about"]:
            self.content["about"] = dict(facts)
            self.commit()
        about: dict[str, Any] = self.content["about"]
        return about

    def stage(self, name: str) -> dict[str, Any]:
        """What is noted of a stage: ``trained`` (files, counts, seconds), and by task ``answers`` and ``remembered``."""
        stage: dict[str, Any] = self.content["stages"].setdefault(name, {"trained": None, "answers": {}})
        return stage

    def folder(self, stage: str) -> Path:
        """Where a stage keeps its files."""
        return self.directory / "tasks" / stage

    def begin(self, stage: str) -> Path:
        """An empty folder for a stage that is about to be trained; what a killed run left there goes."""
        folder = self.folder(stage)
        if not self.writes:
            return folder
        self.check_held()
        refuse_links(folder, self.directory)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def only_final(self, stage: str, part: str) -> None:
        """Remove what is not final from a part of a trained stage's folder."""
        self.check_held()
        refuse_links(self.folder(stage) / part, self.directory)
        for path in (self.folder(stage) / part).iterdir():
            if f"{part}/{path.name}" not in self.stage(stage)["trained"]["files"]:
                path.unlink()

    def commit_trained(self, stage: str, files: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Make a stage's training final.

        Args:
            stage: its name.
            files: paths within its folder, all on disk by now; those that were final before are taken to be unchanged.
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
        """The folder of a trained stage, every file of it checked against its sha256.

        Raises:
            LedgerError: a file is missing or is not what was written.
        """
        folder = self.folder(stage)
        for file, expected in self.stage(stage)["trained"]["files"].items():
            path = folder / file
            with well_shaped(path):
                found = sha256(path) if path.exists() else "nothing"
            if found != expected:
                raise LedgerError(
                    f"{path} is damaged: sha256 {expected} was written, {found} is there. Put the file back, or delete"
                    f" {self.directory} to run anew."
                )
        return folder

    def digest(self) -> str:
        """sha256 over the data, every trained file and the last answers: what is derived from them belongs to this run."""
        stages = self.content["stages"]
        trained = [stage["trained"]["files"] for stage in stages.values() if stage["trained"]]
        *_, last = stages.values()
        answers = {task: block["sha256"] for task, block in last["answers"].items()}
        facts = [self.content["about"]["data"], trained, answers]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def note_answers(
        self, stage: str, task: str, blocks: Mapping[str, Sequence[Mapping[str, Any]]], facts: Mapping[str, Any]
    ) -> None:
        """Append what one task's test split brought to the stage's files; final with the next commit.

        Args:
            stage: its name.
            task: whose queries were asked.
            blocks: records by kind: ``answers``, ``remembered``; each kind has a file of its own.
            facts: counts and seconds for the report; they go with the first kind.
        """
        for place, (kind, records) in enumerate(blocks.items()):
            final, name = self.stage(stage).setdefault(kind, {}), task
            while name in final:  # asked once more, with something new: what was final stays so
                name += "+"
            written = self._append(stage, kind, records) if self.writes else {}
            final[name] = {**(facts if place == 0 else {}), **written}

    def _append(self, stage: str, kind: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Write records behind the final ones, and say where they stand."""
        start = max((block["end"] for block in self.stage(stage).get(kind, {}).values()), default=0)
        block = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        path = self.folder(stage) / f"{kind}.jsonl"
        self.check_held()
        refuse_links(path, self.directory)
        path.parent.mkdir(parents=True, exist_ok=True)
        if block:
            append(path, start, block)  # behind it a killed run may have left lines that were never made final
        return {"start": start, "end": start + len(block), "sha256": hashlib.sha256(block).hexdigest()}

    def answers(
        self, stage: str, kind: str = "answers", digests: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """The final answers of a stage.

        Args:
            stage: its name.
            kind: ``answers`` to the run's own queries, ``ood``, or a variant.
            digests: of the tasks that count, by name (``Task.asked``); None takes all that were ever asked.

        Raises:
            LedgerError: the file is not what was written.
        """
        return self._records(stage, kind, digests)

    def remembered(self, stage: str, kind: str = REMEMBERED) -> list[dict[str, Any]]:
        """The responses of frozen experts that were cached at a stage; of two records of one key the later one counts.

        Args:
            stage: its name.
            kind: ``remembered`` of the run's own queries, ``FORCED``, or ``ood_remembered`` and the like of a variant.

        Raises:
            LedgerError: the file is not what was written.
        """
        return self._records(stage, kind)

    def knows(self, stage: str, kind: str, task: str, digest: str) -> bool:
        """Whether a task of a kind was answered after a stage, just so as it is asked now (``Task.asked``)."""
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
                        f" that were written. Put the file back, or delete {self.directory} to run anew."
                    )
                records += read_records(lines, kind, path)
        return records
