"""The processes that do one run together: who each of them is, how they are started, the little they tell each other.

Whoever starts them (``torchrun``, ``srun``, or ``supervise`` below), each is told its rank by environment variables.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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
from see_lightning.engine.preemption import Preempted
from see_lightning.errors import ConfigError, Refusal
from see_lightning.frame import LAUNCHER

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # how long a rank waits for the slowest one
GRACE = 30.0  # seconds that the others get to end by themselves once a rank has died
_STOP, _WORD = "stop", "word"


class Echo(Refusal):
    """What the first rank refuses, and tells the user itself."""


class Ranks:
    """The processes of a run as one of them sees them; alone, a run is its own first rank.

    What they tell each other goes through the CPU, never inside answering, and every rank must take part.

    Args:
        rank: of this process, from 0.
        size: how many there are.
        local: its number on its machine, from 0.
        store: which all of them can write to; None if there is only one.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, store: Any = None) -> None:
        self.rank, self.size, self.local, self.store = rank, size, local, store

    @property
    def first(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What each rank has, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def any_rank(self, said: bool) -> bool:
        """Whether any rank says so."""
        if self.size == 1:
            return said
        votes = torch.tensor(int(said))
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes)

    def run_preemptible(self, work: Callable[[], T], within: AbstractContextManager[None]) -> T:
        """What some work gives.

        Args:
            work: of this rank.
            within: in which it is done, and which no rank that is stopped leaves by an exception.

        Raises:
            Preempted: on every rank, once each has ended its work, if one was stopped in it.
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
        """Let the first rank do something while the others wait; only it gets what that returns.

        Raises:
            Refusal: on every rank, if the first one cannot do it; on the others an ``Echo``.
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
        """What some work gives that the first rank does, on every rank.

        Raises:
            Refusal: as from ``lead``.
        """
        given: list[Any] = [self.on_rank_zero(work)]
        if self.size > 1:
            dist.broadcast_object_list(given)
        result: T = given[0]
        return result

    def ddp_kwargs(self) -> dict[str, Any]:
        """Settings of a Trainer by which it knows this rank; under ``srun`` it finds out by itself."""
        return {"plugins": [LightningEnvironment()]} if self.size > 1 and "RANK" in os.environ else {}

    def solo_kwargs(self) -> dict[str, Any]:
        """Settings of a Trainer that works on one rank's share by itself, with no word to the others."""
        if self.size == 1:
            return {}
        device = [self.local] if torch.cuda.is_available() else 1
        return {"devices": device, "num_nodes": 1, "strategy": "auto", "plugins": [LightningEnvironment()]}

    def of_this_machine(self, machines: int, *, gpu: bool) -> DeviceMesh | None:
        """The ranks of this one's machine, between which parts of a model travel fast; None if it is alone there.

        Args:
            machines: how many there are, each with as many ranks, numbered one machine after the other.
            gpu: whether the parts lie on GPUs.
        """
        if self.size == machines:
            return None
        group, _ = dist.new_subgroups(self.size // machines, timeout=PATIENCE)  # type: ignore[no-untyped-call]
        return DeviceMesh.from_group(group, "cuda" if gpu else "cpu")

    def tell_to_stop(self) -> None:
        """Let all ranks know that one was told to stop; they look when they like."""
        if self.store is not None:
            self.store.set(_STOP, "1")

    def told_to_stop(self) -> bool:
        """Whether some rank was told to stop."""
        return self.store is not None and bool(self.store.check([_STOP]))

    def publish_error(self, word: str) -> None:
        """Let the first rank know why this one ends, or tell it here if there is no first one any more."""
        try:
            self.store.set(_WORD, word)
        except RuntimeError:
            print(word, file=sys.stderr, flush=True)

    def peer_error(self) -> str | None:
        """Why another rank ended, if one has said so."""
        return self.store.get(_WORD).decode() if self.store is not None and self.store.check([_WORD]) else None

    def leave(self) -> None:
        """Part from the others."""
        if dist.is_initialized():
            dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class Place:
    """A process's place among those that were started together."""

    rank: int
    size: int
    local: int


def place() -> Place | None:
    """This process's place, as ``torchrun`` or ``srun`` says; None if it was started by itself."""
    told = {name: int(value) for name, value in os.environ.items() if name in LAUNCHER and value.strip()}
    if {"RANK", "WORLD_SIZE"} <= told.keys():
        found = Place(told["RANK"], told["WORLD_SIZE"], told.get("LOCAL_RANK", 0))
    elif {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID"} <= told.keys():  # the first is not in a batch script, but in its srun
        found = Place(told["SLURM_PROCID"], told["SLURM_STEP_NUM_TASKS"], told.get("SLURM_LOCALID", 0))
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
    """How many processes do this run together; ``trainer.devices=auto`` takes all GPUs of a machine, or one CPU process."""
    devices = cfg.trainer.get("devices", 1)
    if devices == "auto":
        devices = torch.cuda.device_count() if on_gpu(cfg) else 1
    return int(devices) * int(cfg.trainer.get("num_nodes", 1))


def join(here: Place, *, gpu: bool) -> Ranks:
    """Meet the other ranks.

    Args:
        here: this process's place.
        gpu: whether training runs on GPUs; each rank takes the one of its number.
    """
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm.main_address, str(slurm.main_port)
    if gpu:
        torch.cuda.set_device(here.local)
    store, rank, size = next(rendezvous("env://", here.rank, here.size))
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    # Lightning finds it made and uses it, for every Trainer of the run.
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=PATIENCE)
    return Ranks(rank, size, here.local, PrefixStore("run", store))


def supervise(command: Sequence[str], size: int) -> int:
    """Start a process for each rank on this machine, and wait for them.

    Signals to stop are passed on. Once a rank has failed the others have `GRACE` seconds to end; a rank whose supervisor
    is killed ends with it.

    Args:
        command: what each rank runs.
        size: how many there are.

    Returns:
        0 if all ended well, else the exit code of the first that did not; 128 + n if signal n ended it.
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
        # Ranks run this very code, wherever it lies.
        "PYTHONPATH": os.pathsep.join([str(Path(see_lightning.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for one in ranks:
            if one.poll() is None:
                one.send_signal(number)
                one.send_signal(signal.SIGCONT)  # one that is halted hears nothing, and the others wait for it

    passed = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, pass_on) for number in passed}
    try:
        for rank in range(size):
            env = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In a session of their own, so that Ctrl-C reaches them once, through us.
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
    """The first exit code that is not 0; returns when all have ended, or too late after one has failed."""
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
    """Refuse a number of processes that is not the configured one.

    Raises:
        ConfigError: they differ.
    """
    if here.size == wanted:
        return
    cure = "Under torchrun choose trainer=ddp trainer.devices=(processes on a machine)."
    if "RANK" not in os.environ:
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
        each = here.size // nodes
        cure = (
            f"Under srun choose trainer=slurm, and let Slurm know how many are on each node: srun --ntasks-per-node={each},"
            f" or in the job #SBATCH --ntasks-per-node={each}; or say it here: trainer.devices={each}"
            f" trainer.num_nodes={nodes}."
        )
    raise ConfigError(
        f"{here.size} processes were started, but trainer.devices x trainer.num_nodes is {wanted}. {cure}"
    )
