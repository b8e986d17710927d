"""Backbones by the names of papers: what `dino-path models` counts when it is asked for none."""

from __future__ import annotations

from collections.abc import Mapping

SMALLER = {"embed_dim": 256, "depth": 6, "num_heads": 8}
# The ViT sizes of Zhai et al. 2022 ("Scaling Vision Transformers") by their names there, and three others.
KNOWN: dict[str, tuple[str, Mapping[str, bool | int | float | str]]] = {
    "s/28": ("vit_small_patch16_224", {"patch_size": 28, **SMALLER}),
    "s/16": ("vit_small_patch16_224", SMALLER),
    "S/32": ("vit_small_patch32_224", {}),
    "Ti/16": ("vit_tiny_patch16_224", {}),
    "B/32": ("vit_base_patch32_224", {}),
    "S/16": ("vit_small_patch16_224", {}),
    "B/28": ("vit_base_patch16_224", {"patch_size": 28}),
    "B/16": ("vit_base_patch16_224", {}),
    "L/16": ("vit_large_patch16_224", {}),
    "g/14": ("vit_giant_patch14_224", {}),
    "G/14": ("vit_gigantic_patch14_224", {}),
    "ResNet-50": ("resnet50", {}),
    "ConvNeXt-T": ("convnext_tiny", {}),
    "Swin-T": ("swin_tiny_patch4_window7_224", {}),
}
