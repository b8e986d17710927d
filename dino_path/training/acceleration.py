"""Options that change time and memory, and results by rounding at most."""

from __future__ import annotations

import torch
from torch import nn

from dino_path.errors import ConfigError
from dino_path.model.backbone import blocks_of

MAX_VARIANTS = (
    256  # of one block's code: resolutions x blocks with another stochastic depth x with and without gradient
)


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
            "Set it to false, and raise training.accumulate_steps where memory is short.",
        ) from None


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


def compile_blocks(backbone: nn.Module, name: str) -> None:
    """torch.compile each block by itself, for each resolution: the whole network would compile for much longer.

    Raises:
        ConfigError: the backbone has no `blocks`.
    """
    import torch._dynamo

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
