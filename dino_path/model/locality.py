"""Shifted Patch Tokenization and Locality Self-Attention: ViTs for little data (Lee, Lee and Song 2021, 2112.13492).

Formulas, start values and order of values within a patch are those of the paper and of its authors' code
(aanna0701/SPT_LSA_ViT). No plain timm ViT can hold them: the norm within the tokenization folds into no convolution,
and the masked diagonal into no weight. timm refuses the model folder, since it knows no argument of these names.

Shape suffixes: B images, C channels, H and W edges in pixels, h and w edges in patches, p pixels of a patch's edge, D
width, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, PatchEmbed, VisionTransformer
from torch import Tensor, nn

from dino_path.errors import ConfigError

# Arguments of `build_backbone` that are ours and not timm's.
OUR_ARGUMENTS = (TOKENIZATION, ATTENTION) = ("shifted_patch_tokenization", "locality_self_attention")


class ShiftedPatchTokenization(nn.Module):
    """Patches of the image and of its four copies, shifted by half a patch along the diagonals: LayerNorm, Linear.

    It replaces a timm `PatchEmbed`; the image is padded with zeros.
    """

    def __init__(self, plain: PatchEmbed) -> None:
        super().__init__()
        self.patch_size, self.img_size = plain.patch_size, plain.img_size
        self.grid_size, self.num_patches, self.flatten = plain.grid_size, plain.num_patches, plain.flatten
        self.patch_px = int(plain.patch_size[0])
        num_values = 5 * plain.proj.in_channels * self.patch_px**2
        self.norm = nn.LayerNorm(num_values)
        self.proj = nn.Linear(num_values, plain.proj.out_channels)
        nn.init.xavier_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Tokens (B, h, w, D), or (B, N, D) for a ViT of one image size."""
        num_images, _, height, width = images_BCHW.shape
        patch, shift = self.patch_px, self.patch_px // 2
        padded = F.pad(images_BCHW, (shift, shift, shift, shift))
        corners = [(top, left) for top in (0, 2 * shift) for left in (0, 2 * shift)]
        shifted = [padded[..., top : top + height, left : left + width] for top, left in corners]
        stack_BCHW = torch.cat([images_BCHW, *shifted], dim=1)
        cells_BChpwp = stack_BCHW.reshape(num_images, -1, height // patch, patch, width // patch, patch)
        patches_Bhw = cells_BChpwp.permute(0, 2, 4, 3, 5, 1).flatten(3)
        tokens_BhwD: Tensor = self.proj(self.norm(patches_Bhw))
        return tokens_BhwD.flatten(1, 2) if self.flatten else tokens_BhwD


class LocalitySelfAttention(nn.Module):
    """Self-attention in which no token sees itself, with a learned temperature for each head.

    It uses the layers of a timm `Attention`, under their names. `inverse_temperature` starts at that attention's
    fixed 1 / sqrt(width of a head).
    """

    def __init__(self, plain: Attention) -> None:
        super().__init__()
        self.num_heads = int(plain.num_heads)
        self.qkv, self.q_norm, self.k_norm = plain.qkv, plain.q_norm, plain.k_norm
        self.attn_drop, self.proj, self.proj_drop = plain.attn_drop, plain.proj, plain.proj_drop
        self.inverse_temperature = nn.Parameter(torch.full((self.num_heads,), float(plain.scale)))

    def forward(self, tokens_BND: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D). timm passes masks only for other data than images; they are refused."""
        assert attn_mask is None
        assert not is_causal
        num_images, num_tokens, _ = tokens_BND.shape
        qkv = self.qkv(tokens_BND).reshape(num_images, num_tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        # Back to the query's dtype: the fp32 temperature would promote it, and attention needs one dtype.
        scaled = (query * self.inverse_temperature.view(-1, 1, 1)).to(query.dtype)
        others = ~torch.eye(num_tokens, dtype=torch.bool, device=tokens_BND.device)
        dropout = self.attn_drop.p if self.training else 0.0
        # scale=1: the learned temperature replaces the fixed one.
        mixed = F.scaled_dot_product_attention(scaled, key, value, attn_mask=others, dropout_p=dropout, scale=1.0)
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return out


def is_plain(arguments: Mapping[str, object]) -> bool:
    """Whether timm alone can build a backbone of these arguments."""
    return not any(arguments.get(key) for key in OUR_ARGUMENTS)


def add_locality(model: nn.Module, name: str, arguments: Mapping[str, object]) -> None:
    """Replace the tokenization, the attention of all blocks, or both, in place, according to `arguments`.

    Raises:
        ConfigError: not a plain ViT with square patches.
    """
    if is_plain(arguments):
        return
    vit: VisionTransformer = model  # for the type checker, which knows nothing of timm
    if not (type(model) is VisionTransformer and _is_known(vit)):
        raise ConfigError(
            f"model.backbone={name}",
            f"{' and '.join(key for key in OUR_ARGUMENTS if arguments.get(key))}: it does not support this.",
            "A plain ViT with square patches is needed (timm's VisionTransformer with its own attention).",
            "Use vit_small_patch16_224 or a similar model, or leave these settings off.",
        )
    if arguments.get(TOKENIZATION):
        vit.patch_embed = ShiftedPatchTokenization(vit.patch_embed)
    if arguments.get(ATTENTION):
        for block in vit.blocks:
            block.attn = LocalitySelfAttention(block.attn)


def _is_known(vit: VisionTransformer) -> bool:
    """Whether patches are square and every attention is timm's, without a norm or a gate after the heads."""
    height_px, width_px = vit.patch_embed.patch_size
    extras = [getattr(block.attn, name, None) for block in vit.blocks for name in ("norm", "gate")]
    return (
        height_px == width_px
        and all(type(block.attn) is Attention for block in vit.blocks)
        and all(isinstance(extra, (nn.Identity, type(None))) for extra in extras)
    )
