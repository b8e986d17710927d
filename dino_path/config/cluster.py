"""Resources requested from SLURM: `cluster`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, model_validator

from dino_path.config.section import Section

CpuStage = Literal["tile", "export", "report"]
GpuStage = Literal["pretrain", "embed", "baseline", "evaluate"]
GpuRequest = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*:[0-9]+$")]
"""A number of GPUs of a type known to the cluster: a100:2."""


class StageConfig(Section):
    """Settings of one stage that override `cluster`; `cpu` and `gpu` stand for all stages of a kind."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    partition: str | None = Field(None, description="as cluster.partition; None, here and below: as in `cluster`")
    account: str | None = Field(None, description="as cluster.account")
    qos: str | None = Field(None, description="as cluster.qos")
    gpus: Annotated[int, Field(ge=0)] | GpuRequest | None = Field(
        None, description="per node, as cluster.gpus_per_node; stages other than pretraining request one GPU by default"
    )
    cpus: int | None = Field(None, ge=1, description="CPU cores of each process, as cluster.cpus_per_gpu")
    memory: str | None = Field(None, description="per node, as cluster.memory_per_node")
    time: str | None = Field(None, description="as cluster.time")
    constraint: str | None = Field(None, description="as cluster.constraint")
    extra_lines: tuple[str, ...] | None = Field(None, description="instead of cluster.extra_lines")


class ClusterConfig(Section):
    """Resources requested from SLURM."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # account: 4711, time: 30 (minutes)

    partition: str | None = Field(None, description="None: the cluster's default")
    account: str | None = Field(None, description="account to charge; None: your default")
    qos: str | None = Field(None, description="quality of service; None: your default")
    nodes: int = Field(1, ge=1, description="nodes for pretraining; all other stages run on one")
    gpus_per_node: Annotated[int, Field(ge=0)] | GpuRequest = Field(
        1, description="also the number of processes per node (1 process if 0); to request a type: a100:2"
    )
    gpu_request: Literal["gpus-per-node", "gres"] = Field(
        "gpus-per-node", description="how GPUs are requested: --gpus-per-node=a100:2, or --gres=gpu:a100:2"
    )
    cpus_per_gpu: int = Field(8, ge=1, description="CPU cores of each process, even if it has no GPU")
    memory_per_node: str | None = Field(None, description="as SLURM writes it: 64G")
    time: str = Field("24:00:00", description="time limit, as SLURM writes it: 24:00:00, 2-12:00:00, or minutes")
    constraint: str | None = Field(None, description="node features, such as h200")
    array_tasks: int = Field(1, ge=1, description="tiling: job-array tasks over the slides")
    extra_lines: tuple[str, ...] = Field(
        (),
        description="further #SBATCH options, such as --mail-type=END; those that request GPUs are used only for GPU"
        " stages",
    )
    stages: dict[CpuStage | GpuStage | Literal["cpu", "gpu"], StageConfig] = Field(
        {},
        description="settings for single stages (tile, export, report; pretrain, embed, baseline, evaluate), or for"
        " all stages that use no GPU (cpu) or may use one (gpu); a stage's own setting takes precedence",
    )
    setup_lines: tuple[str, ...] = Field(
        (),
        description="shell lines that run before the command (module load, venv): they put `dino-path` on the PATH,"
        " or set `dino_path=(...)` for a container. Empty: the Python that submits is used",
    )

    @model_validator(mode="after")
    def _refuse_gpus_without_use(self) -> ClusterConfig:
        for name, stage in self.stages.items():
            if name in ("cpu", *get_args(CpuStage)) and stage.gpus not in (None, 0):
                raise ValueError(f"stages.{name}.gpus: tile, export and report use no GPU")
        return self
