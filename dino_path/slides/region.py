"""Any rectangle of a slide at any size, from the level that suits it best."""

from __future__ import annotations

import cv2
import numpy as np

from dino_path.errors import SlideError
from dino_path.slides.slide import RgbImage, Slide

MOST_READ_PX = 4096  # edge of what is read at once, in px of its level: 64 MiB as RGBA
SLACK = 1.01  # a level that matches but for rounding is read as it is


def level_for(slide: Slide, downsample: float) -> int:
    """The coarsest level that is at least as fine as `downsample` (to level 0)."""
    return max(number for number, one in enumerate(slide.levels) if number == 0 or one.downsample <= downsample * SLACK)


def read_scaled(
    slide: Slide, corner_level0: tuple[float, float], size_level0: tuple[float, float], size_px: tuple[int, int]
) -> RgbImage:
    """The rectangle resampled to `size_px`: averaged over areas where it shrinks, cubic where it grows.

    Args:
        corner_level0, size_level0: (x, y) of the top-left corner, and (width, height), level-0 px; what lies outside
            the slide comes back as its background.
        size_px: (width, height) of the picture.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        SlideError: it cannot be decoded, or no level is coarse enough to read it at once.
    """
    level = level_for(slide, min(size_level0[0] / size_px[0], size_level0[1] / size_px[1]))
    downsample = slide.levels[level].downsample
    width, height = (max(1, round(edge / downsample)) for edge in size_level0)
    if max(width, height) > MOST_READ_PX:
        raise SlideError(
            slide.name,
            f"a picture of {size_px[0]} x {size_px[1]} px needs {width:,} x {height:,} px of level {level}.",
            f"At most {MOST_READ_PX:,} x {MOST_READ_PX:,} px are read at once.",
            "Read a smaller region, or convert the slide to a pyramid with coarser levels.",
        )
    corner = round(corner_level0[0]), round(corner_level0[1])
    pixels = slide.read_region(corner, level, (width, height))
    if (width, height) == size_px:
        return pixels
    shrinks = width >= size_px[0] and height >= size_px[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, size_px, interpolation=interpolation), np.uint8)
