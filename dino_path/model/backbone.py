"""Any timm backbone as a feature extractor: images in, one vector per image out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import DropPath, LayerScale, Mlp, set_fused_attn
from timm.models import group_parameters
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dino_path.errors import ConfigError
from dino_path.model.locality import OUR_ARGUMENTS, add_locality
from dino_path.model.names import architecture
from dino_path.model.stochastic_depth import drop_everywhere

Argument = bool | int | float | str
MOST_BLOCKS, MOST_WIDE = 1_000, 100_000  # of a network; of anything else that an argument counts

# timm families whose position embedding can follow the input size; without it 96 px local views are refused.
DYNAMIC_FAMILIES = ("vision_transformer", "deit", "eva", "vision_transformer_hybrid")


def build_backbone(
    name: str,
    arguments: Mapping[str, Argument],
    *,
    drop_path_rate: float = 0.0,
    drop_path_is_constant: bool = False,
) -> nn.Module:
    """A randomly initialised timm model without classifier; `forward` maps (B, 3, H, W) to (B, D).

    Args:
        name: a timm model name. A pretrained tag after the dot is ignored here: no weights are loaded.
        arguments: further arguments of timm.create_model, such as embed_dim or img_size; and ours, see `locality`.
        drop_path_rate: stochastic depth (Huang et al. 2016), rising linearly over the blocks; 0: none.
        drop_path_is_constant: every block has the full rate instead, see `stochastic_depth`.

    Raises:
        ConfigError: timm does not know the name, or the model does not take the arguments.
    """
    set_fused_attn(True)
    _refuse_huge(name, arguments)
    plain = {key: value for key, value in arguments.items() if key not in OUR_ARGUMENTS}
    keywords: dict[str, Any] = {**backbone_arguments(name), **plain}
    if drop_path_rate > 0:
        keywords["drop_path_rate"] = drop_path_rate
    try:
        model: nn.Module = timm.create_model(architecture(name), pretrained=False, num_classes=0, **keywords)
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ConfigError(
            f"model.backbone={name}",
            f"timm cannot build it with {keywords} ({' '.join(str(error).split())}).",
            "Arguments that this timm model takes are needed.",
            "Correct model.arguments (and model.drop_path_rate: not every model supports it).",
        ) from None
    if drop_path_rate == 0:  # Swin and others have some by default, and the teacher must have none
        for module in model.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
    elif drop_path_is_constant:
        drop_everywhere(model, drop_path_rate)
    add_locality(model, name, arguments)
    return model


def _refuse_huge(name: str, arguments: Mapping[str, Argument]) -> None:
    """Refuse arguments of impossible size before timm builds the model: a model folder may contain anything.

    Raises:
        ConfigError: a number is larger than in any network that was ever trained.
    """
    for key, value in arguments.items():
        most = MOST_BLOCKS if key == "depth" else MOST_WIDE
        if isinstance(value, int | float) and abs(value) > most:
            raise ConfigError(
                f"model.backbone={name}",
                f"{key} is {value}.",
                f"At most {most:,} is allowed.",
                "Correct model.arguments, or fetch the model folder again.",
            )


def layers_of(backbone: nn.Module) -> dict[str, int]:
    """The layer of each parameter of a timm model, 0 for embeddings; parameters after the last block are left out."""
    matcher = backbone.group_matcher(coarse=False)  # type: ignore[operator]
    layers: dict[str, int] = group_parameters(backbone, matcher, reverse=True)
    return {name: layer for name, layer in layers.items() if not name.startswith(("norm.", "fc_norm.", "head."))}


def backbone_arguments(name: str) -> dict[str, Argument]:
    """The timm arguments that we add for multi-crop: position embeddings that follow the input size."""
    arch = architecture(name)
    is_dynamic = any(arch in timm.list_models(module=family) for family in DYNAMIC_FAMILIES)
    return {"dynamic_img_size": True} if is_dynamic else {}


def features_and_tokens(backbone: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The features of `backbone(images)`, (B, D), and all its tokens, (B, P + N, D), from one pass.

    The first P (`num_prefix_tokens`) are [CLS] and registers; the N patch tokens follow. The backbone must be one whose
    tokens are a sequence, such as a ViT (`has_patch_tokens`).
    """
    tokens: Tensor = backbone.forward_features(images)  # type: ignore[operator]
    features: Tensor = backbone.forward_head(tokens)  # type: ignore[operator]
    return features, tokens


def has_patch_tokens(backbone: nn.Module) -> bool:
    """Whether `features_and_tokens` takes this backbone."""
    return hasattr(backbone, "num_prefix_tokens") and hasattr(backbone, "patch_embed")


def count_parameters(module: nn.Module) -> int:
    """Number of scalars in all parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def check_input_sizes(backbone: nn.Module, name: str, sizes_px: tuple[int, ...]) -> None:
    """Run one blank image of each size through the backbone.

    Raises:
        ConfigError: the backbone cannot take one of the sizes (Swin and some ConvNets).
    """
    was_training = backbone.training
    backbone.eval()  # blank images must not enter running statistics
    for size_px in sizes_px:
        try:
            backbone(torch.zeros(1, 3, size_px, size_px))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(
                f"model.backbone={name}",
                f"it does not take views of {size_px} px ({' '.join(str(error).split())[:200]}).",
                "Every view size must fit the backbone: for a ViT a multiple of its patch size.",
                "Change views.global_px or views.local_px, or use another backbone. A Swin pads other sizes with"
                " model.arguments={strict_img_size: false}.",
            ) from None
    backbone.train(was_training)


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """The blocks of a backbone; empty if the timm model has no `blocks` (ResNets)."""
    return [block for path, stack in backbone.named_modules() if path.endswith("blocks") for block in stack.children()]


def plain_mlps_of(backbone: nn.Module) -> list[Mlp]:
    """timm's MLPs of two layers with an activation function, and nothing that learns, between them."""
    return [each for each in backbone.modules() if isinstance(each, Mlp) and isinstance(each.norm, nn.Identity)]


def layer_scales_of(backbone: nn.Module) -> list[tuple[nn.Linear, LayerScale]]:
    """The LayerScales of timm's ViT blocks, each with the linear layer whose output it scales.

    Only plain layers: a layer with an adapter (LoRA) cannot be scaled through its weights.
    """
    pairs = [
        (block.get_submodule(layer), block.get_submodule(scale))
        for block in backbone.modules()
        if isinstance(block, Block)
        for layer, scale in (("attn.proj", "ls1"), ("mlp.fc2", "ls2"))
    ]
    return [(layer, scale) for layer, scale in pairs if type(layer) is nn.Linear and isinstance(scale, LayerScale)]
