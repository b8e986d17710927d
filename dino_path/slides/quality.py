"""What spoils a tile: pen ink, black, blur. Numbers only; the limits are settings (`tiles.max_pen_fraction`, ...).

The colour rules were tuned on H&E so that no tissue counts as ink: they miss pale ink rather than take dark tissue.
Green and blue special stains (Masson's trichrome, Alcian blue) look like ink: set `tiles.max_pen_fraction=1` there.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.slides.slide import RgbImage

# Ink covers areas of many cells evenly, so it is looked for in means over so many microns: single red cells, carbon
# grains and the coloured fringes at the edges of nuclei do not count.
INK_CELL_UM = 8.0
BLACK_LEVEL = 30  # brightest channel of a pixel that holds no light: padding, scanner gaps, solid marker


def pen_fraction(tile: RgbImage, mpp: float) -> float:
    """Share of the tile that is covered by blue, green, red or black pen ink, 0 to 1."""
    height, width = tile.shape[:2]
    shrink = INK_CELL_UM / mpp
    size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    if shrink > 1:
        tile = np.asarray(cv2.resize(tile, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return float(ink_pixels(tile).mean())


def ink_pixels(rgb: RgbImage) -> NDArray[np.bool_]:
    """(H, W) bool: where the colour is that of pen ink. For pixels of several microns; see INK_CELL_UM."""
    red, green, blue = (channel.astype(np.int16) for channel in cv2.split(rgb))
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    spread = brightest - darkest
    # Haematoxylin and eosin both take green light most, so green is the darkest channel of H&E. Where red is darkest
    # by far the colour is blue or green ink; a blue counterstain (IHC) stays below a spread of 80.
    cold = (green - red >= 15) & (red == darkest)
    blue_ink = cold & (blue >= green) & (blue - red >= 85) & (10 * spread >= 4 * brightest)
    blue_ink |= (green >= red) & (blue - green >= 60) & (spread >= 80) & (4 * spread >= 3 * brightest)  # deep blue
    green_ink = (green - red >= 25) & (green > blue) & (4 * spread >= brightest)
    # Eosin and blood keep more blue than green or reach only three quarters of full saturation.
    red_ink = (red >= 140) & (10 * spread >= 8 * brightest) & (np.abs(blue - green) <= 35)
    black_ink = (brightest <= 60) & (spread <= 22)
    return np.asarray(blue_ink | green_ink | red_ink | black_ink, dtype=np.bool_)


def black_fraction(tile: RgbImage) -> float:
    """Share of the pixels that are black (brightest channel at most 30 of 255), 0 to 1."""
    red, green, blue = cv2.split(tile)
    return float((np.maximum(np.maximum(red, green), blue) <= BLACK_LEVEL).mean())


def sharpness(tile: RgbImage) -> float:
    """Variance of the Laplacian of the grey tile, grey levels squared; depends on the tile's mpp. Blur is low."""
    laplacian = cv2.Laplacian(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    return float(laplacian.var(dtype=np.float64))
