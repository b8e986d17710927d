"""A small picture of a whole slide, made block by block: no level is ever in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.errors import SlideError
from dino_path.slides.slide import RgbImage, Slide

BLOCK_PX = 2048  # edge of one read, in level px: 16 MiB as RGBA
LARGEST_OVERVIEW_PX = 120_000_000  # 360 MB as RGB; at 8 um/px a slide of 80 x 80 mm has 100 million


@dataclass(frozen=True)
class Overview:
    """The whole slide, small.

    Attributes:
        rgb: (H, W, 3) uint8.
        covered: (H, W) bool, False where the scanner recorded nothing (transparent).
        px_level0: (x, y) size of one overview pixel in level-0 px, floats.
    """

    rgb: RgbImage
    covered: NDArray[np.bool_]
    px_level0: tuple[float, float]


def read_overview(slide: Slide, *, mpp: float) -> Overview:
    """The slide at about `mpp`, area-averaged; never finer than level 0.

    The picture's edges are the slide's edges exactly, so `px_level0` is what one pixel measures, not `mpp`.

    Raises:
        SlideError: the slide cannot be read, or the picture would not fit in memory.
    """
    px_level0 = max(1.0, mpp / slide.mpp)
    width = max(1, round(slide.width_level0 / px_level0))
    height = max(1, round(slide.height_level0 / px_level0))
    if width * height > LARGEST_OVERVIEW_PX:
        raise SlideError(
            slide.name,
            f"a picture of the whole slide at {mpp:g} um/px has {width} x {height} pixels.",
            f"At most {LARGEST_OVERVIEW_PX:,} pixels are held in memory.",
            "Set tiles.mask_mpp higher (8 is usual).",
        )
    scale_x, scale_y = slide.width_level0 / width, slide.height_level0 / height
    # One per cent of slack: a level that matches but for rounding is read as it is.
    level = max(i for i, one in enumerate(slide.levels) if one.downsample <= min(scale_x, scale_y) * 1.01 or i == 0)
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    covered = np.empty((height, width), dtype=np.bool_)
    read = slide.levels[level]
    for rows, (top, bottom) in _spans(height, read.height):
        for columns, (left, right) in _spans(width, read.width):
            # Down, not to the nearest: half a level-0 pixel over the slide's edge would come back half transparent.
            corner_level0 = int(left * read.downsample), int(top * read.downsample)
            pixels, cover = slide.read_region_and_cover(corner_level0, level, (right - left, bottom - top))
            wanted = (columns.stop - columns.start, rows.stop - rows.start)
            rgb[rows, columns] = cv2.resize(pixels, wanted, interpolation=cv2.INTER_AREA)
            covered[rows, columns] = cv2.resize(cover, wanted, interpolation=cv2.INTER_AREA) >= 128
    return Overview(rgb, covered, (scale_x, scale_y))


def _spans(length: int, level_length: int) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Cut one side of the overview into slices, each with its (start, stop) in level px, about BLOCK_PX long."""
    scale = level_length / length
    step = max(1, int(BLOCK_PX / scale))
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield slice(start, stop), (round(start * scale), max(round(stop * scale), round(start * scale) + 1))
