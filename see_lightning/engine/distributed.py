"""The ranks of a run: how processes find their rank, join a process group, exchange values, and are started here.

``torchrun``, ``srun`` or ``supervise`` starts the processes, and sets each one's rank in environment variables.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from omegaconf import DictConfig
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

import see_lightning
from see_lightning.engine.preemption import HURRY, Preempted
from see_lightning.errors import ConfigError, Refusal
from see_lightning.frame import LAUNCHER

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # timeout of a collective operation
GRACE = 30.0  # seconds until the other ranks are killed after one has failed
_STOP, _ERROR, _LEAVING = "stop", "error", "leaving"  # keys in the store


class Echo(Refusal):
    """A refusal that the first rank raised and prints; raised on the other ranks."""


class Ranks:
    """The ranks of a run, seen from one of them; a run of a single process has rank 0 alone.

    Values are exchanged on the CPU, and never while queries are answered. Every rank must call ``gather``, ``any_rank``,
    ``run_preemptible``, ``on_rank_zero`` and ``share``.

    Args:
        rank: of this process, from 0.
        size: number of ranks.
        local: rank on this machine, from 0.
        store: torch's key-value store that all ranks share; None if there is only one.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, store: Any = None) -> None:
        self.rank, self.size, self.local, self.store = rank, size, local, store

    @property
    def first(self) -> bool:
        """Whether this rank writes the files and prints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes)

    def run_preemptible(self, work: Callable[[], T], within: AbstractContextManager[None]) -> T:
        """Call a function that a stop signal may interrupt, and return its result.

        Args:
            work: of this rank.
            within: context of the call; ``Preempted`` is caught inside it.

        Raises:
            Preempted: on every rank, after each has returned, if one was interrupted.
        """
        result, stopped = None, False
        with within:
            try:
                result = work()
            except Preempted:
                stopped = True
        if self.any_rank(stopped):
            raise Preempted
        return result  # type: ignore[return-value]

    def on_rank_zero(self, work: Callable[[], T]) -> T | None:
        """Call a function on the first rank while the others wait; they return None.

        Raises:
            Refusal: raised by the function on the first rank; the other ranks raise an ``Echo`` of it.
        """
        result, problem = None, None
        if self.first:
            try:
                result = work()
            except Refusal as error:
                problem = error
        problems = [problem] if self.size == 1 else [str(problem) if problem else None]
        if self.size > 1:
            dist.broadcast_object_list(problems)
        if problem:
            raise problem
        if problems[0]:
            raise Echo(str(problems[0]))
        return result

    def share(self, work: Callable[[], T]) -> T:
        """Call a function on the first rank, and return its result on every rank.

        Raises:
            Refusal: as from ``on_rank_zero``.
        """
        values: list[Any] = [self.on_rank_zero(work)]
        if self.size > 1:
            dist.broadcast_object_list(values)
        result: T = values[0]
        return result

    def ddp_kwargs(self) -> dict[str, Any]:
        """Settings of a Trainer that runs on all ranks; under ``srun`` Lightning finds the rank without them."""
        return {"plugins": [LightningEnvironment()]} if self.size > 1 and "RANK" in os.environ else {}

    def solo_kwargs(self) -> dict[str, Any]:
        """Settings of a Trainer that runs on this rank alone, without synchronisation."""
        if self.size == 1:
            return {}
        device = [self.local] if torch.cuda.is_available() else 1
        return {"devices": device, "num_nodes": 1, "strategy": "auto", "plugins": [LightningEnvironment()]}

    def of_this_machine(self, machines: int, *, gpu: bool) -> DeviceMesh | None:
        """The mesh of the ranks on this machine, between which a model is sharded; None for a single rank.

        Args:
            machines: number of machines; each has equally many ranks, with consecutive numbers.
            gpu: whether the shards lie on GPUs.
        """
        if self.size == machines:
            return None
        group, _ = dist.new_subgroups(self.size // machines, timeout=PATIENCE)  # type: ignore[no-untyped-call]
        return DeviceMesh.from_group(group, "cuda" if gpu else "cpu")

    def tell_to_stop(self) -> None:
        """Set the flag in the store that lets all ranks stop."""
        if self.store is not None:
            self.store.set(_STOP, "1")

    def told_to_stop(self) -> bool:
        """Whether a rank has set that flag in the store."""
        return self.store is not None and bool(self.store.check([_STOP]))

    def publish_error(self, reason: str) -> None:
        """Send the reason why this rank ends to the first rank; print it if the first rank has ended."""
        try:
            self.store.set(_ERROR, reason)
        except RuntimeError:
            print(reason, file=sys.stderr, flush=True)

    def peer_error(self) -> str | None:
        """The reason why another rank ended, if one was published."""
        return self.store.get(_ERROR).decode() if self.store is not None and self.store.check([_ERROR]) else None

    def leave(self) -> None:
        """Leave the process group once each rank is about to leave it, but after a few seconds in any case.

        A rank that closes its connections earlier breaks the last exchange of one that is behind it.
        """
        if self.store is not None:
            with suppress(RuntimeError):  # the first rank, which holds the store, has gone
                self.store.add(_LEAVING, 1)
                until = time.monotonic() + HURRY
                while self.store.add(_LEAVING, 0) < self.size and time.monotonic() < until:
                    time.sleep(0.02)
        if dist.is_initialized():
            dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class Place:
    """Rank of a process, number of ranks, and rank on its machine."""

    rank: int
    size: int
    local: int


def place() -> Place | None:
    """Read this process's rank from the variables of ``torchrun`` or ``srun``; None for a process started by itself."""
    variables = {name: int(value) for name, value in os.environ.items() if name in LAUNCHER and value.strip()}
    if {"RANK", "WORLD_SIZE"} <= variables.keys():
        found = Place(variables["RANK"], variables["WORLD_SIZE"], variables.get("LOCAL_RANK", 0))
    elif {
        "SLURM_STEP_NUM_TASKS",
        "SLURM_PROCID",
    } <= variables.keys():  # a batch script lacks the first; its srun has it
        found = Place(variables["SLURM_PROCID"], variables["SLURM_STEP_NUM_TASKS"], variables.get("SLURM_LOCALID", 0))
    else:
        return None
    if found.rank >= max(1, found.size):
        raise ConfigError(
            f"the environment names this process {found.rank}, from 0, of {found.size}: unset RANK WORLD_SIZE"
        )
    return found if found.size > 1 else None


def on_gpu(cfg: DictConfig) -> bool:
    """Whether a run of this configuration trains on GPUs."""
    return bool(torch.cuda.is_available()) and cfg.trainer.get("accelerator", "auto") != "cpu"


def processes(cfg: DictConfig) -> int:
    """The configured number of ranks; ``trainer.devices=auto`` is all GPUs of a machine, or one CPU process."""
    devices = cfg.trainer.get("devices", 1)
    if devices == "auto":
        devices = torch.cuda.device_count() if on_gpu(cfg) else 1
    return int(devices) * int(cfg.trainer.get("num_nodes", 1))


def join(here: Place, *, gpu: bool) -> Ranks:
    """Join the process group of the run.

    Args:
        here: this process's place.
        gpu: whether training runs on GPUs; each rank takes the GPU of its local rank.
    """
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm.main_address, str(slurm.main_port)
    if gpu:
        torch.cuda.set_device(here.local)
    store, rank, size = next(rendezvous("env://", here.rank, here.size))
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    # Every Trainer of the run uses this group.
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=PATIENCE)
    return Ranks(rank, size, here.local, PrefixStore("run", store))


def supervise(command: Sequence[str], size: int) -> int:
    """Start a process for each rank on this machine, and wait for them.

    Stop signals are forwarded. Once a rank has failed the others have ``GRACE`` seconds to end; if this process is killed,
    its ranks are killed too.

    Args:
        command: of each rank.
        size: number of ranks.

    Returns:
        0 if all succeeded, else the exit code of the first that failed; 128 + n if signal n ended it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // size)),
        **os.environ,
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        # Ranks run the same code as this process.
        "PYTHONPATH": os.pathsep.join([str(Path(see_lightning.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    ranks: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for one in ranks:
            if one.poll() is None:
                one.send_signal(number)
                # A halted process handles no other signal, and the others would wait for it.
                one.send_signal(signal.SIGCONT)

    forwarded = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, forward) for number in forwarded}
    try:
        for rank in range(size):
            env = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In a session of their own, so that Ctrl-C reaches them once, forwarded by this process.
            ranks.append(subprocess.Popen(command, env=env, start_new_session=True))
        failed = _wait(ranks)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in ranks:
            if one.poll() is None:
                one.kill()
                one.wait()
    return 128 - failed if failed < 0 else failed


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all ranks have ended, or ``GRACE`` seconds after one failed; return the first exit code that is not 0."""
    failed, since = 0, 0.0
    while True:
        codes = [one.poll() for one in ranks]
        if not failed:
            failed, since = next(filter(None, codes), 0), time.monotonic()
        if None not in codes:
            return failed
        if failed and time.monotonic() - since > GRACE:
            print(f"a rank ended with {failed}; the others did not follow and are ended.", file=sys.stderr)
            return failed
        time.sleep(0.05)


def check_size(here: Place, wanted: int) -> None:
    """Refuse to run with more or fewer processes than configured.

    Raises:
        ConfigError: the numbers differ.
    """
    if here.size == wanted:
        return
    cure = "Under torchrun choose trainer=ddp trainer.devices=(processes on a machine)."
    if "RANK" not in os.environ:
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
        each = here.size // nodes
        cure = (
            f"Under srun choose trainer=slurm, and let Slurm know how many are on each node: srun --ntasks-per-node={each},"
            f" or in the job #SBATCH --ntasks-per-node={each}; or set trainer.devices={each}"
            f" trainer.num_nodes={nodes}."
        )
    raise ConfigError(
        f"{here.size} processes were started, but trainer.devices x trainer.num_nodes is {wanted}. {cure}"
    )
