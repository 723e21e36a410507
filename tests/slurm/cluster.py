"""A real Slurm of several nodes on this machine, without systemd: munge, a controller, and a daemon for each node.

Debian's build lets several ``slurmd`` share a host under names of their own. Everything lies in one folder.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

# Debian keeps daemons out of the users' path.
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")


def missing() -> list[str]:
    """Programs that are not installed; Debian has them in slurm-wlm and munge."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


class Cluster:
    """Nodes n1, n2, ...; a partition ``low`` for all, and ``high``, whose jobs requeue those of ``low``.

    Args:
        folder: new, and not too deep, for a socket's path is at most 107 characters long.
        nodes: how many.
        cpus: of each; more than the machine has are allowed.
    """

    def __init__(self, folder: Path, *, nodes: int = 2, cpus: int = 2) -> None:
        self.folder, self.nodes, self.cpus = folder, nodes, cpus
        # Nodes have no names that resolve, so where a job's ranks meet is said here.
        self.env = {
            **os.environ,
            "PATH": PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        """Start the daemons, and wait until every node takes jobs."""
        for name in ("state", "log", "run", "munge", "socket", "spool"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge").chmod(0o700)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        (self.folder / "slurm.conf").write_text(self._conf())
        self._run(
            "munged", f"--key-file={key}", f"--socket={self.folder}/socket/munge",
            f"--pid-file={self.folder}/run/munged.pid", f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={self.folder}/munge/seed", "--force",
        )  # fmt: skip
        self._run("slurmctld", "-f", self.env["SLURM_CONF"])
        for node in range(1, self.nodes + 1):
            self._run("slurmd", "-N", f"n{node}", "-f", self.env["SLURM_CONF"])
        self.until(
            lambda: self.out("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D").strip() == str(self.nodes), 30
        )

    def stop(self) -> None:
        """Cancel all jobs, then stop the daemons by their pid files."""
        with contextlib.suppress(subprocess.CalledProcessError, TimeoutError):
            self.out("scancel", "--partition=low,high", "--signal=KILL")
            self.out("scancel", "--partition=low,high")
            self.until(lambda: not self.out("squeue", "-h"), 30)
        for file in sorted((self.folder / "run").glob("*.pid"), reverse=True):  # slurmd, slurmctld, munged
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGTERM)

    def out(self, *command: str, **env: str) -> str:
        """What a Slurm command prints."""
        done = subprocess.run(
            command, env={**self.env, **env}, capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def state(self, job: str) -> str:
        """A job's state, such as RUNNING, PENDING, COMPLETED, FAILED."""
        shown = self.out("scontrol", "show", "job", job, "--oneliner")
        return shown.split("JobState=")[1].split()[0]

    def wait(self, job: str, seconds: float = 240) -> str:
        """The state in which a job ended. A requeued one waits two minutes by default; here it goes on at once."""
        seen: list[str] = []

        def over() -> bool:
            state = self.state(job)
            seen.append(state)
            # Not before what was requeued is wholly gone: its late end would be taken for that of the new start.
            if seen[-10:].count("PENDING") == 10:
                with contextlib.suppress(subprocess.CalledProcessError):
                    self.out("scontrol", "update", f"JobId={job}", "StartTime=now")
            # For a moment, a job that is about to be requeued looks as if it had ended.
            alive = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED")
            return len(seen) > 15 and set(seen[-15:]).isdisjoint(alive)

        self.until(over, seconds)
        return self.state(job)

    def until(self, happened, seconds: float) -> None:
        """Wait for something; TimeoutError with the daemons' last words if it does not come."""
        end = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > end:
                logs = "\n".join(
                    f"{file.name}: {file.read_text()[-600:]}" for file in (self.folder / "log").glob("*.log")
                )
                raise TimeoutError(f"{self.out('squeue')}\n{self.out('sinfo')}\n{logs}")
            time.sleep(0.2)

    def _run(self, *command: str) -> None:
        with (self.folder / "log" / "start.log").open("a") as log:
            subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)

    def _conf(self) -> str:
        host, user, here = socket.gethostname().split(".")[0], _user(), self.folder
        ports = _free_ports(self.nodes + 1)
        nodes = "\n".join(
            f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} RealMemory=4000"
            f" State=UNKNOWN"
            for number, port in enumerate(ports[1:], start=1)
        )
        return f"""\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={here}/socket/munge
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/spool/%n
SlurmctldPidFile={here}/run/slurmctld.pid
SlurmdPidFile={here}/run/slurmd.%n.pid
SlurmctldLogFile={here}/log/slurmctld.log
SlurmdLogFile={here}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=60
MessageTimeout=30
KillWait=10
MinJobAge=600
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=off MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on; held until all are found, so that they differ."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
