"""The resources that each stage requests from SLURM: the `cluster` section, with settings for stages and kinds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from dino_path.config import ClusterConfig, CpuStage, GpuStage, StageConfig

Stage = CpuStage | GpuStage
ASKS_FOR_GPUS = re.compile(r"(#SBATCH )?(-G\b|--gpus\b|--gpus-per-|--gres=.*\bgpu\b)")


@dataclass(frozen=True)
class Resources:
    """The request of one stage; None: the option is not passed to SLURM.

    Attributes:
        num_gpus: on each node.
        gpus: the same as SLURM reads it, with their type where one is asked for; None without GPUs.
        cpus: of each process.
        memory: of each node.
    """

    partition: str | None
    account: str | None
    qos: str | None
    num_gpus: int
    gpus: str | None
    cpus: int
    memory: str | None
    time: str
    constraint: str | None
    extra_lines: tuple[str, ...]


def resources_of(stage: Stage, cluster: ClusterConfig) -> Resources:
    """The request of a stage: its own settings, else those of its kind, else those of the whole section."""
    kind: Literal["cpu", "gpu"] = "gpu" if stage in get_args(GpuStage) else "cpu"
    of_stage, of_kind = cluster.stages.get(stage, StageConfig()), cluster.stages.get(kind, StageConfig())
    said = {key: value for key in StageConfig.model_fields if (value := getattr(of_stage, key)) is not None}
    own = of_kind.model_copy(update=said)
    num_gpus, gpus = 0, None
    if kind == "gpu":
        asked = own.gpus if own.gpus is not None else cluster.gpus_per_node
        num_gpus, gpus = _gpus(asked, takes_all=stage == "pretrain" or of_stage.gpus is not None)
    extra_lines = cluster.extra_lines if own.extra_lines is None else own.extra_lines
    return Resources(
        partition=own.partition or cluster.partition,
        account=own.account or cluster.account,
        qos=own.qos or cluster.qos,
        num_gpus=num_gpus,
        gpus=gpus,
        cpus=own.cpus or cluster.cpus_per_gpu,
        memory=own.memory or cluster.memory_per_node,
        time=own.time or cluster.time,
        constraint=own.constraint or cluster.constraint,
        extra_lines=tuple(line for line in extra_lines if kind == "gpu" or not ASKS_FOR_GPUS.match(line)),
    )


def _gpus(asked: int | str, *, takes_all: bool) -> tuple[int, str | None]:
    """How many on each node, and how SLURM reads it: `a100:2`, or `2`; one of them where not all are taken."""
    gpu_type, _, text = str(asked).rpartition(":")
    count = int(text) if takes_all else min(int(text), 1)
    if count == 0:
        return 0, None
    return count, f"{gpu_type}:{count}" if gpu_type else str(count)
