"""The guide: a frozen model from which the student learns, in addition to the teacher (the student's moving average).

It is no part of checkpoints. Which model it is, is: see `DistillTerm.state`. Shape suffixes: B tiles, N patches of a
view, G features of the guide.
"""

from __future__ import annotations

import logging
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_path.config import Config
from dino_path.distributed import World
from dino_path.errors import ConfigError, TileStoreError
from dino_path.model.backbone import count_parameters, has_patch_tokens
from dino_path.model.frozen import FrozenModel, load_frozen
from dino_path.model.sizes import patch_grid
from dino_path.model.tokens import features_and_patches, plain_backbone
from dino_path.preprocessing import Preprocessing
from dino_path.records.guide import GuideRecord
from dino_path.tiles.source import TileSource
from dino_path.tiles.store import TileStore
from dino_path.training.objective.term import Guidance

logger = logging.getLogger(__name__)

MPP_TOLERANCE = 0.1  # relative: views are crops of other scales, and differ by more


class Guide(Protocol):
    """A source of target features for the student."""

    facts: GuideRecord

    def __call__(self, views: Tensor, tiles: Tensor) -> Guidance:
        """Of a micro-batch, on our device, without gradient.

        Args:
            views: (2 * B, 3, H, H) in 0 to 1, the global ones.
            tiles: (B,) int64, on the host, the tiles' indices in the source.
        """


class LiveGuide:
    """The model itself, which sees the views: moved to its own size, mean and std."""

    def __init__(self, model: FrozenModel, facts: GuideRecord, device: torch.device) -> None:
        self.facts, self.module = facts, model.module.to(device)
        triples = (model.preprocessing.mean, model.preprocessing.std)
        self.mean, self.std = (torch.tensor(triple, device=device).view(1, 3, 1, 1) for triple in triples)

    def __call__(self, views: Tensor, tiles: Tensor) -> Guidance:
        edge_px = self.facts.input_px
        if views.shape[-1] != edge_px:
            views = F.interpolate(views, (edge_px, edge_px), mode="bicubic", antialias=True).clamp(0, 1)
        images = (views - self.mean) / self.std
        if self.facts.num_patches is None:
            return Guidance(self.module(images), None)
        return Guidance(*features_and_patches(self.module, images))


def open_guide(config: Config, tiles: TileSource, world: World) -> LiveGuide | None:
    """The model of `objective.distill`; None if that has no weight. The global random state may change.

    Raises:
        CheckpointError: it cannot be loaded.
        ConfigError: it is of other colours than the views, takes no images as they are needed, or its patches and the
            student's are not the same places.
        TileStoreError: it was trained on tiles of another resolution.
    """
    distill = config.objective.distill
    if distill.weight == 0:
        return None
    assert distill.teacher is not None
    model = load_frozen(distill.teacher)
    _refuse_other_mpp(model, tiles)
    _refuse_other_colours(model, config)
    facts = _facts(model, config)
    logger.info(
        "learning from %s: %.2f M parameters, %d features%s, views of %d px", facts.name, facts.num_parameters / 1e6,
        facts.num_features, f", {facts.num_patches} patches" if facts.num_patches else "", facts.input_px,
    )  # fmt: skip
    return LiveGuide(model, facts, world.device)


def _facts(model: FrozenModel, config: Config) -> GuideRecord:
    """Facts on the model and its input size: its own, or the one that gives it as many patches as the student.

    Raises:
        ConfigError: it does not take images of that edge, or cuts them into other patches.
    """
    own_px = model.preprocessing.input_px
    assert own_px is not None, "a model of timm's has an edge"
    num_patches = None
    if config.objective.distill.patches > 0:
        rows, columns = patch_grid(config.model.backbone, config.model.backbone_arguments, config.views.global_px)
        edge_px, num_patches = rows * _patch_px(model), rows * columns
    else:
        edge_px = own_px
    _try(model, edge_px, num_patches, config)
    return GuideRecord(
        name=model.name,
        digest=model.digest,
        num_parameters=count_parameters(model.module),
        num_features=int(model.module.num_features),  # type: ignore[arg-type]
        input_px=edge_px,
        num_patches=num_patches,
    )


def _patch_px(model: FrozenModel) -> int:
    backbone = plain_backbone(model.module)
    if not has_patch_tokens(backbone):
        raise ConfigError(
            f"objective.distill.teacher={model.name}",
            f"a {type(backbone).__name__} has no patch tokens.",
            "objective.distill.patches compares patch tokens, so a ViT is needed.",
            "Set objective.distill.patches=0, to learn only [CLS] or a CNN's pooled features.",
        )
    return int(backbone.patch_embed.patch_size[0])  # type: ignore[union-attr, index]


@torch.no_grad()
def _try(model: FrozenModel, edge_px: int, num_patches: int | None, config: Config) -> None:
    """Run one blank image of this edge through the model."""
    found, blank = None, torch.zeros(1, 3, edge_px, edge_px)
    try:
        if num_patches is None:
            model.module(blank)
            return
        num_found = features_and_patches(model.module, blank)[1].shape[1]
        if num_found == num_patches:
            return
        found = f"it makes {num_found} patches of views of {edge_px} px."
    except (RuntimeError, AssertionError, ValueError) as error:
        found = f"it does not take views of {edge_px} px ({' '.join(str(error).split())[:200]})."
    if num_patches is None:
        needed, remedy = "It must accept images of its own input size.", "Export the model folder again."
    else:
        own_px = model.preprocessing.input_px
        needed = (
            f"The student ({config.model.backbone}) cuts views of {config.views.global_px} px into {num_patches}"
            f" patches, and each is compared with the model's patch at the same place."
        )
        remedy = (
            f"Choose views.global_px so that the student has as many patches as the model has at its {own_px} px, or"
            " set objective.distill.patches=0."
        )
    raise ConfigError(f"objective.distill.teacher={model.name}", found, needed, remedy)


def _refuse_other_mpp(model: FrozenModel, tiles: TileSource) -> None:
    """Refuse tiles whose mpp differs from the model's, both as stored and as the model sees a whole tile."""
    own, tile_px = model.preprocessing, tiles.size_px if isinstance(tiles, TileStore) else None
    if own.mpp is None or tiles.mpp is None:
        logger.warning(
            "%s: the microns per pixel of %s are unknown; it must have been trained on tissue at about the scale of"
            " these tiles", model.name, "the model" if own.mpp is None else "the tiles",
        )  # fmt: skip
        return
    here = Preprocessing(own.mean, own.std, own.input_px, tiles.mpp, tile_px)
    pairs = ((own.mpp, here.mpp), (own.seen_mpp, here.seen_mpp))
    if any(theirs and ours and abs(ours / theirs - 1) <= MPP_TOLERANCE for theirs, ours in pairs):
        return
    raise TileStoreError(
        f"objective.distill.teacher={model.name}",
        f"it was trained on {own.text()}, and the tiles are at {tiles.mpp:.4g} um/px.",
        "The scale of the tiles must agree within 10 % with the model's training.",
        f"Tile the slides again with tiles.mpp={own.mpp:g}, or take another model.",
    )


def _refuse_other_colours(model: FrozenModel, config: Config) -> None:
    theirs, ours = model.preprocessing.stain_normalisation, config.views.stain_normalisation
    if theirs is not None and theirs != ours:
        raise ConfigError(
            f"objective.distill.teacher={model.name}",
            f"it was trained on tiles with {theirs} stain normalisation, and views.stain_normalisation is"
            f" {ours or 'null'}.",
            "A model to learn from must see the colours that it knows.",
            f"Set views.stain_normalisation={theirs}, or take another model.",
        )
