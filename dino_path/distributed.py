"""The process group: who we are, how many we are, on which device. The only reader of RANK and SLURM_*."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from dino_path.errors import LaunchError

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

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all ranks, in place; the tensor itself in a world of one."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def start_sum(self, tensor: torch.Tensor) -> PendingSum:
        """As `sum_`, but it returns at once; `tensor` holds the sum after `wait` of what comes back."""
        return PendingSum(dist.all_reduce(tensor, async_op=True) if self.size > 1 else None)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in the order of ranks, on every rank; plain values that can be pickled."""
        values: list[T] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


def usable_cores() -> int:
    """CPU cores that this process may run on: SLURM and containers give fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def world_shape(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """(rank, size, local_rank) from torchrun's variables, else SLURM's, else (0, 1, 0).

    Raises:
        LaunchError: the variables are there in part only, or contradict each other.
    """
    torchrun = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    slurm = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    if any(name in environment for name in torchrun):
        names = torchrun
    # An `sbatch` shell or a `salloc` shell has SLURM_NTASKS but no step: only `srun` sets SLURM_STEP_ID.
    elif "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        names = slurm
    else:
        return 0, 1, 0
    missing = [name for name in names if name not in environment]
    if missing:
        raise LaunchError(
            "launch environment",
            f"{', '.join(n for n in names if n in environment)} set, but not {', '.join(missing)}.",
            f"All of {', '.join(names)} are needed to form a process group, or none for a single process.",
            "Start with `torchrun` or `srun`, or unset these variables.",
        )
    values = {}
    for name in names:
        try:
            values[name] = int(environment[name])
        except ValueError:
            raise LaunchError(
                "launch environment",
                f"{name}={environment[name]!r}.",
                "A whole number is needed.",
                f"Unset {name}.",
            ) from None
    rank, size, local_rank = (values[name] for name in names)
    if not 0 <= rank < size:
        raise LaunchError(
            "launch environment",
            f"rank {rank} in a world of {size}.",
            "0 <= rank < world size is needed.",
            "Start with `torchrun` or `srun`, which set both.",
        )
    return rank, size, local_rank


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device called `name` (`auto`, `cpu`, `cuda`); `auto` takes CUDA where there is one.

    Raises:
        LaunchError: `cuda` was asked for and is not there. We do not fall back to the CPU in silence.
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
            "Start fewer processes per node, ask SLURM for GPUs, or set training.device=cpu. See `dino-path doctor`.",
        )
    return torch.device("cuda", local_rank)


@contextmanager
def open_world(device: str = "auto", *, timeout_s: float = 600.0) -> Iterator[World]:
    """Join the process group that the environment describes (a world of one needs none), and leave it at the end."""
    rank, size, local_rank = world_shape(os.environ)
    torch_device = choose_device(device, local_rank)
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    world = World(rank=rank, size=size, local_rank=local_rank, device=torch_device)
    if size == 1:
        yield world
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise LaunchError(
                "launch environment",
                f"a world of {size} processes, but {name} is not set.",
                "MASTER_ADDR and MASTER_PORT tell the processes where to meet.",
                "Start with `torchrun`, or export both before `srun` (slurm/pretrain.sbatch does).",
            )
    backend = "nccl" if torch_device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s))
    try:
        yield world
    finally:
        dist.destroy_process_group()
