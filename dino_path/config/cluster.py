"""What SLURM is asked for: `cluster`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, model_validator

from dino_path.config.section import Section

CpuStage = Literal["tile", "export", "report"]
GpuStage = Literal["pretrain", "embed", "baseline", "evaluate"]
GpuRequest = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*:[0-9]+$")]
"""So many GPUs of a type that the cluster knows: a100:2."""


class StageConfig(Section):
    """What one stage is given where it differs from `cluster`; `cpu` and `gpu` are all stages of a kind at once."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    partition: str | None = Field(None, description="as cluster.partition; None, here and below: what `cluster` says")
    account: str | None = Field(None, description="as cluster.account")
    qos: str | None = Field(None, description="as cluster.qos")
    gpus: Annotated[int, Field(ge=0)] | GpuRequest | None = Field(
        None, description="per node, as cluster.gpus_per_node; stages other than pretraining take one unless told here"
    )
    cpus: int | None = Field(None, ge=1, description="CPU cores of each process, as cluster.cpus_per_gpu")
    memory: str | None = Field(None, description="per node, as cluster.memory_per_node")
    time: str | None = Field(None, description="as cluster.time")
    constraint: str | None = Field(None, description="as cluster.constraint")
    extra_lines: tuple[str, ...] | None = Field(None, description="instead of cluster.extra_lines")


class ClusterConfig(Section):
    """What SLURM is asked for."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # account: 4711, time: 30 (minutes)

    partition: str | None = Field(None, description="None: the cluster's default")
    account: str | None = Field(None, description="who is charged; None: your default")
    qos: str | None = Field(None, description="quality of service; None: your default")
    nodes: int = Field(1, ge=1, description="pretraining only; everything else runs on one")
    gpus_per_node: Annotated[int, Field(ge=0)] | GpuRequest = Field(
        1, description="also the number of processes per node (1 process when 0); of one type: a100:2"
    )
    gpu_request: Literal["gpus-per-node", "gres"] = Field(
        "gpus-per-node", description="how GPUs are asked for: --gpus-per-node=a100:2, or --gres=gpu:a100:2"
    )
    cpus_per_gpu: int = Field(8, ge=1, description="CPU cores of each process, also where it has no GPU")
    memory_per_node: str | None = Field(None, description="as SLURM writes it: 64G")
    time: str = Field("24:00:00", description="limit, as SLURM writes it: 24:00:00, 2-12:00:00, or minutes")
    constraint: str | None = Field(None, description="node features, such as h200")
    array_tasks: int = Field(1, ge=1, description="tiling: job-array tasks over the slides")
    extra_lines: tuple[str, ...] = Field(
        (),
        description="further #SBATCH options, such as --mail-type=END; those that ask for GPUs go to GPU stages only",
    )
    stages: dict[CpuStage | GpuStage | Literal["cpu", "gpu"], StageConfig] = Field(
        {},
        description="what single stages are given instead (tile, export, report; pretrain, embed, baseline, evaluate),"
        " or all that use no GPU (cpu) or may (gpu); a stage's own word goes first",
    )
    setup_lines: tuple[str, ...] = Field(
        (),
        description="shell lines before the work (module load, venv): they put `dino-path` on the PATH, or set"
        " `dino_path=(...)` for a container. Empty: the Python that submits is used",
    )

    @model_validator(mode="after")
    def _refuse_gpus_without_use(self) -> ClusterConfig:
        for name, stage in self.stages.items():
            if name in ("cpu", *get_args(CpuStage)) and stage.gpus not in (None, 0):
                raise ValueError(f"stages.{name}.gpus: tile, export and report use no GPU")
        return self
