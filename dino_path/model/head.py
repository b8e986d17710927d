"""DINO's projection head, and the network of backbone and head that student and teacher share.

Shape suffixes: B images, N patches of an image, M chosen patches, D backbone features, H width of the bottleneck,
K prototypes, G features of a frozen model to learn from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_path.model.backbone import features_and_tokens


class Projection(NamedTuple):
    """A head's output for B images as two factors: the 65,536 logits of all views would take too much memory."""

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

    @property
    def num_prototypes(self) -> int:
        return len(self.last_layer["weight_v"])

    def forward(self, features_BD: Tensor) -> Projection:
        """Only the MLP follows autocast."""
        hidden = self.mlp(features_BD)
        with torch.autocast(hidden.device.type, enabled=False):
            weight_v, weight_g = self.last_layer["weight_v"], self.last_layer["weight_g"]
            return Projection(
                F.normalize(_at_least_fp32(hidden), dim=-1),
                # One factor (K, 1) instead of F.normalize: autograd then stores one (K, H) array, not two.
                weight_v * (weight_g / weight_v.norm(dim=1, keepdim=True)),
            )


class Match(NamedTuple):
    """A network's prediction of a frozen model's features, for the B' images of the first resolution."""

    cls: Tensor
    """(B', G)"""
    patches: Tensor | None
    """(B', N, G); None where patches are not compared."""


class MatchHead(nn.Module):
    """Predicts a frozen model's features from a network's features: one linear layer for [CLS], one for patches.

    They are only linear, because the export drops them: the features themselves must hold what is matched.
    """

    def __init__(self, num_features: int, guide_features: int, *, has_patches: bool) -> None:
        super().__init__()
        self.cls = nn.Linear(num_features, guide_features)
        self.patches = nn.Linear(num_features, guide_features) if has_patches else None

    def forward(self, features_BD: Tensor, patches_BND: Tensor | None) -> Match:
        if self.patches is None:
            return Match(self.cls(features_BD), None)
        return Match(self.cls(features_BD), self.patches(patches_BND))


class NetworkOutput(NamedTuple):
    """A network's output for B images. It is a tuple because DDP and FSDP look for tensors in tuples."""

    features: Tensor
    """(B, D) of the backbone, before the head."""
    projection: Projection | None
    """Of the features; None in a network whose [CLS] has no head."""
    tokens: Tensor | None = None
    """(B', P + N, D) of the B' images of the first resolution, if patches were requested."""
    num_prefix: int = 0
    """P, tokens before those of the patches."""
    patch_projection: Projection | None = None
    """Of the M chosen patches, in their order."""
    match: Match | None = None
    """If one was requested."""

    @property
    def patches(self) -> Tensor:
        """(B', N, D), a view of `tokens`. FSDP2 does not allow a network to return a view."""
        assert self.tokens is not None, "no term needs patches"
        return self.tokens[:, self.num_prefix :]


class MaskToken(nn.Module):
    """A learned vector that replaces the embedding of a hidden patch, before position embeddings are added.

    It starts at zero, as published (facebookresearch/dinov2 `vision_transformer.py`).
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, num_features))

    def forward(self, embedded: Tensor, hidden_BN: Tensor) -> Tensor:
        """(B, N, D) or (B, rows, columns, D) embedded patches, the hidden ones replaced."""
        where = hidden_BN.view(*embedded.shape[:-1], 1)
        return torch.where(where, self.weight[0].to(embedded.dtype), embedded)


class DinoNetwork(nn.Module):
    """A backbone and its heads: the student, or the teacher.

    Args:
        head: of [CLS]; None: no term uses it.
        mask_token: for a network that sees masked images.
        patch_head: of chosen patches; None: they go through `head`.
        match_head: for a network that learns from a frozen model.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: DinoHead | None,
        *,
        mask_token: MaskToken | None = None,
        patch_head: DinoHead | None = None,
        match_head: MatchHead | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.mask_token = mask_token
        self.patch_head = patch_head
        self.match_head = match_head

    @property
    def heads(self) -> list[DinoHead]:
        return [head for head in (self.head, self.patch_head) if head is not None]

    def forward(
        self,
        views: Sequence[Tensor],
        *,
        with_patches: bool = False,
        hidden: Tensor | None = None,
        chosen: Tensor | None = None,
        with_match: bool = False,
        backbone_frozen: bool = False,
    ) -> NetworkOutput:
        """Features of all views in order, and their projection; one backbone pass per resolution, one pass per head.

        Args:
            views: one (B_i, 3, H_i, W_i) batch per resolution, the global views first.
            with_patches: also return the patch tokens of the first batch; the backbone must be a ViT.
            hidden: (B_0, N) bool, patches of the first batch that are hidden from the network.
            chosen: (M,) int64, patches to project, as indices into the flattened (B_0 * N).
            with_match: also return the output of `match_head`, if there is one, for the first batch.
            backbone_frozen: compute no gradients of the backbone and the mask token.
        """
        tokens, num_prefix, patches_MD = None, 0, None
        match_head = self.match_head if with_match else None
        matches_patches = match_head is not None and match_head.patches is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not backbone_frozen):
            with self._hiding(hidden):
                if with_patches or chosen is not None or matches_patches:
                    first, tokens = features_and_tokens(self.backbone, views[0])
                    num_prefix = int(self.backbone.num_prefix_tokens)  # type: ignore[arg-type]
                else:
                    first = self.backbone(views[0])
            features_BD = torch.cat([first, *(self.backbone(batch) for batch in views[1:])])
        if chosen is not None:
            assert tokens is not None
            of_image = chosen // (tokens.shape[1] - num_prefix)
            # Only the masked patches are projected: the logits of every patch would dominate the step.
            patches_MD = tokens.flatten(0, 1).index_select(0, chosen + num_prefix * (of_image + 1))
        projection, patch_projection = self._project(features_BD, patches_MD)
        match = None
        if match_head is not None:
            match = match_head(first, tokens[:, num_prefix:] if tokens is not None else None)
        kept = tokens if with_patches else None
        return NetworkOutput(features_BD, projection, kept, num_prefix, patch_projection, match)

    def _project(self, features_BD: Tensor, patches_MD: Tensor | None) -> tuple[Projection | None, Projection | None]:
        """Of [CLS] and of patches."""
        if patches_MD is None:
            return self.head(features_BD) if self.head is not None else None, None
        if self.patch_head is not None:
            return self.head(features_BD) if self.head is not None else None, self.patch_head(patches_MD)
        assert self.head is not None
        # One pass over both, so that the prototypes are scaled only once.
        both: Projection = self.head(torch.cat([features_BD, patches_MD]))
        of_cls, of_patches = torch.split(both.bottleneck, [len(features_BD), len(patches_MD)])
        return Projection(of_cls, both.prototypes), Projection(of_patches, both.prototypes)

    @contextmanager
    def _hiding(self, hidden_BN: Tensor | None) -> Iterator[None]:
        """Within this context, the backbone's patch embedding returns the mask token for hidden patches."""
        if hidden_BN is None:
            yield
            return
        mask_token = self.mask_token
        assert mask_token is not None, "this network was built for images without masks"
        # A hook, because timm's forward pass has no argument for masks and its code must not be copied.
        embedding: nn.Module = self.backbone.patch_embed  # type: ignore[assignment]
        hook = embedding.register_forward_hook(lambda _, __, embedded: mask_token(embedded, hidden_BN))
        try:
            yield
        finally:
            hook.remove()

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """All parameters, grouped into the parts whose gradient norms are logged."""
        found = {"backbone": [*self.backbone.parameters()]}
        if self.mask_token is not None:
            found["backbone"] += self.mask_token.parameters()
        for prefix, head in (("", self.head), ("patch_", self.patch_head)):
            if head is not None:
                found[f"{prefix}head"] = [*head.mlp.parameters()]
                found[f"{prefix}prototypes"] = [*head.last_layer.values()]
        if self.match_head is not None:
            found["match_head"] = [*self.match_head.parameters()]
        return found


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
