"""Trackers, which are told of a run while it goes on: none, a Lightning logger for each stage, or Weights & Biases.

A tracker decides nothing: whichever it is and whatever befalls it, the run ends with the same numbers. So each is told in a
thread (W&B's client in a process too), its failure is a notice, and the run waits for it ``timeout`` seconds at most.
"""

import importlib.util
import os
import re
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from see_lightning.config.checks import one_of, within
from see_lightning.config.instantiate import instantiate
from see_lightning.engine.preemption import StopSignal
from see_lightning.engine.relay import Relay, Relayed, notice
from see_lightning.engine.wandb_process import Client, Lost
from see_lightning.engine.wandb_summary import flat, summary
from see_lightning.errors import ConfigError
from see_lightning.files.reading import file_bytes
from see_lightning.files.writing import refuse_links, write_text

TIMEOUT = 30.0  # seconds
LOG_HEAD = 7  # bytes with which W&B begins a transaction log
_ID = re.compile(r"[^/\\#?%:\s\x00-\x1f\ufffd]{1,128}")  # what W&B takes


class Tracker:
    """Tells nobody, and is the interface of those that do. A context, so that whatever ends a run closes it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        match error:
            case None:
                self.close(0)
            case SystemExit(code=int(code)):
                self.close(code, goes_on=True)
            case KeyboardInterrupt():
                self.close(128 + signal.SIGINT, goes_on=True)
            case _:
                self.close(1)

    def open(self, directory: Path, config: Mapping[str, Any], stop_signal: StopSignal) -> None:
        """Begin, or go on, before anything is trained.

        Args:
            directory: of the run.
            config: resolved, as plain containers.
            stop_signal: whether to stop, by which every wait for others ends.

        Raises:
            ConfigError: nobody could ever be told.
        """

    def stage(self, task: str, folder: Path) -> Logger | Literal[False]:
        """What the Trainer of a task reports to, with the folder of its stage."""
        return False

    def score(self, *, after: int, task: str, score: float) -> None:
        """A cell of the results matrix: the score (0..100) on a task after so many tasks, from 1."""

    def finish(self, results: Mapping[str, Any], report: Path) -> None:
        """Everything is computed and written: the content of ``results.json``, and the page made from it."""

    def close(self, code: int, *, goes_on: bool = False) -> None:
        """The run ends with this exit code, or was told to stop and goes on when its command is given again."""


def make_tracker(node: DictConfig | None) -> Tracker:
    """The tracker that the config names; of a run's processes, the first one alone tells."""
    tracker: Tracker = instantiate(node) if node and rank_zero_only.rank == 0 else Tracker()
    return tracker


class StageLoggers(Tracker):
    """A logger of Lightning's for each stage, in the stage's folder.

    Args:
        logger: makes one, given ``save_dir``.
        timeout: seconds that a run waits for it at its end.
    """

    def __init__(self, *, logger: Callable[..., Logger], timeout: float = TIMEOUT) -> None:
        within("logger.timeout", timeout, 0)
        self.logger, self.timeout = logger, timeout
        kind = getattr(logger, "func", logger)
        self.name = str(getattr(kind, "__name__", kind))
        self._relay: Relay | None = None

    def open(self, directory: Path, config: Mapping[str, Any], stop_signal: StopSignal) -> None:
        """A thread for all stages."""
        self._told, self._relay = stop_signal, Relay(self.name)

    def stage(self, task: str, folder: Path) -> Logger | Literal[False]:
        """A fresh one."""
        assert self._relay is not None
        put, made = self._relay.put, list[Logger]()
        put(lambda: made.append(self.logger(save_dir=str(folder))))

        def log(metrics: dict[str, float], step: int | None) -> None:
            put(lambda: (made[0].log_metrics(metrics, step), made[0].save()))

        return Relayed(log, self.name, lambda status: put(lambda: made[0].finalize(status)))

    def close(self, code: int, *, goes_on: bool = False) -> None:
        """What is left is told."""
        if self._relay is None:
            return
        if not self._relay.end(self._told.patience(self.timeout, stopped=goes_on), self._told):
            notice(
                f"{self.name} did not end and is not waited for; what it was told last may be missing from its files"
            )
        self._relay = None


class WandbTracker(Tracker):
    """One W&B run for a run directory: over all stages, and under one id however often it is resumed.

    Its id is kept beside W&B's own files, so that a run that is begun anew is a new one there too. Within a sweep the
    agent has chosen id and project already. Where the server or W&B's client fails, the rest is kept for ``wandb sync``.

    Args:
        project: where the run is listed.
        entity: user or team; None takes that of the login.
        mode: ``online``; ``offline``, kept in the run directory for ``wandb sync``; ``disabled``.
        name: of the run; None takes its place, ``<order>/<method>/<key>/seed=<n>``.
        group: what it is compared with; None takes the same without the seed.
        tags: to find it by.
        timeout: seconds that the server has to begin a run, and that a run waits for it at its end.

    Raises:
        ConfigError: there is no such mode, or W&B is not installed.
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
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError("logger=wandb needs a package that is not installed; pip install -e '.[wandb]'")
        self.project, self.entity, self.mode = project, entity, mode
        self.name, self.group, self.tags, self.timeout = name, group, tags, timeout
        self._relay: Relay | None = None
        self._client: Client | None = None
        self._mode = mode  # as long as nothing fails
        self._folders: list[str] = []  # of W&B's own in the run directory, that this process wrote
        self._metrics: list[tuple[str, str]] = []
        self._is_told = self._is_over = False  # whether the client has taken everything; whether it may still be told
        self._latest = float("inf")  # when W&B must have taken what it was told, by the monotonic clock

    def open(self, directory: Path, config: Mapping[str, Any], stop_signal: StopSignal) -> None:
        """Settings are told under the names that the command line has for them, which are a sweep's names too."""
        if self.mode == "disabled":
            return
        *group, seed = directory.parts[-4:]
        kept = directory / "wandb" / "id"
        refuse_links(kept, directory)
        given = f"{group[-1]}-{seed.removeprefix('seed=')}-{secrets.token_hex(3)}"
        if kept.exists():
            given = file_bytes(kept).decode(errors="replace")
            if not _ID.fullmatch(given):
                raise ConfigError(f"{kept} holds no id of a W&B run; remove it, and this run is a new one there.")
        in_sweep = "WANDB_SWEEP_ID" in os.environ
        self._init: dict[str, Any] = {
            "project": None if in_sweep else self.project,
            "entity": None if in_sweep else self.entity,
            "id": None if in_sweep else given,
            "name": self.name or "/".join([*group, seed]),
            "group": self.group or "/".join(group),
            "job_type": group[1],
            "tags": list(self.tags),
            "config": flat(config),
            "dir": str(directory),
            "resume": "allow",
            "argv": sys.argv,
            "settings": {"init_timeout": self.timeout},
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

        self._told, self._relay = stop_signal, Relay("W&B")
        self._relay.put(begin)
        stop_signal.wait(checked.is_set, TIMEOUT)
        if refused:
            self._relay.end(TIMEOUT, stop_signal)
            self._relay = None
            self._drop()
            raise ConfigError(
                f"W&B cannot be told ({refused[0]}); log in with `wandb login`, or keep the run on this machine with"
                f" logger.mode=offline."
            )
        self._metric("eval/*", "tasks_learned")

    def stage(self, task: str, folder: Path) -> Logger | Literal[False]:
        """All report to the one run, each under its task's name and with its own steps."""
        if self._relay is None:
            return False
        self._metric(f"train/{task}/*", f"train/{task}/step")

        def log(metrics: dict[str, float], step: int | None) -> None:
            """``train/loss`` becomes ``train/<task>/loss``."""
            here = {f"train/{task}/{name.removeprefix('train/')}": value for name, value in metrics.items()}
            self._put("log", row={f"train/{task}/step": step, **here})

        return Relayed(log, "wandb")

    def score(self, *, after: int, task: str, score: float) -> None:
        """Once as a point of the task's curve, once as a cell of the matrix."""
        self._put("log", row={"tasks_learned": after, f"eval/{task}": score, f"eval/after={after}/{task}": score})

    def finish(self, results: Mapping[str, Any], report: Path) -> None:
        """Metrics, pictures, the report; and the whole matrix, of which a run that was killed or grew told a part."""
        if self._relay is None:
            return
        self._relay.put(lambda: self._tell("results", **summary(results, report)))

    def close(self, code: int, *, goes_on: bool = False) -> None:
        """Any code but 0 is a failure; a sweep hands a run that was preempted out again."""
        if self._relay is None:
            return
        if goes_on:
            self._put("preempting")
        self._relay.put(partial(self._end, code))
        seconds = self._told.patience(self.timeout, stopped=goes_on)
        # Half of it for the server; the other half is enough to keep what it did not take.
        self._latest = time.monotonic() + seconds / 2
        relay, self._relay, done = self._relay, None, False
        try:
            done = relay.end(seconds, self._told)
        finally:
            self._drop()
            if not done:
                notice(f"W&B did not take everything in time; {self._cure(whole=self._is_told)}")

    def _drop(self) -> None:
        """End the client, after which there is no other one."""
        self._is_over = True
        if self._client:
            self._client.kill()

    def _metric(self, name: str, step: str) -> None:
        self._metrics.append((name, step))
        self._put("metric", name=name, step=step)

    def _put(self, do: str, **content: Any) -> None:
        if self._relay:
            self._relay.put(lambda: self._tell(do, **content))

    # What follows runs in the relay's thread.

    def _ask(self, do: str, *, seconds: float = TIMEOUT, **content: Any) -> dict[str, Any]:
        """Put a request to the client, and wait so long; but for the last one, no longer than ``close`` says."""
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

    def _opened(self, stop_signal: dict[str, Any]) -> None:
        self._id = stop_signal["id"]
        self._folders.append(stop_signal["folder"])

    def _tell(self, do: str, **content: Any) -> dict[str, Any]:
        """Let W&B know, or else its files."""
        try:
            return self._ask(do, **content)
        except Lost as error:
            self._keep(error)
            return self._ask(do, **content)

    def _keep(self, error: Lost) -> None:
        """Go on with a fresh client, which only keeps what it is told."""
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
        self._is_told = True
        stop_signal = self._tell("close", seconds=float("inf"), code=code)
        if "unsent" in stop_signal:
            notice(f"W&B: {stop_signal['unsent']}; {self._cure()}")

    def _cure(self, *, whole: bool = True) -> str:
        """How what was not sent is sent, if the whole of it or at least a part is kept."""
        if not self._folders:
            return "it was not reached, and nothing is kept for it."
        *earlier, current = self._folders
        # One in which nothing was written before its client was killed would end the sync before the others.
        folders = [*filter(_holds_records, earlier), current]
        online = any(not Path(folder).name.startswith("offline-") for folder in folders)
        command = shlex.join(["wandb", "sync", *(["--include-online"] if online else []), *folders])
        return f"what was not sent is kept{'' if whole else ' in part'}; send it with: {command}"


def _holds_records(folder: str) -> bool:
    """Whether a folder of W&B's has a transaction log with more than the head of its first block."""
    return any(path.stat().st_size > LOG_HEAD for path in Path(folder).glob("*.wandb"))
