"""The process group: who we are, how many we are, on which device. `launch` reads RANK and SLURM_* too."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist

from dino_path.errors import LaunchError
from dino_path.launch import bad_launch, first_host, whole_number, world_shape
from dino_path.rank_watch import Progress
from dino_path.rendezvous import MeetingPoint, process_group

T = TypeVar("T")


@dataclass(frozen=True)
class PendingSum:
    """A sum over ranks under way; see `World.start_sum`."""

    work: dist.Work | None

    def wait(self) -> None:
        """What the device is given next comes after the sum (a CPU waits for it)."""
        if self.work is not None:
            self.work.wait()


@dataclass(frozen=True)
class World:
    """One process among `size`; `rank` 0 writes files and speaks."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    progress: Progress = field(default_factory=Progress, compare=False)
    """Of exchanges: by it the others know whom they wait for."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all ranks, in place; the tensor itself in a world of one."""
        self.progress.arrive()
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        """The largest of all ranks, number by number, in place; the tensor itself in a world of one."""
        self.progress.arrive()
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def start_sum(self, tensor: torch.Tensor) -> PendingSum:
        """As `sum_`, but it returns at once; `tensor` holds the sum after `wait` of what comes back."""
        self.progress.arrive()
        return PendingSum(dist.all_reduce(tensor, async_op=True) if self.size > 1 else None)

    def barrier(self) -> None:
        self.progress.arrive()
        if self.size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in the order of ranks, on every rank; plain values that can be pickled."""
        values: list[T] = [value] * self.size
        self.progress.arrive()
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


def usable_cores() -> int:
    """CPU cores that this process may run on: SLURM and containers give fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def meeting_point(environment: Mapping[str, str], size: int) -> MeetingPoint:
    """The processes' meeting point: MASTER_ADDR and MASTER_PORT, else an address derived from SLURM's variables.

    Raises:
        LaunchError: neither is there, or they are no address and port.
    """
    names = ("MASTER_ADDR", "MASTER_PORT")
    given = [name for name in names if environment.get(name)]
    if len(given) == 1 or (not given and "SLURM_STEP_NODELIST" not in environment):
        raise bad_launch(
            f"a world of {size} processes, and no {' and no '.join(name for name in names if name not in given)}.",
            "The processes need MASTER_ADDR and MASTER_PORT to find each other.",
            "Start with `torchrun` or `srun`, or export both.",
        )
    if given:
        host, port = environment["MASTER_ADDR"], whole_number(environment, "MASTER_PORT")
    else:  # as slurm/pretrain.sbatch, which asks SLURM for an address because names need not resolve
        host = first_host(environment["SLURM_STEP_NODELIST"])
        restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
        port = (
            10000 + (int(environment["SLURM_JOB_ID"]) + 97 * restarts + 7 * int(environment["SLURM_STEP_ID"])) % 20000
        )
    if not 0 < port < 2**16:
        raise bad_launch(f"MASTER_PORT={port}.", "A port from 1 to 65535 is needed.", "Correct MASTER_PORT.")
    is_served = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return MeetingPoint(host, port, f"start {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", is_served)


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device `name` (`auto`, `cpu`, `cuda`); `auto` is CUDA if there is a GPU.

    Raises:
        LaunchError: `cuda` is requested but not available. There is no silent fallback to the CPU.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not has_cuda or local_rank >= torch.cuda.device_count():
        raise LaunchError(
            "training.device=cuda",
            f"this process is local rank {local_rank} and sees {torch.cuda.device_count()} CUDA devices.",
            "One GPU per process is needed.",
            "Start fewer processes per node, ask SLURM for GPUs (--gpus-per-node, not --gpus-per-task: every process"
            " must see all of its node), or set training.device=cpu. See `dino-path doctor`.",
        )
    return torch.device("cuda", local_rank)


@contextmanager
def open_world(device: str = "auto", *, timeout_s: float = 600.0) -> Iterator[World]:
    """Join the process group that the environment describes (a world of one needs none), and leave it at the end.

    Args:
        timeout_s: for the others to come (an hour at most), and for every exchange with them.

    Raises:
        LaunchError: the environment contradicts itself, the device is not there, processes are missing; or, from
            inside, another process has failed.
    """
    rank, size, local_rank = world_shape(os.environ)
    torch_device = choose_device(device, local_rank)
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    world = World(rank=rank, size=size, local_rank=local_rank, device=torch_device)
    if size == 1:
        yield world
        return
    backend = "nccl" if torch_device.type == "cuda" else "gloo"
    point = meeting_point(os.environ, size)
    with process_group(point, backend, rank, size, world.progress, timeout_s=timeout_s):
        yield world
