"""Features from a ViT's tokens: [CLS], the mean of the patch tokens, or both; and the patch tokens.

Tokens are those of the last block after the final norm. In a ViT that norms only what it has pooled (timm's `fc_norm`),
that norm is applied to each part. Registers, and any other token before the patches, are in no mean.

Shape suffixes: B images of a batch, H and W their edges in px, P tokens before the patches, N patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dino_path.errors import CheckpointError
from dino_path.model.backbone import Argument, features_and_tokens, has_patch_tokens
from dino_path.records.feature_kinds import KIND_TITLES, FeatureKind


class TokenFeatures(nn.Module):
    """A timm backbone with another kind of features than timm's pooling: (B, 3, H, W) -> (B, D) or (B, 2 D)."""

    def __init__(self, backbone: nn.Module, kind: FeatureKind) -> None:
        super().__init__()
        self.backbone, self.kind = backbone, kind
        self.num_features = int(backbone.num_features) * len(kind.split("+"))  # type: ignore[arg-type]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.of_tokens(self.backbone.forward_features(images_BCHW))  # type: ignore[operator]

    def of_tokens(self, tokens: Tensor) -> Tensor:
        """The features of all tokens (B, P + N, D)."""
        parts_BD = {"cls": tokens[:, 0], "mean": tokens[:, self.backbone.num_prefix_tokens :].mean(dim=1)}
        norm = getattr(self.backbone, "fc_norm", nn.Identity())
        return torch.cat([norm(parts_BD[part]) for part in self.kind.split("+")], dim=1)


def own_kind(backbone: nn.Module) -> FeatureKind | None:
    """The kind of features that timm's own pooling gives; None: neither [CLS] nor the mean of patches (CNNs)."""
    if not has_patch_tokens(backbone) or getattr(backbone, "attn_pool", None) is not None:
        return None
    match getattr(backbone, "global_pool", None):
        case "token" if _has_class_token(backbone) and not hasattr(backbone, "dist_token"):
            return "cls"
        case "avg" if not getattr(backbone, "pool_include_prefix", False):
            return "mean"
    return None


def with_features(backbone: nn.Module, kind: FeatureKind | None, *, name: str) -> nn.Module:
    """The backbone with features of this kind: itself if timm's pooling gives them, or if `kind` is None.

    Args:
        name: of the model, for the message.

    Raises:
        CheckpointError: it has no patch tokens, or no [CLS] token.
    """
    if kind is None or kind == own_kind(backbone):
        return backbone
    refuse_no_patch_tokens(backbone, name, f"features {kind}")
    if "cls" in kind and not _has_class_token(backbone):
        raise CheckpointError(
            name,
            f"has no [CLS] token, but the features {kind} are requested.",
            "A ViT with a [CLS] token is needed for these features.",
            "Ask for mean.",
        )
    return TokenFeatures(backbone, kind)


def refuse_no_patch_tokens(backbone: nn.Module, name: str, wanted: str) -> None:
    """Check that the last layer of a backbone is a sequence of tokens.

    Raises:
        CheckpointError: it is not: CNNs and Swin have one kind of features.
    """
    if not has_patch_tokens(backbone):
        raise CheckpointError(
            name,
            f"is a {type(backbone).__name__}: it has no patch tokens, but {wanted} are requested.",
            "A ViT is needed; a network without tokens has only its own pooled features.",
            "Leave the kind of features and --tokens out, or use a ViT.",
        )


def kind_of(module: nn.Module) -> FeatureKind | None:
    """The kind of features that a module of `with_features` gives; None: as the network pools them."""
    return module.kind if isinstance(module, TokenFeatures) else own_kind(module)


def plain_backbone(module: nn.Module) -> nn.Module:
    """The timm model in a module of `with_features`."""
    return module.backbone if isinstance(module, TokenFeatures) else module


def features_and_patches(module: nn.Module, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The result of `module(images)`, and the patch tokens (B, N, D) in row-major order, from one pass."""
    backbone = plain_backbone(module)
    features_BD, tokens = features_and_tokens(backbone, images_BCHW)
    if isinstance(module, TokenFeatures):
        features_BD = module.of_tokens(tokens)
    return features_BD, tokens[:, backbone.num_prefix_tokens :]


def patch_map(module: nn.Module, images_BCHW: Tensor) -> Tensor:
    """The vectors of the last layer on their grid, (B, rows, columns, D).

    A ViT's patch tokens, or the last feature map of a CNN or a Swin.

    Raises:
        CheckpointError: the last layer has no grid.
    """
    backbone = plain_backbone(module)
    layer: Tensor = backbone.forward_features(images_BCHW)  # type: ignore[operator]
    if has_patch_tokens(backbone):
        patches_BND = layer[:, int(backbone.num_prefix_tokens) :]  # type: ignore[arg-type]
        edge = math.isqrt(patches_BND.shape[1])
        return patches_BND.reshape(len(patches_BND), edge, edge, -1)
    if layer.ndim != 4:
        raise CheckpointError(
            type(backbone).__name__,
            f"its last layer has the shape {tuple(layer.shape)}, which is not a grid of patches.",
            "A network whose last layer is a grid is needed: a ViT, a Swin or a CNN.",
            "Use another model.",
        )
    return layer if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else layer.permute(0, 2, 3, 1)


def timm_arguments(backbone: nn.Module, kind: FeatureKind | None) -> Mapping[str, Argument]:
    """Arguments with which timm itself builds the same network to give features of this kind; empty: there are none.

    By default timm norms after its own mean, but [CLS] ViTs are trained with the norm before pooling.
    """
    if not isinstance(backbone, VisionTransformer | Eva) or not isinstance(backbone.fc_norm, nn.Identity):
        return {}
    if kind != "mean" or own_kind(backbone) != "cls":
        return {}
    return {"global_pool": "avg", "use_fc_norm" if isinstance(backbone, Eva) else "fc_norm": False}


def timm_lines(module: nn.Module, images: str) -> tuple[str, ...]:
    """Python code that computes `features` of `images` with a timm `model` of these weights, without dino_path."""
    if not isinstance(module, TokenFeatures):
        return (f"features = model({images})",)
    parts = {"cls": "tokens[:, 0]", "mean": "tokens[:, model.num_prefix_tokens:].mean(1)"}
    has_norm_after = not isinstance(getattr(module.backbone, "fc_norm", nn.Identity()), nn.Identity)
    wanted = [f"model.fc_norm({parts[part]})" if has_norm_after else parts[part] for part in module.kind.split("+")]
    made = wanted[0] if len(wanted) == 1 else f"torch.cat([{', '.join(wanted)}], dim=1)"
    return f"tokens = model.forward_features({images})", f"features = {made}"


def features_text(module: nn.Module) -> str:
    """`768 features: the [CLS] token, then the mean of the patch tokens`."""
    return f"{int(module.num_features)} features: {KIND_TITLES[kind_of(module)]}"  # type: ignore[arg-type]


def _has_class_token(backbone: nn.Module) -> bool:
    return getattr(backbone, "cls_token", None) is not None
