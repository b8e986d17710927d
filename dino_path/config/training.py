"""How it is optimised, and for how long: `optim`, `training`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dino_path.config.durations import AsDuration, Duration
from dino_path.config.section import Section


class OptimConfig(Section):
    """Optimizer and its schedules. Cosine schedules as in DINO, one value a step."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="the paper: adamw for ViTs, sgd for ResNet-50")
    base_lr: float = Field(5e-4, gt=0, description="peak learning rate, at the batch that `lr_scaling` names")
    lr_scaling: Literal["linear", "sqrt"] = Field(
        "linear",
        description="how it follows the global batch. `linear`: x batch / 256, as in DINO; `sqrt`: x the square root"
        " of batch / 1024, as in DINOv2",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="each layer's learning rate is this times the next one's: the heads have the whole rate, the last"
        " block this share of it. Below 1 the first layers keep what they know; 1: all the same",
    )
    patch_embed_lr: float = Field(1.0, gt=0, description="the patch embedding's learning rate, times this; DINOv2: 0.2")
    final_lr: float = Field(1e-6, ge=0, description="learning rate that the cosine goes to")
    lr_warmup: AsDuration = Field(Duration(amount=10, unit="epochs"), description="linear, from 0")
    weight_decay: float = Field(0.04, ge=0, description="at the start; not for biases and norms")
    final_weight_decay: float = Field(0.4, ge=0, description="at the end of the cosine")
    decay_embeddings: bool = Field(
        True,
        description="weight decay on position embeddings and [CLS] token too, as in the published code; false: none on"
        " what timm says should have none",
    )
    clip_norm: float | None = Field(3.0, gt=0, description="gradient clipping; None: off")
    clip_scope: Literal["parameter", "module", "global"] = Field(
        "parameter",
        description="`parameter` clips each tensor by its own norm, as DINO's code does; `module` backbone and heads,"
        " each by its own, as DINOv2's; `global` the whole",
    )
    freeze_last_layer: AsDuration = Field(
        Duration(amount=1, unit="epochs"), description="the prototypes get no update for so long (stability)"
    )
    freeze_by: Literal["no_gradient", "zero_lr"] = Field(
        "no_gradient",
        description="how they are frozen: `no_gradient` as in the published code, the optimizer does not know them"
        " until then; `zero_lr` as in dinov2, its moments start at once, and a global norm counts them",
    )


class TrainingConfig(Section):
    """The loop. Give exactly one of num_steps, num_epochs, num_tiles."""

    num_steps: int | None = Field(None, ge=1, description="length of the run in optimizer steps")
    num_epochs: float | None = Field(None, gt=0, description="or in passes over the store")
    num_tiles: float | None = Field(None, ge=1, description="or in tiles seen")
    continue_from: Path | None = Field(
        None,
        description="start from all that another run holds (student, teacher, heads, centers, the optimizer's moments):"
        " a run folder, for its newest checkpoint, or a checkpoint; into a new run folder. See pretraining.md",
    )
    schedules: Literal["extend", "restart"] = Field(
        "extend",
        description="with `continue_from`. `extend`: steps count on, and length and schedules are those of one run from"
        " the other's first step; `restart`: steps, length, warm-ups and schedules begin at 0",
    )
    freeze_backbone: AsDuration = Field(
        Duration(amount=0, unit="steps"),
        description="the student's backbone gets no update for so long, and the heads alone learn: for a backbone that"
        " starts from trained weights, which random heads would spoil. The teacher follows as ever",
    )
    batch_size_per_gpu: int = Field(64, ge=1, description="tiles per process and forward pass")
    accumulate_steps: int = Field(
        1,
        ge=1,
        description="forward and backward passes per optimizer step: the global batch is batch_size_per_gpu x this x"
        " processes, where one pass of it all does not fit into memory",
    )
    activation_checkpointing: bool | Literal["elementwise"] = Field(
        False,
        description="compute some of the student twice instead of keeping it: less memory, the same numbers."
        " `elementwise`: the MLPs' activation functions, a fifth of a ViT's memory (layer norms too, a third,"
        " when compiled), for a few percent of the time; true: the blocks, nearly all of it, for a forward pass more",
    )
    sharding: Literal["fsdp2"] | None = Field(
        None,
        description="`fsdp2`: each process keeps its share of both networks and of the optimizer's state, and gathers"
        " one block at a time: for a backbone that one GPU does not hold. The same numbers, but for rounding. None:"
        " every process keeps all",
    )
    compile: bool = Field(
        False, description="torch.compile each transformer block: faster on a GPU after minutes of compiling"
    )
    fused_loss: bool = Field(
        True,
        description="never hold the logits of all views: a few tiles' at a time, with their gradients. Less memory, the"
        " same numbers but for rounding",
    )
    momentum: float = Field(0.996, ge=0, le=1, description="of the teacher, at the start; use 0.9995 at batch 256")
    final_momentum: float = Field(1.0, ge=0, le=1, description="at the end of the cosine")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="autocast of backbone and head: `auto` is bf16 on CUDA, fp32 on a CPU"
    )
    balance: Literal["slide", "patient"] | None = Field(
        None,
        description="draw as many tiles from every slide (patient), however many it has; None: every tile as often."
        " A small slide's tiles then come more often, in other views each time",
    )
    seed: int = Field(0, ge=0, description="of the weights, the order of the tiles and the views")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` is CUDA where there is one")
    num_workers: int | None = Field(
        None,
        ge=0,
        description="processes that make views; None: one less than this process may use cores, at most 8; 0: none."
        " Changes no view",
    )
    timeout_s: float = Field(
        600.0,
        gt=0,
        description="how long processes wait for one another, at the start and in every exchange, before they name who"
        " is late and end",
    )
    checkpoint_every_steps: int = Field(1000, ge=1, description="a killed run loses at most so many steps")
    keep_checkpoints: int = Field(3, ge=1, description="the newest so many are kept")
    max_non_finite_steps: int = Field(10, ge=0, description="skipped steps after which the run ends")

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        given = [n for n in ("num_steps", "num_epochs", "num_tiles") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of num_steps, num_epochs, num_tiles (given: {given or 'none'})")
        return self

    @model_validator(mode="after")
    def _schedules_of_what(self) -> TrainingConfig:
        if self.schedules == "restart" and self.continue_from is None:
            raise ValueError("schedules=restart needs continue_from: a run that starts from none begins at 0 anyway")
        return self

    @model_validator(mode="after")
    def _compiled_or_sharded(self) -> TrainingConfig:
        if self.compile and self.sharding is not None:
            raise ValueError("compile and sharding do not go together yet: leave one of them out")
        return self
