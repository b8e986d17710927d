"""Stochastic depth at one rate in every block (Huang et al. 2016), as DINOv2 trains its large ViTs.

Shape suffixes: B images, b of them computed, N tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def drop_everywhere(model: nn.Module, rate: float) -> None:
    """Give every stochastic-depth layer of timm the same rate; in the first block this layer is an nn.Identity.

    timm computes a branch and then drops it. Here a plain ViT block computes its branches only for the images that keep
    them, so that time and memory of training fall by `rate`. The number of these images in a batch is then fixed, not
    random.
    """
    for module in [*model.modules()]:
        # Exactly Block: subclasses change the forward pass, which ours would silently replace.
        if type(module) is Block:
            module.forward = partial(_forward_of_some, module, rate)
            continue
        for child in [name for name, _ in module.named_children() if name.startswith("drop_path")]:
            setattr(module, child, DropPath(rate))


def _forward_of_some(
    block: Block, rate: float, tokens_BND: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """timm's `Block.forward`, with each branch computed and added for only some of the images.

    Source: facebookresearch/dinov2 `block.py`, drop_add_residual_stochastic_depth.
    """
    if not block.training:
        plain: Tensor = Block.forward(block, tokens_BND, attn_mask, is_causal)
        return plain
    attended_BND = _with_branch(
        tokens_BND,
        lambda some: block.ls1(block.attn(block.norm1(some), attn_mask=attn_mask, is_causal=is_causal)),
        rate,
    )
    return _with_branch(attended_BND, lambda some: block.ls2(block.mlp(block.norm2(some))), rate)


def _with_branch(tokens_BND: Tensor, branch: Callable[[Tensor], Tensor], rate: float) -> Tensor:
    """Add B / b times `branch` to b = (1 - rate) B random images, rounded down and at least one."""
    num_images = len(tokens_BND)
    num_kept = max(int(num_images * (1 - rate)), 1)
    kept_b = torch.randperm(num_images, device=tokens_BND.device)[:num_kept]
    # B / b keeps the expectation over images, as dividing by the keep probability does in timm's DropPath.
    update_bND = branch(tokens_BND.index_select(0, kept_b))
    added: Tensor = _IndexAdd.apply(tokens_BND, kept_b, update_bND, num_images / num_kept)
    return added


class _IndexAdd(torch.autograd.Function):
    """`index_add` that does not store its update. torch's keeps it for the backward pass, only for its shape."""

    @staticmethod
    def forward(ctx: Any, tokens_BND: Tensor, kept_b: Tensor, update_bND: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(kept_b)
        ctx.factor, ctx.dtype = factor, update_bND.dtype
        return tokens_BND.index_add(0, kept_b, update_bND.to(tokens_BND.dtype), alpha=factor)

    @staticmethod
    def backward(ctx: Any, grad_BND: Tensor) -> tuple[Tensor | None, ...]:
        (kept_b,) = ctx.saved_tensors
        return grad_BND, None, (ctx.factor * grad_BND.index_select(0, kept_b)).to(ctx.dtype), None
