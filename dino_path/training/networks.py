"""Student and teacher: how they are built, started and put on the device, and how the teacher follows."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dino_path.config import HeadConfig, ModelConfig, ObjectiveConfig, TrainingConfig
from dino_path.distributed import World
from dino_path.errors import ConfigError
from dino_path.model.backbone import build_backbone, has_patch_tokens
from dino_path.model.batch_norm import share_batch_norms
from dino_path.model.head import DinoHead, DinoNetwork, MaskToken, MatchHead
from dino_path.model.start import read_start, start_network
from dino_path.training.acceleration import (
    attend_explicitly,
    checkpoint_activations,
    compile_blocks,
    fold_layer_scales,
    recompute_elementwise,
)
from dino_path.training.objective.term import Needs
from dino_path.training.sharding import local, shard


def build_network(
    model: ModelConfig, objective: ObjectiveConfig, *, drop_path_rate: float, guide_features: int | None = None
) -> DinoNetwork:
    """A freshly initialised backbone with the heads and the mask token that the objective needs.

    Args:
        guide_features: of the model to learn from; None: there is none, whatever the objective says.

    Raises:
        ConfigError: timm cannot build the backbone, or iBOT is asked of one without patch tokens.
    """
    backbone = build_backbone(
        model.backbone,
        model.backbone_arguments,
        drop_path_rate=drop_path_rate,
        drop_path_is_constant=model.drop_path_schedule == "constant",
    )
    ibot = objective.ibot if objective.ibot.weight > 0 else None
    check_needs(backbone, model.backbone, Needs(masks=ibot is not None))
    num_features, is_shared = int(backbone.num_features), ibot is not None and ibot.head == "shared"  # type: ignore[arg-type]
    return DinoNetwork(
        backbone,
        build_head(num_features, objective.dino) if objective.dino.weight > 0 or is_shared else None,
        mask_token=MaskToken(num_features) if ibot is not None else None,
        patch_head=build_head(num_features, ibot) if ibot is not None and not is_shared else None,
        match_head=MatchHead(num_features, guide_features, has_patches=objective.distill.patches > 0)
        if guide_features is not None
        else None,
    )


def build_head(num_features: int, config: HeadConfig) -> DinoHead:
    """A freshly initialised head for features of this size."""
    return DinoHead(
        num_features,
        config.num_prototypes,
        hidden=config.head_hidden,
        bottleneck=config.head_bottleneck,
        num_layers=config.head_layers,
        batch_norm=config.head_batch_norm,
        norm_last_layer=config.norm_last_layer,
    )


def load_start_weights(network: DinoNetwork, model: ModelConfig) -> None:
    """Start from `model.weights`: the backbone, and mask token and heads if included.

    Raises:
        CheckpointError: the weights cannot be obtained, or belong to another architecture.
    """
    assert model.weights is not None
    start = read_start(model.backbone, model.backbone_arguments, model.weights)
    start_network(network, start, source=f"model.weights={model.weights}")


def check_needs(backbone: nn.Module, name: str, needs: Needs) -> None:
    """Refuse a backbone that cannot give what the objective's terms need.

    Raises:
        ConfigError: patch tokens are needed, and it has none.
    """
    if (needs.patches or needs.masks) and not has_patch_tokens(backbone):
        what = "iBOT (objective.ibot.weight)" if needs.masks else "A term of the objective"
        raise ConfigError(
            f"model.backbone={name}",
            f"a {type(backbone).__name__} has no patch tokens.",
            f"{what} needs patch tokens, so a ViT is required.",
            "Use a ViT, or set objective.ibot.weight=0: DINO trains any backbone.",
        )


def prepare_networks(
    student: DinoNetwork, teacher: DinoNetwork, name: str, training: TrainingConfig, world: World
) -> nn.Module:
    """Put both networks on our device, as fast and as small as was asked; returns the student to call.

    Args:
        name: of the backbone, for messages.
    """
    recompute = training.activation_checkpointing  # of the student; the teacher keeps nothing anyway
    if recompute is True:
        checkpoint_activations(student.backbone, name)
    elif recompute == "elementwise" and not training.compile:
        recompute_elementwise(student.backbone, name)
    for network in (student, teacher):
        if world.size > 1:  # as published; a network without batch norm stays as it is
            share_batch_norms(network, world.device)
        fold_layer_scales(network.backbone)
        if world.device.type == "cpu" and resolve_precision(training, world.device) == "bf16":
            attend_explicitly(network.backbone)
        if training.compile:
            compile_blocks(network.backbone, name, recompute_elementwise=recompute == "elementwise")
        if training.sharding is not None:
            shard(network, world, name)
        if next(network.parameters()).device != world.device:  # tensors without values (plan/counted.py) do not move
            network.to(world.device)
    if world.size == 1 or training.sharding is not None:
        return student
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(student, device_ids=devices, gradient_as_bucket_view=True)


def resolve_precision(training: TrainingConfig, device: torch.device) -> str:
    """`bf16` on CUDA by default; `fp32` on CPUs, most of which have no fast bf16."""
    if training.precision != "auto":
        return training.precision
    return "bf16" if device.type == "cuda" else "fp32"


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float, *, has_pass: bool = True) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, over parameters, after the step.

    Args:
        has_pass: the teacher sees the views itself, and its batch norms keep statistics of its own, as published. One
            that does not gets the student's.
    """
    ours, theirs = ([local(parameter) for parameter in network.parameters()] for network in (teacher, student))
    torch._foreach_lerp_(ours, theirs, 1.0 - momentum)
    if not has_pass:
        for buffer, other in zip(teacher.buffers(), student.buffers(), strict=True):
            buffer.copy_(other)
