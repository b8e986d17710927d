"""DINO's projection head, and the network of backbone and head that student and teacher share.

Shape suffixes: B images, D backbone features, H width of the bottleneck, K prototypes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_path.model.backbone import features_and_tokens


class Projection(NamedTuple):
    """What a head makes of B images, short of the product of both: 65,536 logits of all views are better never held."""

    bottleneck: Tensor
    """(B, H) unit vectors, at least fp32."""
    prototypes: Tensor
    """(K, H) unit vectors times their lengths, at least fp32, as the forward pass saw them, with their graph."""

    def logits(self) -> Tensor:
        """(B, K), before temperature and centering.

        In bf16 a logit of 1 is off by up to 0.004, which a teacher temperature of 0.04 turns into a tenth of a nat.
        """
        with torch.autocast(self.bottleneck.device.type, enabled=False):
            return F.linear(self.bottleneck, self.prototypes)


class DinoHead(nn.Module):
    """MLP, L2 normalisation, and a weight-normalised linear layer to K prototypes.

    Source: Caron et al. 2021, appendix C; facebookresearch/dino `vision_transformer.py`, DINOHead.
    The MLP starts from a truncated normal (std 0.02); the prototypes keep nn.Linear's uniform start, as published.

    Args:
        norm_last_layer: prototypes stay unit vectors; else their lengths are trained too.
    """

    def __init__(
        self,
        num_features: int,
        num_prototypes: int,
        *,
        hidden: int,
        bottleneck: int,
        num_layers: int,
        batch_norm: bool,
        norm_last_layer: bool,
    ) -> None:
        super().__init__()
        widths = [num_features, *[hidden] * (num_layers - 1), bottleneck]
        layers: list[nn.Module] = []
        for index, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            if index > 0:
                layers += [nn.BatchNorm1d(width_in), nn.GELU()] if batch_norm else [nn.GELU()]
            layers.append(nn.Linear(width_in, width_out))
        self.mlp = nn.Sequential(*layers)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        start = nn.Linear(bottleneck, num_prototypes, bias=False).weight
        self.last_layer = nn.ParameterDict(
            {
                "weight_v": nn.Parameter(start.detach().clone()),
                "weight_g": nn.Parameter(torch.ones(num_prototypes, 1), requires_grad=not norm_last_layer),
            }
        )

    def forward(self, features_BD: Tensor) -> Projection:
        """Only the MLP follows autocast."""
        hidden = self.mlp(features_BD)
        with torch.autocast(hidden.device.type, enabled=False):
            weight_v, weight_g = self.last_layer["weight_v"], self.last_layer["weight_g"]
            return Projection(
                F.normalize(_at_least_fp32(hidden), dim=-1),
                weight_v * (weight_g / weight_v.norm(dim=1, keepdim=True)),  # of (K, H), one is kept for the gradient
            )


class NetworkOutput(NamedTuple):
    """What a network makes of B images. A tuple, which torch's wrappers around networks can look into."""

    features: Tensor
    """(B, D) of the backbone, before the head."""
    projection: Projection
    tokens: Tensor | None = None
    """(B', P + N, D) of the B' images of the first resolution, where patches were asked for."""
    num_prefix: int = 0
    """P, tokens before those of the patches."""
    patch_projection: Projection | None = None
    """Of the M hidden patches, in the order of the masks' indices, where a term has asked for masks."""

    @property
    def patches(self) -> Tensor:
        """(B', N, D): a view, which a network must not return (FSDP2)."""
        assert self.tokens is not None, "no term has asked for patches"
        return self.tokens[:, self.num_prefix :]


class DinoNetwork(nn.Module):
    """A backbone and its head: what the student is, and the teacher."""

    def __init__(self, backbone: nn.Module, head: DinoHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, views: Sequence[Tensor], *, with_patches: bool = False) -> NetworkOutput:
        """Features of all views in order, and their projection; one backbone pass per resolution, one head pass.

        Args:
            views: one (B_i, 3, H_i, W_i) batch per resolution, the global views first.
            with_patches: the patch tokens of the first batch too; the backbone must be a ViT.
        """
        tokens, num_prefix = None, 0
        if with_patches:
            first, tokens = features_and_tokens(self.backbone, views[0])
            num_prefix = int(self.backbone.num_prefix_tokens)  # type: ignore[arg-type]
        else:
            first = self.backbone(views[0])
        features_BD = torch.cat([first, *(self.backbone(batch) for batch in views[1:])])
        return NetworkOutput(features_BD, self.head(features_BD), tokens, num_prefix)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """All parameters, in the parts whose gradients are watched."""
        head = self.head
        return {
            "backbone": [*self.backbone.parameters()],
            "head": [*head.mlp.parameters()],
            "prototypes": [*head.last_layer.values()],
        }


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
