"""How it is optimised, and for how long: `optim`, `training`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dino_path.config.durations import AsDuration, Duration
from dino_path.config.section import Section


class OptimConfig(Section):
    """Optimizer and its schedules. Cosine schedules as in DINO, with one value per step."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="the paper: adamw for ViTs, sgd for ResNet-50")
    base_lr: float = Field(5e-4, gt=0, description="peak learning rate, at the batch size of `lr_scaling`")
    lr_scaling: Literal["linear", "sqrt"] = Field(
        "linear",
        description="how `base_lr` is scaled with the global batch. `linear`: x batch / 256, as in DINO; `sqrt`: x"
        " the square root"
        " of batch / 1024, as in DINOv2",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="each layer's learning rate is this factor times the next layer's: the heads have the full rate,"
        " the last block this share of it. Below 1, early layers change less; 1: all equal",
    )
    patch_embed_lr: float = Field(
        1.0, gt=0, description="further factor for the learning rate of the patch embedding; DINOv2: 0.2"
    )
    final_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine")
    lr_warmup: AsDuration = Field(Duration(amount=10, unit="epochs"), description="linear, from 0")
    weight_decay: float = Field(0.04, ge=0, description="at the start; not for biases and norms")
    final_weight_decay: float = Field(0.4, ge=0, description="at the end of the cosine")
    decay_embeddings: bool = Field(
        True,
        description="weight decay also on position embeddings and [CLS] token, as in the published code; false: none"
        " on the parameters that timm exempts",
    )
    clip_norm: float | None = Field(3.0, gt=0, description="gradient clipping; None: off")
    clip_scope: Literal["parameter", "module", "global"] = Field(
        "parameter",
        description="`parameter` clips each tensor by its own norm, as in DINO's code; `module` clips backbone and"
        " heads, each by its own norm, as in DINOv2; `global` clips all by one norm",
    )
    freeze_last_layer: AsDuration = Field(
        Duration(amount=1, unit="epochs"), description="the prototypes get no update for this long (stability)"
    )
    freeze_by: Literal["no_gradient", "zero_lr"] = Field(
        "no_gradient",
        description="how they are frozen: `no_gradient`, as in the published code: the optimizer does not see them"
        " until then; `zero_lr`, as in dinov2: its moments start at once, and a global norm includes them",
    )


class TrainingConfig(Section):
    """The loop. Give exactly one of num_steps, num_epochs, num_tiles."""

    num_steps: int | None = Field(None, ge=1, description="length of the run in optimizer steps")
    num_epochs: float | None = Field(None, gt=0, description="or in passes over the store")
    num_tiles: float | None = Field(None, ge=1, description="or in tiles seen")
    continue_from: Path | None = Field(
        None,
        description="continue another run in a new run folder, with its student, teacher, heads, centers and"
        " optimizer moments: its run folder (newest checkpoint) or one checkpoint. See pretraining.md",
    )
    schedules: Literal["extend", "restart"] = Field(
        "extend",
        description="with `continue_from`. `extend`: the step count continues, and length and schedules are those of"
        " a single run from the other run's first step; `restart`: steps, length, warm-ups and schedules start at 0",
    )
    freeze_backbone: AsDuration = Field(
        Duration(amount=0, unit="steps"),
        description="the student's backbone gets no update for this long, and only the heads train: for a backbone"
        " that starts from trained weights, which random heads would damage. The teacher follows as usual",
    )
    batch_size_per_gpu: int = Field(64, ge=1, description="tiles per process and forward pass")
    accumulate_steps: int = Field(
        1,
        ge=1,
        description="forward and backward passes per optimizer step: the global batch is batch_size_per_gpu x this x"
        " processes. Use it when the batch does not fit into memory",
    )
    activation_checkpointing: bool | Literal["elementwise"] = Field(
        False,
        description="recompute activations of the student in the backward pass instead of storing them: less memory,"
        " identical numbers. `elementwise`: the MLPs' activation functions, which saves a fifth of a ViT's memory (a"
        " third when compiled, with layer norms) for a few percent of the time; true: all blocks, which saves nearly"
        " all of it for one more forward pass",
    )
    sharding: Literal["fsdp2"] | None = Field(
        None,
        description="`fsdp2`: each process holds its share of both networks and of the optimizer's state, and"
        " gathers one block at a time: for a backbone too large for one GPU. The same numbers up to rounding. None:"
        " every process holds everything",
    )
    compile: bool = Field(
        False, description="torch.compile each transformer block: faster on a GPU after minutes of compiling"
    )
    fused_loss: bool = Field(
        True,
        description="compute logits and their gradients a few tiles at a time, never for all views at once. Less"
        " memory, the same numbers up to rounding",
    )
    momentum: float = Field(0.996, ge=0, le=1, description="teacher momentum at the start; use 0.9995 at batch 256")
    final_momentum: float = Field(1.0, ge=0, le=1, description="teacher momentum at the end of the cosine")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="autocast of backbone and head: `auto` is bf16 on CUDA, fp32 on a CPU"
    )
    balance: Literal["slide", "patient"] | None = Field(
        None,
        description="draw the same number of tiles from every slide (patient), whatever its size; the tiles of a"
        " small slide then repeat more often, in new views each time. None: every tile equally often",
    )
    seed: int = Field(0, ge=0, description="seed of the weights, the order of the tiles and the views")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` is CUDA if there is a GPU")
    num_workers: int | None = Field(
        None,
        ge=0,
        description="processes that make views; None: one less than the cores that this process may use, at most 8;"
        " 0: none. Views do not depend on it",
    )
    timeout_s: float = Field(
        600.0,
        gt=0,
        description="how long processes wait for one another, at the start and in every exchange, before they name"
        " the late ones and end",
    )
    checkpoint_every_steps: int = Field(1000, ge=1, description="a killed run loses at most this many steps")
    keep_checkpoints: int = Field(3, ge=1, description="number of newest checkpoints to keep")
    max_non_finite_steps: int = Field(10, ge=0, description="the run ends after this many skipped steps")

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
