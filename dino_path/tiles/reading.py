"""Pixels of tiles, read from a slide and brought to the wanted mpp."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from dino_path.errors import SlideError
from dino_path.slides.slide import RgbImage, Slide
from dino_path.tiles.geometry import Corners, TileSpec


def read_tile(slide: Slide, spec: TileSpec, corner_level0: tuple[int, int]) -> RgbImage:
    """One square tile of `spec.size_px`; shrunk by area averaging (no aliasing) where no level has the wanted mpp.

    Args:
        corner_level0: (x, y) of the top-left corner, in level-0 px.

    Returns:
        (size_px, size_px, 3) uint8 RGB; what the scanner did not record comes back as the slide's background colour.

    Raises:
        SlideError: the pixels cannot be decoded. Other tiles of the slide may still be readable.
    """
    pixels = slide.read_region(corner_level0, spec.level, (spec.read_px, spec.read_px))
    if spec.read_px == spec.size_px:
        return pixels
    size = (spec.size_px, spec.size_px)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def read_tiles(slide: Slide, spec: TileSpec, corners: Corners) -> Iterator[RgbImage | SlideError]:
    """The tiles at `corners`, in that order; an unreadable tile comes as its error, so that one costs no other."""
    for x, y in corners.tolist():
        try:
            yield read_tile(slide, spec, (x, y))
        except SlideError as error:
            yield error
