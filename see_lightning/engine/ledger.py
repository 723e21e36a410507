"""The ledger of a run: what is finished, by one atomic act each, so a run may be killed at any moment.

``ledger.json`` names every file that is final, with its sha256. What it does not name does not count and is made anew.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock

from see_lightning.config import VARIANTS, Refusal

OOD = "ood"
REMEMBERED, FORCED = (
    "remembered",
    "transfer_remembered",
)  # said of their own accord, and because they were told to answer
BESIDE = (OOD, *VARIANTS)  # kinds of queries beside the run's own
UNFINISHED = ".tmp"  # ends the name of a file that is being written


class LedgerError(Refusal):
    """A run directory that cannot be used as it is; the message names the file and what to do."""


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Replace a file as a whole: at any moment its old or its new text is there, never a part.

    The new text is written beside the target, for a rename across file systems would be a copy.
    """
    beside = path.with_name(f".{path.name}{UNFINISHED}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must reach the disk
    finally:
        os.close(folder)


def dump(value: Any) -> str:
    """JSON as the run's files hold it."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def finished_results(run_dir: Path, why: str) -> dict[str, Any]:
    """The content of a finished run's ``results.json``.

    Args:
        run_dir: of the run.
        why: what needs it to be finished, for the refusal.

    Raises:
        Refusal: there is no run, or it is not finished.
    """
    if not (run_dir / "ledger.json").exists():
        raise Refusal(f"{run_dir} holds no run; give the folder that has ledger.json in it.")
    path = run_dir / "results.json"
    if not path.exists():
        command = Ledger(run_dir).read().content["about"].get("command")
        raise Refusal(f"{run_dir} is not finished, and {why}; go on with: {command}")
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


class Ledger:
    """One run directory, held by one process at a time.

    Args:
        directory: of the run; made if missing.
        writes: False for a rank that only follows: it notes what becomes final, and leaves files and hold to the first.
    """

    def __init__(self, directory: Path, *, writes: bool = True) -> None:
        self.directory, self.writes = directory, writes
        self._made: list[Path] = []  # folders that were not there before, the innermost first
        self._lock = filelock.FileLock(directory / ".lock")
        self.content: dict[str, Any] = {"about": {}, "stages": {}}

    def __enter__(self) -> "Ledger":
        if not self.writes:
            return self
        self._made = [folder for folder in (self.directory, *self.directory.parents) if not folder.exists()]
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # in /proc, say, where nobody makes folders
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.directory)) from error
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            holder = self.directory / ".lock-holder"
            who = holder.read_text() if holder.exists() else "another process"
            raise LedgerError(
                f"{self.directory} is in use by {who}. Wait for it, or give this run another seed or paths.runs."
            ) from None
        try:
            (self.directory / ".lock-holder").write_text(f"process {os.getpid()} on {os.uname().nodename}")
            for unfinished in self.directory.rglob(f".*{UNFINISHED}"):
                unfinished.unlink()  # its writer was killed
            return self.read()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind and issubclass(kind, Refusal):
            self._abandon()
        self._lock.release()

    def _abandon(self) -> None:
        """Leave nothing of a run that was refused at its first start, so that nobody waits for its end."""
        if not self._made or Ledger(self.directory).read().content["stages"]:
            return
        shutil.rmtree(self.directory)
        with suppress(OSError):  # it holds runs of others by now
            for folder in self._made[1:]:
                folder.rmdir()

    def read(self) -> "Ledger":
        """Take in what is final on disk; reading needs no hold on the directory.

        Raises:
            LedgerError: the ledger itself is damaged.
        """
        path = self.directory / "ledger.json"
        if path.exists():
            try:
                self.content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise LedgerError(f"{path} is damaged ({error}); move {self.directory} away to start anew.") from error
        return self

    def commit(self) -> None:
        """Make all that was noted since the last commit final, in one act."""
        if self.writes:
            write_atomic(self.directory / "ledger.json", dump(self.content))

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
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def only_final(self, stage: str, part: str) -> None:
        """Remove what is not final from a part of a trained stage's folder."""
        for path in (self.folder(stage) / part).iterdir():
            if f"{part}/{path.name}" not in self.stage(stage)["trained"]["files"]:
                path.unlink()

    def commit_trained(self, stage: str, files: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Make a stage's training final.

        Args:
            stage: its name.
            files: paths within its folder, all written by now; those that were final before are taken to be unchanged.
            facts: counts and seconds for the report.
        """
        folder = self.folder(stage)
        final = (self.stage(stage)["trained"] or {}).get("files", {})
        hashes = {file: final[file] for file in files if file in final}
        for file in files if self.writes else ():
            if file in final:
                continue
            with (folder / file).open("rb") as written:
                os.fsync(written.fileno())
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
        path.parent.mkdir(parents=True, exist_ok=True)
        if block:
            with path.open("r+b" if path.exists() else "w+b") as file:
                file.truncate(start)  # a killed run may have left lines that were never made final
                file.seek(start)
                file.write(block)
                file.flush()
                os.fsync(file.fileno())
        return {"start": start, "end": start + len(block), "sha256": hashlib.sha256(block).hexdigest()}

    def answers(self, stage: str) -> list[dict[str, Any]]:
        """The final answers of a stage.

        Raises:
            LedgerError: the file is not what was written.
        """
        return self._records(stage, "answers")

    def remembered(self, stage: str, kind: str = REMEMBERED) -> list[dict[str, Any]]:
        """What frozen experts said for the first time at a stage; of two records of one key the later one counts.

        Args:
            stage: its name.
            kind: what they said in answering for the run, or ``FORCED``.

        Raises:
            LedgerError: the file is not what was written.
        """
        return self._records(stage, kind)

    def beside(
        self, stage: str, kind: str, digests: Mapping[str, str] | None = None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Answers after a stage to queries beside the run's own, and what was said to them for the first time.

        Args:
            stage: its name.
            kind: of these queries: ``ood``, or a variant.
            digests: of the tasks that count, by name (``Task.asked``); None takes all that were ever asked.

        Raises:
            LedgerError: a file is not what was written.
        """
        return self._records(stage, kind, digests), self._records(stage, f"{kind}_remembered")

    def knows(self, stage: str, kind: str, task: str, digest: str) -> bool:
        """Whether a task of a kind was answered after a stage, just so as it is asked now (``Task.asked``)."""
        blocks = self.stage(stage).get(kind, {}).values()
        return any(block["task"] == task and block["digest"] == digest for block in blocks)

    def _records(self, stage: str, kind: str, digests: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        path = self.folder(stage) / f"{kind}.jsonl"
        records: list[dict[str, Any]] = []
        content = path.read_bytes() if path.exists() else b""
        for task, block in self.stage(stage).get(kind, {}).items():
            if digests is not None and digests.get(block["task"]) != block["digest"]:
                continue
            lines = content[block["start"] : block["end"]]
            if hashlib.sha256(lines).hexdigest() != block["sha256"]:
                raise LedgerError(
                    f"{path} is damaged: the answers to {task!r} (bytes {block['start']} to {block['end']}) are not those"
                    f" that were written. Put the file back, or delete {self.directory} to run anew."
                )
            records += [json.loads(line) for line in lines.splitlines()]
        return records
