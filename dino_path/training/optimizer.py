"""The optimizer: its groups of parameters, what the schedules write into them, and clipped gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dino_path.config import OptimConfig
from dino_path.model.head import DinoNetwork
from dino_path.training.schedules import StepSettings
from dino_path.training.sharding import local, norms


def build_optimizer(student: DinoNetwork, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over two groups: decayed, and not decayed (biases and everything one-dimensional).

    As published, position embeddings, class token and prototypes are decayed; without `optim.decay_embeddings` what
    timm's `no_weight_decay` names is not. Prototypes that `optim.freeze_by` freezes by their learning rate are a
    third group.
    """
    spared: set[str] = set()
    if not optim.decay_embeddings and hasattr(student.backbone, "no_weight_decay"):
        spared = {f"backbone.{name}" for name in student.backbone.no_weight_decay()}  # type: ignore[operator]
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    prototypes: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("head.last_layer.") and optim.freeze_by == "zero_lr":
            prototypes.append(parameter)
        elif name.endswith(".bias") or parameter.ndim == 1 or name in spared:
            plain.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "is_decayed": True},
        {"params": plain, "is_decayed": False, "weight_decay": 0.0},
    ]
    if prototypes:
        groups.append({"params": prototypes, "is_decayed": True, "is_frozen_first": True})
    match optim.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=0.0, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=0.9)


def set_schedules(optimizer: torch.optim.Optimizer, settings: StepSettings) -> None:
    """Write this step's learning rate to all groups, and its weight decay to the decayed ones."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if settings.last_layer_frozen and group.get("is_frozen_first") else settings.lr
        if group["is_decayed"]:
            group["weight_decay"] = settings.weight_decay


def clip_gradients(parts: Sequence[Sequence[nn.Parameter]], optim: OptimConfig) -> list[Tensor]:
    """Clip all gradients in place; returns the norm of each part from before, 0 for a part without gradients.

    `parameter`: each tensor whose own norm exceeds the limit is scaled to it (facebookresearch/dino); `global`: all
    tensors by one factor (dinov2). The first bites far less often; the numbers are not comparable.
    """
    by_part = [[parameter.grad for parameter in part if parameter.grad is not None] for part in parts]
    gradients = [gradient for part in by_part for gradient in part]
    lengths = norms(gradients)
    if optim.clip_norm is not None:
        measured = lengths if optim.clip_scope == "parameter" else lengths.norm().expand(len(gradients))
        factors = (optim.clip_norm / (measured + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], list(factors.unbind()))
    return [part.norm() for part in torch.split(lengths, [len(gradients) for gradients in by_part])]
