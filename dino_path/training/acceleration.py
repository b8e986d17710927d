"""Options that change time and memory, and results by rounding at most."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_path.errors import ConfigError
from dino_path.model.backbone import blocks_of, layer_scales_of, plain_mlps_of

MAX_VARIANTS = (
    256  # of one block's code: resolutions x blocks with another stochastic depth x with and without gradient
)
# Of what a compiled block would keep. At 0.9 the compiler leaves out what is elementwise, layer norms too: 22 of the 34
# bytes that a ViT's block keeps for each token and feature in bf16 remain (counted on a CPU).
ELEMENTWISE_BUDGET = 0.9


def checkpoint_activations(backbone: nn.Module, name: str) -> None:
    """Let the backward pass compute the blocks' activations again instead of keeping them; random numbers repeat.

    Raises:
        ConfigError: this timm model cannot.
    """
    try:
        backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):
        raise ConfigError(
            "training.activation_checkpointing=true",
            f"timm's {name} has no activation checkpointing.",
            "A backbone with blocks, such as a ViT, ConvNeXt, Swin or ResNet, is needed.",
            "Set it to false, and raise training.accumulate_steps if memory is short.",
        ) from None


def recompute_elementwise(backbone: nn.Module, name: str) -> None:
    """Recompute the MLPs' activation functions in the backward pass instead of storing their outputs.

    In bf16 that is 8 of the 36 bytes that a ViT's block keeps for each token and feature.

    Raises:
        ConfigError: this timm model has none of timm's plain MLPs.
    """
    mlps = plain_mlps_of(backbone)
    if not mlps:
        raise ConfigError(
            "training.activation_checkpointing=elementwise",
            f"timm's {name} has no MLPs of two layers with an activation function between them.",
            "A ViT, Swin or ConvNeXt is needed.",
            "Set it to true; or to false, and raise training.accumulate_steps if memory is short.",
        )
    for mlp in mlps:
        mlp.forward = partial(_forward_keeping_one_hidden, mlp)


def _forward_keeping_one_hidden(mlp: Any, features: Tensor) -> Tensor:
    """timm's `Mlp.forward`; of its two hidden tensors the second is not kept for the gradient."""
    before = mlp.fc1(features)
    after = mlp.act(before)
    storage = after.untyped_storage()._cdata  # tensors without values (plan/counted.py) have no address

    def pack(kept: Tensor) -> Tensor | torch.Size:
        return kept.shape if kept.untyped_storage()._cdata == storage else kept

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        return mlp.act(before.detach()).view(packed) if isinstance(packed, torch.Size) else packed

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        projected = mlp.fc2(mlp.drop1(after))
    result: Tensor = mlp.drop2(projected)
    return result


def fold_layer_scales(backbone: nn.Module) -> None:
    """Let each LayerScale of timm's ViT blocks scale the weights of the previous layer instead of its output.

    g (W x + b) is (g W) x + g b, where the backward pass needs no W x + b: in bf16 that is 4 of the 40 bytes that such
    a block keeps for each token and feature, and two passes over them less. The parameters stay as they are.
    """
    for layer, scale in layer_scales_of(backbone):
        layer.forward = partial(_forward_scaled, layer, scale)  # type: ignore[method-assign]
        scale.forward = nn.Identity().forward


def _forward_scaled(layer: nn.Linear, scale: Any, features: Tensor) -> Tensor:
    """`layer` and then `scale`; a dropout between them, as timm has it, commutes with the scale."""
    bias = layer.bias * scale.gamma if layer.bias is not None else None
    return F.linear(features, layer.weight * scale.gamma.unsqueeze(1), bias)


def attend_explicitly(backbone: nn.Module) -> None:
    """Let timm's attention multiply its matrices itself instead of calling torch's fused kernel.

    On CPUs that kernel's backward pass in bf16 is slow: a step of ViT-Ti/16 took 0.79 s with it and 0.66 s without
    (benchmarks/training; AVX-512 with bf16). In fp32 it is the faster by 3 %.
    """
    for module in backbone.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices itself."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def compile_blocks(backbone: nn.Module, name: str, *, recompute_elementwise: bool = False) -> None:
    """torch.compile each block separately, for each resolution: the whole network would take much longer to compile.

    Args:
        recompute_elementwise: the compiler leaves it to the backward pass to compute again what is elementwise. A
            choice for the whole process: the last call before the first step counts.

    Raises:
        ConfigError: the backbone has no `blocks`.
    """
    import torch._dynamo
    import torch._functorch.config

    torch._functorch.config.activation_memory_budget = ELEMENTWISE_BUDGET if recompute_elementwise else 1.0
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VARIANTS)
    blocks = blocks_of(backbone)
    if not blocks:
        raise ConfigError(
            "training.compile=true",
            f"timm's {name} has no blocks to compile one by one.",
            "A backbone of blocks, such as a ViT, ConvNeXt or Swin, is needed.",
            "Set it to false.",
        )
    for block in blocks:
        block.compile(dynamic=False)
