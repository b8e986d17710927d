"""The optimizer: its parameter groups, their scheduled values, and gradient clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dino_path.config import OptimConfig
from dino_path.model.backbone import layers_of
from dino_path.model.head import DinoNetwork
from dino_path.training.schedules import StepSettings
from dino_path.training.sharding import local, norms


def build_optimizer(student: DinoNetwork, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or SGD; a group holds parameters with the same learning rate and with or without weight decay.

    Biases and everything one-dimensional are not decayed. As published, position embeddings, class token, mask token
    and prototypes are; without `optim.decay_embeddings` the tokens and what timm's `no_weight_decay` names are not.
    Prototypes that `optim.freeze_by` freezes by their learning rate are groups of their own.
    """
    spared = set() if optim.decay_embeddings else {"mask_token.weight"}
    if not optim.decay_embeddings and hasattr(student.backbone, "no_weight_decay"):
        spared |= {f"backbone.{name}" for name in student.backbone.no_weight_decay()}  # type: ignore[operator]
    factors = lr_factors(student, optim)
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    # Without layer decay: the decayed, the others, the prototypes, in this order, which checkpoints know them by.
    for is_frozen_first, is_decayed in ((False, True), (False, False), (True, True)):
        for name, parameter in student.named_parameters():
            is_prototype = ".last_layer." in name and optim.freeze_by == "zero_lr"
            is_plain = not is_prototype and (name.endswith(".bias") or parameter.ndim == 1 or name in spared)
            if not parameter.requires_grad or (is_prototype, not is_plain) != (is_frozen_first, is_decayed):
                continue
            group = groups.setdefault((factors[name], is_decayed, is_frozen_first), {"params": []})
            group["params"].append(parameter)
    for (lr_factor, is_decayed, is_frozen_first), group in groups.items():
        group |= {"lr_factor": lr_factor, "is_decayed": is_decayed, "is_frozen_first": is_frozen_first}
        if not is_decayed:
            group["weight_decay"] = 0.0
    match optim.optimizer:
        case "adamw":
            return torch.optim.AdamW([*groups.values()], lr=0.0, fused=True)
        case "sgd":
            return torch.optim.SGD([*groups.values()], lr=0.0, momentum=0.9)


def lr_factors(student: DinoNetwork, optim: OptimConfig) -> dict[str, float]:
    """Learning-rate factor of each of the student's parameters.

    `optim.layer_decay` to the power of the layers above: L + 1 - l for a parameter of layer l of L, where embeddings
    and tokens are layer 0, the blocks 1 to L, and the last norm and the heads L + 1 (Bao et al. 2021; dinov2
    `param_groups.py`). timm knows the layers of all its models. `optim.patch_embed_lr` comes on top.
    """
    layers = layers_of(student.backbone) if optim.layer_decay < 1 else {}
    above = max(layers.values(), default=0) + 1
    factors = {}
    for name, _ in student.named_parameters():
        part, _, within = name.partition(".")
        layer = {"backbone": layers.get(within, above), "mask_token": 0}.get(part, above)
        factor = optim.layer_decay ** (above - layer)
        factors[name] = factor * optim.patch_embed_lr if within.startswith("patch_embed.") else factor
    return factors


def set_schedules(optimizer: torch.optim.Optimizer, settings: StepSettings) -> None:
    """Write this step's learning rate to all groups, and its weight decay to the decayed ones."""
    for group in optimizer.param_groups:
        lr = settings.lr * group.get("lr_factor", 1.0)  # which old checkpoints do not name
        group["lr"] = 0.0 if settings.last_layer_frozen and group.get("is_frozen_first") else lr
        if group["is_decayed"]:
            group["weight_decay"] = settings.weight_decay


def clip_gradients(parts: Mapping[str, Sequence[nn.Parameter]], optim: OptimConfig) -> list[Tensor]:
    """Clip all gradients in place; returns the norm of each part from before, 0 for a part without gradients.

    `parameter`: each tensor whose own norm exceeds the limit is scaled to it (facebookresearch/dino); `module`: the
    tensors of the backbone, and those of each head with its prototypes, by one factor (dinov2); `global`: all tensors
    by one factor. The first bites far less often; the numbers are not comparable.
    """
    by_part = [[parameter.grad for parameter in part if parameter.grad is not None] for part in parts.values()]
    gradients = [gradient for part in by_part for gradient in part]
    counts = [len(part) for part in by_part]
    lengths = norms(gradients)
    of_parts = [part.norm() for part in torch.split(lengths, counts)]
    if optim.clip_norm is not None:
        match optim.clip_scope:
            case "parameter":
                measured = lengths
            case "module":
                modules = [part.replace("prototypes", "head") for part in parts]
                of_module = {
                    name: torch.stack([norm for norm, module in zip(of_parts, modules, strict=True) if module == name])
                    for name in modules
                }
                measured = torch.cat(
                    [of_module[name].norm().expand(count) for name, count in zip(modules, counts, strict=True)]
                )
            case "global":
                measured = lengths.norm().expand(len(gradients))
        factors = (optim.clip_norm / (measured + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], list(factors.unbind()))
    return of_parts
