"""Attention of a ViT's last block. Fused attention does not return its softmax, so it is computed again here.

Shape suffixes: B images, A heads, N tokens (prefix tokens first, then patches row by row), D width, C channels, H and W
edges in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from dino_path.errors import CheckpointError
from dino_path.model.locality import LocalitySelfAttention


@dataclass(frozen=True)
class LastAttention:
    """Attention of the last block.

    Attributes:
        weights: (B, A, N, N); rows are queries, columns are keys; every row sums to one.
        num_prefix: tokens before the patches ([CLS], registers); [CLS] is the first.
        grid: (rows, columns) of patches.
    """

    weights: Tensor
    num_prefix: int
    grid: tuple[int, int]

    def of_cls(self) -> Tensor:
        """(B, A, rows, columns): attention of [CLS] to each patch."""
        return self._on_grid(0)

    def of_patch(self, row: int, column: int) -> Tensor:
        """(B, A, rows, columns): attention of one patch to each patch."""
        token = self.num_prefix + row * self.grid[1] + column
        return self._on_grid(token)

    def _on_grid(self, token: int) -> Tensor:
        num_images, num_heads = self.weights.shape[:2]
        return self.weights[:, :, token, self.num_prefix :].reshape(num_images, num_heads, *self.grid)


def vit_with_cls(backbone: nn.Module, name: str) -> VisionTransformer:
    """Check that the backbone has a [CLS] token whose attention can be shown, and return it.

    Raises:
        CheckpointError: not a plain ViT of timm with a [CLS] token. `name` is the model's, for the message.
    """
    if not (
        isinstance(backbone, VisionTransformer)
        and backbone.num_prefix_tokens > 0
        and isinstance(backbone.blocks[-1].attn, (Attention, LocalitySelfAttention))
    ):
        raise CheckpointError(
            name,
            f"is a {type(backbone).__name__}: it has no [CLS] token whose attention could be shown.",
            "A ViT of timm's VisionTransformer is needed.",
            "Use a ViT. For a CNN, a gradient method would be needed.",
        )
    return backbone


@torch.inference_mode()
def last_attention(backbone: nn.Module, images_BCHW: Tensor, *, name: str) -> LastAttention:
    """Run normalised images through a ViT, and return the attention of its last block.

    Raises:
        CheckpointError: not a plain ViT of timm with a [CLS] token. `name` is the model's, for the message.
    """
    vit = vit_with_cls(backbone, name)
    attention, seen = vit.blocks[-1].attn, []
    hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        vit(images_BCHW)
    finally:
        hook.remove()
    patch_height, patch_width = vit.patch_embed.patch_size
    grid = (images_BCHW.shape[2] // patch_height, images_BCHW.shape[3] // patch_width)
    return LastAttention(_weights(attention, seen[0]), int(vit.num_prefix_tokens), grid)


def _weights(attention: nn.Module, tokens_BND: Tensor) -> Tensor:
    num_images, num_tokens, _ = tokens_BND.shape
    qkv: Tensor = attention.qkv(tokens_BND)  # type: ignore[operator]
    num_heads = int(attention.num_heads)  # type: ignore[arg-type]
    query, key, _ = qkv.reshape(num_images, num_tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query), attention.k_norm(key)  # type: ignore[operator]
    if isinstance(attention, LocalitySelfAttention):
        logits_BANN = (query * attention.inverse_temperature.view(-1, 1, 1)) @ key.transpose(-2, -1)
        itself = torch.eye(num_tokens, dtype=torch.bool, device=tokens_BND.device)
        logits_BANN = logits_BANN.masked_fill(itself, -torch.inf)
    else:
        logits_BANN = (query * attention.scale) @ key.transpose(-2, -1)
    weights_BANN: Tensor = logits_BANN.softmax(dim=-1)
    return weights_BANN
