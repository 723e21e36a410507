"""Two trackers of a run: a Lightning logger for each stage, and Weights & Biases, whose client runs in a process too."""

import os
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger

from see_lightning.config.checks import one_of, within
from see_lightning.engine.preemption import StopSignal
from see_lightning.engine.record import commit
from see_lightning.engine.relay import Relay, Relayed, notice
from see_lightning.engine.tracked import cells, files, numbers, of_cell, of_stage, pictures, settings
from see_lightning.engine.tracker import TIMEOUT, ThreadTracker, Tracker, kept_id, needs
from see_lightning.engine.wandb_process import Client, Lost
from see_lightning.errors import ConfigError
from see_lightning.files.writing import write_text

LOG_HEAD = 7  # bytes of the head of W&B's transaction log


class StageLoggers(ThreadTracker):
    """A Lightning logger for each stage, in the stage's folder.

    Args:
        logger: class or function that makes a logger from ``save_dir``.
        timeout: seconds that the run waits for it at its end.
    """

    def __init__(self, *, logger: Callable[..., Logger], timeout: float = TIMEOUT) -> None:
        kind = getattr(logger, "func", logger)
        super().__init__(str(getattr(kind, "__name__", kind)), timeout)
        self.logger = logger

    def stage(self, task: str, folder: Path) -> Logger | Literal[False]:
        """A new logger, made and called in the thread."""
        put, loggers = self.put, list[Logger]()
        put(lambda: loggers.append(self.logger(save_dir=str(folder))))

        def log(metrics: dict[str, float], step: int | None) -> None:
            put(lambda: (loggers[0].log_metrics(metrics, step), loggers[0].save()))

        return Relayed(log, self.name, lambda status: put(lambda: loggers[0].finalize(status)))

    def where(self) -> str:
        """Each stage has files of its own."""
        return " from its files"


class WandbTracker(Tracker):
    """One W&B run for each run directory, over all stages and resumptions.

    Its id is kept beside W&B's own files: if the directory is deleted, the next run is a new one in W&B too. Within a sweep
    the agent has set id and project. If the server or W&B's client fails, later reports are kept for ``wandb sync``.

    Args:
        project: W&B project of the run.
        entity: user or team; None takes that of the login.
        mode: ``online``; ``offline``: kept in the run directory for ``wandb sync``; ``disabled``.
        name: of the run; None is ``<order>/<method>/<key>/seed=<n>``.
        group: of the run; None is the same without the seed.
        tags: of the run.
        timeout: seconds to wait for the server's first answer, and at the end of the run.

    Raises:
        ConfigError: the mode is unknown, or W&B is not installed.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        mode: str,
        name: str | None,
        group: str | None,
        tags: Sequence[str],
        timeout: float = TIMEOUT,
    ) -> None:
        one_of("logger.mode", mode, ("online", "offline", "disabled"))
        within("logger.timeout", timeout, 0)
        needs("wandb", "wandb")
        self.project, self.entity, self.mode = project, entity, mode
        self.name, self.group, self.tags, self.timeout = name, group, tags, timeout
        self._relay: Relay | None = None
        self._client: Client | None = None
        self._mode = mode  # becomes offline after a failure
        self._folders: list[str] = []  # W&B's folders in the run directory that this process wrote
        self._metrics: list[tuple[str, str]] = []
        self._is_complete = self._is_over = False  # whether all reports reached the client; whether it is ended
        self._latest = float("inf")  # deadline of W&B's answers, by the monotonic clock

    def open(self, directory: Path, config: Mapping[str, Any], stop_signal: StopSignal) -> None:
        """Start W&B's client. Settings are reported under their dotted names, as on the command line and in sweeps."""
        if self.mode == "disabled":
            return
        *group, seed = directory.parts[-4:]
        kept = directory / "wandb" / "id"
        run_id = kept_id(kept, "W&B") or f"{group[-1]}-{seed.removeprefix('seed=')}-{secrets.token_hex(3)}"
        in_sweep = "WANDB_SWEEP_ID" in os.environ
        self._init: dict[str, Any] = {
            "project": None if in_sweep else self.project,
            "entity": None if in_sweep else self.entity,
            "id": None if in_sweep else run_id,
            "name": self.name or "/".join([*group, seed]),
            "group": self.group or "/".join(group),
            "job_type": group[1],
            "tags": list(self.tags),
            "config": settings(config),
            "dir": str(directory),
            "resume": "allow",
            "argv": sys.argv,
            # W&B would ask git in many processes before a run begins, and send the changes to the code.
            "settings": {"init_timeout": self.timeout, "disable_git": True, "git_commit": commit()},
        }
        checked, refused = threading.Event(), list[str]()

        def begin() -> None:
            try:
                self._client = Client()
                refused.extend(self._ask("check", mode=self.mode).values())
            finally:
                checked.set()
            if not refused:
                self._begin()
                kept.parent.mkdir(exist_ok=True)
                write_text(kept, self._id)

        self._stop_signal, self._relay = stop_signal, Relay("W&B")
        self._relay.put(begin)
        stop_signal.wait(checked.is_set, TIMEOUT)
        if refused:
            self._relay.end(TIMEOUT, stop_signal)
            self._relay = None
            self._drop()
            raise ConfigError(
                f"W&B cannot be used ({refused[0]}); log in with `wandb login`, or keep the run on this machine with"
                f" logger.mode=offline."
            )
        self._metric("eval/*", "tasks_learned")

    def stage(self, task: str, folder: Path) -> Logger | Literal[False]:
        """A logger whose metrics carry the task's name and have a step axis of their own."""
        if self._relay is None:
            return False
        for kind in ("train", "val"):
            self._metric(f"{kind}/{task}/*", f"train/{task}/step")

        def log(metrics: dict[str, float], step: int | None) -> None:
            self._put("log", row={f"train/{task}/step": step, **of_stage(task, metrics)})

        return Relayed(log, "wandb")

    def score(self, *, after: int, task: str, score: float) -> None:
        """Report the score as a point of the task's curve and as a cell of the matrix."""
        self._put("log", row={"tasks_learned": after, **of_cell(after, task, score)})

    def finish(self, results: Mapping[str, Any], report: Path) -> None:
        """Report metrics, pictures, files, and the whole matrix: after a kill or a growth W&B has only a part of it."""
        if self._relay is None:
            return

        def tell() -> None:
            matrix = {f"eval/after={after}/{task}": score for after, task, score in cells(results)}
            content = {"numbers": numbers(results), "pictures": pictures(results), "cells": matrix}
            self._tell("results", **content, files=files(report))

        self._relay.put(tell)

    def close(self, code: int, *, goes_on: bool = False) -> None:
        """Close the W&B run; a sweep starts a preempted run again."""
        if self._relay is None:
            return
        if goes_on:
            self._put("preempting")
        self._relay.put(partial(self._end, code))
        seconds = self._stop_signal.patience(self.timeout, stopped=goes_on)
        # Half of it is for the server, the other half for keeping offline what was not sent.
        self._latest = time.monotonic() + seconds / 2
        relay, self._relay, done = self._relay, None, False
        try:
            done = relay.end(seconds, self._stop_signal)
        finally:
            self._drop()
            if not done:
                notice(f"W&B did not take everything in time; {self._cure(whole=self._is_complete)}")

    def _drop(self) -> None:
        """End the client for good."""
        self._is_over = True
        if self._client:
            self._client.kill()

    def _metric(self, name: str, step: str) -> None:
        self._metrics.append((name, step))
        self._put("metric", name=name, step=step)

    def _put(self, do: str, **content: Any) -> None:
        if self._relay:
            self._relay.put(lambda: self._tell(do, **content))

    # The methods below run in the relay's thread.

    def _ask(self, do: str, *, seconds: float = TIMEOUT, **content: Any) -> dict[str, Any]:
        """Send a request to the client, and wait for its answer; not beyond the deadline, unless the request is ``close``."""
        assert self._client is not None
        until = time.monotonic() + seconds

        def latest() -> float:
            return min(until, self._latest) if self._mode == "online" and do != "close" else until

        return self._client.ask(do, latest, **content)

    def _begin(self) -> None:
        try:
            self._opened(self._ask("open", seconds=self.timeout, mode=self._mode, **self._init))
        except Lost as error:
            self._keep(error)

    def _opened(self, reply: dict[str, Any]) -> None:
        self._id = reply["id"]
        self._folders.append(reply["folder"])

    def _tell(self, do: str, **content: Any) -> dict[str, Any]:
        """Report to W&B, or to its files if that fails."""
        try:
            return self._ask(do, **content)
        except Lost as error:
            self._keep(error)
            return self._ask(do, **content)

    def _keep(self, error: Lost) -> None:
        """Continue with a new client in offline mode."""
        if self._mode == "offline" or self._is_over:
            raise error
        if self._client:
            self._client.kill()
        self._mode = "offline"
        self._client = Client()
        self._opened(self._ask("open", mode=self._mode, **self._init))
        for name, step in self._metrics:
            self._ask("metric", name=name, step=step)
        notice(f"W&B: {error}; the run goes on, and {self._cure()}")

    def _end(self, code: int) -> None:
        self._is_complete = True
        reply = self._tell("close", seconds=float("inf"), code=code)
        if "unsent" in reply:
            notice(f"W&B: {reply['unsent']}; {self._cure()}")

    def _cure(self, *, whole: bool = True) -> str:
        """The command that sends the kept reports; ``whole``: whether all of them are kept."""
        if not self._folders:
            return "it was not reached, and nothing is kept for it."
        *earlier, current = self._folders
        # A folder without records, of a client that was killed early, would end the sync before the others.
        folders = [*filter(_holds_records, earlier), current]
        online = any(not Path(folder).name.startswith("offline-") for folder in folders)
        command = shlex.join(["wandb", "sync", *(["--include-online"] if online else []), *folders])
        return f"what was not sent is kept{'' if whole else ' in part'}; send it with: {command}"


def _holds_records(folder: str) -> bool:
    """Whether a W&B folder has a transaction log with records."""
    return any(path.stat().st_size > LOG_HEAD for path in Path(folder).glob("*.wandb"))
