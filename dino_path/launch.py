"""The rank of this process and the number of processes, from the launcher's variables, without torch.

Only this module and `distributed` (where processes meet) read RANK and SLURM_*.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from dino_path.errors import LaunchError


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the process that speaks.

    Raises:
        LaunchError: see `world_shape`.
    """
    return world_shape(environment)[0] == 0


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
        raise bad_launch(
            f"{', '.join(n for n in names if n in environment)} set, but not {', '.join(missing)}.",
            f"All of {', '.join(names)} are needed to form a process group, or none for a single process.",
            "Start with `torchrun` or `srun`, or unset these variables.",
        )
    rank, size, local_rank = (whole_number(environment, name) for name in names)
    if not 0 <= rank < size:
        raise bad_launch(
            f"rank {rank} in a world of {size}.",
            "0 <= rank < world size is needed.",
            "Start with `torchrun` or `srun`, which set both.",
        )
    local_size = whole_number(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else size
    if not 0 <= local_rank < min(local_size, size):
        raise bad_launch(
            f"{names[2]}={local_rank} where {min(local_size, size)} process(es) run on this machine.",
            "It counts the processes of one machine, from 0.",
            "Start with `torchrun` or `srun`, which set it.",
        )
    return rank, size, local_rank


def first_host(node_list: str) -> str:
    """The first name in a list as SLURM writes it: `node[07-12,15],gpu3` -> `node07`."""
    match = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\])?([^\[,]*)", node_list)
    return "".join(part or "" for part in match.groups()) if match else node_list


def whole_number(environment: Mapping[str, str], name: str) -> int:
    """The value of a variable.

    Raises:
        LaunchError: it is not a whole number.
    """
    try:
        return int(environment[name])
    except ValueError:
        raise bad_launch(f"{name}={environment[name]!r}.", "A whole number is needed.", f"Unset {name}.") from None


def bad_launch(found: str, needed: str, remedy: str) -> LaunchError:
    """The refusal of a variable set by the launcher."""
    return LaunchError("launch environment", found, needed, remedy)
