"""Where the tissue is: a mask of the whole slide from its colour saturation, or from another tool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.config import TilesConfig
from dino_path.slides.masks import read_mask
from dino_path.slides.overview import Overview, read_overview
from dino_path.slides.quality import BLACK_LEVEL, INKS, ink_codes
from dino_path.slides.slide import RgbImage, Slide

Mask = NDArray[np.bool_]
GREY_SPREAD = 8  # channels closer than this (of 255) are grey
SMOOTHING_PX = 5  # edge of the median filter before the threshold, in mask pixels


@dataclass(frozen=True)
class Ink:
    """What has the colour of pen ink, `share` of what is not glass (0 to 1), and its commonest colour."""

    share: float
    colour: str


@dataclass(frozen=True)
class TissueMask:
    """Tissue of one slide.

    Attributes:
        tissue: (H, W) bool, at about `tiles.mask_mpp`.
        overview: the picture it was made from, same size.
        source: `otsu`, `saturation`, or the path of the mask that another tool made.
        threshold: HSV saturation (0 to 1) above which a pixel is tissue; None for a mask from elsewhere.
        ink: what was taken for ink, or would be (`tiles.max_pen_fraction=1`); None: nothing, or a mask from elsewhere.
    """

    tissue: Mask
    overview: Overview
    source: str
    threshold: float | None
    ink: Ink | None = None

    @property
    def tissue_percent(self) -> float:
        """Share of the area that the scanner recorded which is tissue, 0 to 100."""
        return 100 * float(self.tissue.sum()) / max(1, int(np.count_nonzero(self.overview.covered)))


def tissue_mask(slide: Slide, config: TilesConfig, mask_file: Path | None = None) -> TissueMask:
    """Find the tissue of a slide, or read it from `mask_file`.

    What is certainly no tissue (nothing recorded, flat padding, black, pen ink) is taken out before the threshold is
    chosen, so that it cannot move it. Under `max_pen_fraction=1` ink is no such thing: the slide may be stained blue.

    Raises:
        SlideError: the slide or its mask cannot be read.
    """
    overview = read_overview(slide, mpp=config.mask_mpp)
    if mask_file is not None:
        given = read_mask(mask_file, slide, overview, values=config.mask_values, classes=config.mask_classes)
        return TissueMask(given, overview, str(mask_file), None)
    background = certain_background(overview)
    ink = ink_codes(overview.rgb) * ~background
    if config.max_pen_fraction < 1:
        background |= ink > 0
    saturation = _saturation(overview.rgb)
    saturation[background] = 0
    saturation = np.asarray(cv2.medianBlur(saturation, SMOOTHING_PX), dtype=np.uint8)
    match config.tissue:
        case "saturation":
            threshold = config.min_saturation
        case "otsu":
            threshold = max(config.min_saturation, otsu_saturation(saturation[~background]))
        case _:
            assert_never(config.tissue)
    tissue = (saturation > threshold * 255) & ~background
    px_um2 = overview.px_level0[0] * overview.px_level0[1] * slide.mpp**2
    tissue = fill_holes(tissue, max_px=config.max_hole_um2 / px_um2) & overview.covered  # no hole in the recording
    tissue = drop_small(tissue, min_px=config.min_area_um2 / px_um2)
    return TissueMask(tissue, overview, config.tissue, threshold, _ink_beside(tissue, ink))


def _ink_beside(tissue: Mask, codes: NDArray[np.uint8]) -> Ink | None:
    """Args: codes: (H, W) as `ink_codes` gives them."""
    counts = np.bincount(codes.ravel(), minlength=len(INKS) + 1)[1:]
    if not counts.any():
        return None
    return Ink(float(counts.sum() / np.count_nonzero(tissue | (codes > 0))), INKS[int(counts.argmax())])


def certain_background(overview: Overview) -> Mask:
    """(H, W) bool: nothing recorded, black, or grey without the slightest noise (padding that was painted)."""
    rgb = overview.rgb
    red, green, blue = cv2.split(rgb)
    brightest, darkest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    neighbours = np.ones((3, 3), dtype=np.uint8)
    flat = [cv2.dilate(channel, neighbours) == cv2.erode(channel, neighbours) for channel in (red, green, blue)]
    padding = flat[0] & flat[1] & flat[2] & (cv2.subtract(brightest, darkest) <= GREY_SPREAD)
    return np.asarray(~overview.covered | (brightest <= BLACK_LEVEL) | padding, dtype=np.bool_)


def otsu_saturation(saturation: NDArray[np.uint8]) -> float:
    """The saturation (0 to 1) that best splits glass from tissue: Otsu's threshold of its logarithm.

    Glass, pale stroma and dense glands differ by factors. Otsu on the values themselves splits pale from dense tissue:
    on a colon section it lost 45 % of an independent mask's tissue, its logarithm 5 %.

    Args:
        saturation: (N,) 0 to 255; an empty one gives 0.
    """
    if saturation.size == 0:
        return 0.0
    steps = np.rint(255 / np.log(256) * np.log1p(np.arange(256))).astype(np.uint8)
    threshold, _ = cv2.threshold(steps[saturation].reshape(-1, 1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(np.expm1(threshold / 255 * np.log(256)) / 255)


def fill_holes(tissue: Mask, *, max_px: float) -> Mask:
    """Fill background pieces of at most `max_px` pixels; pieces at the slide's edge are not holes."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~tissue).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= max_px
    small[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = False
    small[0] = False  # label 0 is the tissue
    return np.asarray(tissue | small[labels], dtype=np.bool_)


def drop_small(tissue: Mask, *, min_px: float) -> Mask:
    """Drop pieces of tissue of less than `min_px` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(tissue.astype(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= min_px
    large[0] = False  # label 0 is the background
    return np.asarray(large[labels], dtype=np.bool_)


def _saturation(rgb: RgbImage) -> NDArray[np.uint8]:
    return np.ascontiguousarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1], dtype=np.uint8)
