"""Preprocessing of a tile before a network sees it: one value, shared by training, model folder and features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dino_path.config import Config

Triple = tuple[float, float, float]
StainNormalisation = Literal["reinhard", "macenko"]


@dataclass(frozen=True)
class Preprocessing:
    """The input that a network expects.

    Attributes:
        mean, std: RGB, of images in [0, 1].
        input_px: edge of the square image that the network sees; None: any size, as it comes.
        mpp: microns per pixel of the tiles it was trained on; None: not known.
        tile_px: edge of these tiles, before they were resized to `input_px`; None: not known.
        stain_normalisation: done to the whole tile, before it is resized.
    """

    mean: Triple
    std: Triple
    input_px: int | None
    mpp: float | None = None
    tile_px: int | None = None
    stain_normalisation: StainNormalisation | None = None

    @property
    def seen_mpp(self) -> float | None:
        """Microns per pixel of the network's input for a whole tile; None: unknown."""
        if self.mpp is None or self.tile_px is None:
            return None
        return self.mpp * self.tile_px / (self.input_px or self.tile_px)

    def of_tiles(self, tile_px: int | None, mpp: float | None) -> Preprocessing:
        """The same, done to other tiles than those of the training."""
        return replace(self, tile_px=tile_px, mpp=mpp)

    def text(self) -> str:
        """`tiles of 96 px at 1 um/px, resized to 48 px: the network sees 2 um/px`."""
        known_px = "" if self.tile_px is None else f" of {self.tile_px} px"
        text = f"tiles{known_px}" + (" of unknown um/px" if self.mpp is None else f" at {self.mpp:.4g} um/px")
        if self.input_px not in (None, self.tile_px):
            text += f", resized to {self.input_px} px"
            if self.seen_mpp is not None:
                text += f": the network sees {self.seen_mpp:.4g} um/px"
            elif self.mpp is not None:
                text += " (the original edge is not recorded, so the um/px that the network sees is unknown)"
        return text + (f"; {self.stain_normalisation} stain normalisation" if self.stain_normalisation else "")


def training_preprocessing(config: Config, *, tile_px: int | None, mpp: float | None) -> Preprocessing:
    """The preprocessing of a training run, without augmentation."""
    return Preprocessing(
        mean=config.model.mean,
        std=config.model.std,
        input_px=config.views.global_px,
        mpp=mpp,
        tile_px=tile_px,
        stain_normalisation=config.views.stain_normalisation,
    )
