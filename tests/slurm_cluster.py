"""A real SLURM of a test's own: munge, slurmctld and virtual nodes on this machine, from Debian's packages."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from runs import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = os.pathsep.join((os.environ["PATH"], "/usr/local/sbin", "/usr/sbin", "/sbin"))  # Debian's place for daemons
MARK = "DINO_PATH_TEST_NODE"  # in the environment of a node's slurmd, which its slurmstepd inherit

# Two partitions: jobs of `high` put jobs of `low` back into the queue. A requeued job waits `cred_expire` + 1 s; 5 is
# the least.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
ReturnToService=2
KillWait=30
SlurmdTimeout=10
InactiveLimit=0
MailProg=/bin/true
SlurmdParameters=config_overrides
{nodes}
PartitionName=DEFAULT Nodes=ALL State=UP MaxTime=1-00:00:00 DefaultTime=60
PartitionName=low PriorityTier=1 Default=YES
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 Boards=1 SocketsPerBoard=1"
    " CoresPerSocket=4 ThreadsPerCore=1 RealMemory=65536 State=UNKNOWN"
)


def why_not() -> str | None:
    """What this machine lacks for a SLURM of its own; None: nothing."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)"
    return "a private SLURM needs root" if os.geteuid() != 0 else None


class Cluster:
    """Daemons in a folder of their own, which must have a short name: Unix sockets lie in it."""

    def __init__(self, folder: Path, *, nodes: tuple[str, ...] = ("node1", "node2")) -> None:
        self.folder, self.nodes = folder, nodes
        self.conf = folder / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Return when every node is idle."""
        for name in ("state", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        host = socket.gethostname().partition(".")[0]
        lines = [NODE.format(name=node, host=host, port=free_port()) for node in self.nodes]
        self.conf.write_text(SLURM_CONF.format(host=host, port=free_port(), folder=self.folder, nodes="\n".join(lines)))
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"key-file": key, "socket": self.folder / "munge.socket"}
        files |= {f"{name}-file": self.folder / f"munge.{name}" for name in ("pid", "seed", "log")}
        self._launch("munged", "--foreground", "--force", *(f"--{name}={file}" for name, file in files.items()))
        self._wait("munge's socket", lambda: files["socket"].exists())
        self._launch("slurmctld", "-D", "-f", str(self.conf))
        for node in self.nodes:
            self.start_node(node)
        self._wait("idle nodes", lambda: self._states() == ["idle"] * len(self.nodes))

    def start_node(self, node: str) -> None:
        self._launch("slurmd", "-D", "-f", str(self.conf), "-N", node, name=node)

    def crash(self, node: str) -> None:
        """Kill the node's slurmd, its slurmstepd and all processes of its jobs, as a power cut would."""
        marks = {f"{MARK}={self.folder}/{node}"}, {f"SLURMD_NODENAME={node}", f"SLURM_CONF={self.conf}"}
        while True:
            pids = [pid for pid, words in _environments() if any(mark <= words for mark in marks)]
            if not pids:
                break
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.daemons[node].wait()  # ours: it would stay as a zombie
            time.sleep(0.05)

    def stop(self) -> None:
        """End the jobs and the daemons, the controller last."""
        for node in self.nodes:
            self.crash(node)
        for daemon in (self.daemons[name] for name in ("slurmctld", "munged") if name in self.daemons):
            daemon.terminate()
        for daemon in self.daemons.values():
            daemon.wait(timeout=30)

    def _launch(self, program: str, *words: str, name: str | None = None) -> None:
        name = name or program
        environment = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "SLURM_CONF": str(self.conf)}
        with (self.folder / f"{name}.out").open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                [program, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/",
                env=environment | {MARK: f"{self.folder}/{name}"}, start_new_session=True,
            )  # fmt: skip

    def _states(self) -> list[str]:
        answer = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%T"],
            env={"PATH": PATH, "SLURM_CONF": str(self.conf)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return answer.stdout.split()

    def _wait(self, what: str, is_there: Callable[[], bool], *, timeout_s: float = 60) -> None:
        end_s = time.monotonic() + timeout_s
        while not is_there():
            if time.monotonic() > end_s:
                logs = "\n".join(f"{file.name}: {file.read_text()[-500:]}" for file in self.folder.glob("*.out"))
                raise RuntimeError(f"no {what} after {timeout_s} s\n{logs}")
            time.sleep(0.1)


def _environments() -> list[tuple[int, set[str]]]:
    """(pid, NAME=VALUE words) of every process that may be looked at."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            found.append((int(file.parent.name), set(file.read_text(errors="replace").split("\0"))))
    return found


# --- jobs ----------------------------------------------------------------------------------------------------------


def show(job_id: str) -> dict[str, str]:
    """What `scontrol show job` says: JobState, Restarts, NodeList, ..."""
    answer = subprocess.run(["scontrol", "show", "job", job_id, "-o"], capture_output=True, text=True, check=True)
    return dict(re.findall(r"(\w+)=(\S*)", answer.stdout))


def wait_for(job_id: str, *, timeout_s: float = 180, state: str | None = None) -> str:
    """The state in which the job ends; with `state`, returns as soon as that is its state."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        found = show(job_id)["JobState"]
        if found == state or found not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"):
            return found
        time.sleep(0.3)
    raise RuntimeError(f"job {job_id} is still {found} after {timeout_s} s")
