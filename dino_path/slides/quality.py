"""Quality of a tile: pen ink, black, folds, blur. Numbers only; limits are settings (`tiles.max_pen_fraction`, ...).

The colour rules were tuned on H&E so that no tissue counts as ink: they miss pale ink rather than take dark tissue.
Green and blue special stains (Masson's trichrome, Alcian blue) look like ink: set `tiles.max_pen_fraction=1` there.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.slides.slide import RgbImage

# Ink covers areas of many cells evenly, so it is looked for in means over so many microns: single red cells, carbon
# grains and the coloured fringes at the edges of nuclei do not count.
INK_CELL_UM = 8.0
# Black ink: its brightest channel, and how far from grey. A felt tip lets a fifth of what is below it through, so what
# is brighter may be more coloured too: a spread of 22 up to a level of 60, of 30 at 80. See benchmarks/tiling/inks.py.
BLACK_INK_LEVEL, BLACK_INK_SPREAD, BLACK_INK_GROWTH, SOLID_BLACK_LEVEL = 80, 22, 0.4, 60
INKS = ("blue", "green", "red", "black")
# Mean optical density of a cell. Single layers of colon, lung and lymph node reach it in 0 to 2 % of their cells, the
# same pixels at twice the density in 3 % (normal lung) to 31 %, at three times in 22 to 67 %: a thin fold may not show.
DARK_DENSITY = 0.5
BLACK_LEVEL = 30  # brightest channel of a pixel that holds no light: padding, scanner gaps, solid marker
DENSITIES = -np.log10(np.maximum(np.arange(256), 1) / 255).astype(np.float32)  # of grey levels
DARKEST_OF_THIN = 255 * 10**-DARK_DENSITY  # a cell whose channels are all above it is not dark


@dataclass(frozen=True)
class TileQuality:
    """The numbers that `tiles.max_pen_fraction` and the other limits are compared with."""

    pen_fraction: float
    black_fraction: float
    dark_fraction: float
    sharpness: float


def measure_quality(tile: RgbImage, mpp: float, *, sharpness_mpp: float) -> TileQuality:
    """The numbers of one tile of `mpp` microns per pixel, measured at `sharpness_mpp` where that is coarser."""
    small = shrink_to(tile, sharpness_mpp / mpp)
    grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    cells = shrink_to(small, INK_CELL_UM / max(mpp, sharpness_mpp))
    return TileQuality(pen_fraction(cells), black_fraction(small, grey), dark_fraction(cells), sharpness(grey))


def pen_fraction(cells: RgbImage) -> float:
    """Share of a tile that is covered by blue, green, red or black pen ink, 0 to 1.

    Args:
        cells: (H, W, 3), means of the tile over INK_CELL_UM.
    """
    return float(ink_pixels(cells).mean())


def dark_fraction(cells: RgbImage) -> float:
    """Share of a tile that is as dark as folded tissue (mean optical density over 0.5), 0 to 1.

    Args:
        cells: (H, W, 3), means of the tile over INK_CELL_UM.
    """
    if int(cells.min()) > DARKEST_OF_THIN:
        return 0.0
    return float((DENSITIES[cells].mean(axis=-1) > DARK_DENSITY).mean())


def ink_pixels(rgb: RgbImage) -> NDArray[np.bool_]:
    """(H, W) bool: where the colour is that of pen ink. For pixels of several microns; see INK_CELL_UM."""
    return ink_codes(rgb) > 0


def ink_codes(rgb: RgbImage) -> NDArray[np.uint8]:
    """(H, W): 0 where there is no ink, else 1 + the place of its colour in INKS. For pixels of several microns."""
    red, green, blue = cv2.split(rgb)
    brightest = cv2.max(cv2.max(red, green), blue)
    darkest = cv2.min(cv2.min(red, green), blue)
    # The first condition of every rule, cheaply: most tissue and all glass meet none.
    may_be_ink = np.asarray(
        (brightest <= BLACK_INK_LEVEL)
        | (cv2.subtract(green, red) >= 15)  # blue, green
        | (cv2.subtract(blue, cv2.max(red, green)) >= 60)  # deep blue
        | (cv2.subtract(brightest, darkest) >= 112),  # red: a spread of 80 % of the brightest, which is at least 140
        dtype=np.bool_,
    )
    codes = np.zeros(rgb.shape[:2], dtype=np.uint8)
    if may_be_ink.any():
        codes[may_be_ink] = _ink_codes(rgb[may_be_ink])
    return codes


def _ink_codes(rgb_N3: RgbImage) -> NDArray[np.uint8]:
    red, green, blue = rgb_N3.astype(np.int16).T
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
    may_spread = BLACK_INK_SPREAD + BLACK_INK_GROWTH * np.maximum(0, brightest - SOLID_BLACK_LEVEL)
    black_ink = (brightest <= BLACK_INK_LEVEL) & (spread <= may_spread)
    inks = {"blue": blue_ink, "green": green_ink, "red": red_ink, "black": black_ink}
    return np.select([inks[name] for name in INKS], [np.uint8(code) for code in range(1, len(INKS) + 1)], np.uint8(0))


def black_fraction(tile: RgbImage, grey: NDArray[np.uint8]) -> float:
    """Share of the pixels that are black (brightest channel at most 30 of 255), 0 to 1.

    Args:
        grey: (H, W), of the tile.
    """
    # Black pixels are dark in grey too: few are, and only those are looked at in colour.
    dark = tile.reshape(-1, 3)[np.flatnonzero(grey <= BLACK_LEVEL)]
    return int(np.count_nonzero(dark.max(axis=1, initial=0) <= BLACK_LEVEL)) / grey.size


def sharpness(grey: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of a grey tile, grey levels squared; depends on its mpp. Blur is low."""
    # The Laplacian is a whole number: 16 bits hold it exactly, and both sums are exact too.
    laplacian = cv2.Laplacian(grey, cv2.CV_16S)
    mean = float(cv2.sumElems(laplacian)[0]) / laplacian.size
    return max(0.0, float(cv2.norm(laplacian, cv2.NORM_L2SQR)) / laplacian.size - mean**2)


def shrink_to(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3), its means over cells of `factor` pixels; as it is where that is not above 1."""
    height, width = image.shape[:2]
    if factor <= 1:
        return image
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    # Halving is the one step that has a fast path; repeated, it costs half of what one large step does.
    while image.shape[0] >= 2 * size[1] and image.shape[1] >= 2 * size[0] and not (image.shape[0] | image.shape[1]) % 2:
        half = (image.shape[1] // 2, image.shape[0] // 2)
        image = np.asarray(cv2.resize(image, half, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
