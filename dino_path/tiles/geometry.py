"""Geometry of a slide's tiles: level, sizes, grid, tissue share. Pure arithmetic, without pixels.

Three sizes are kept apart: `size_px` asked for at `mpp`; `read_px` at the level that is read; `size_level0` in level-0
px. Everything is computed in floats and rounded once; a downsample is never an int.

A tile is a whole number of level px, and so is the step from tile to tile: every stored pixel is then the mean of a
box that lies where the same box of a whole-level resample lies, and neighbouring tiles agree at their border to the
pixel. What it costs is `tile_mpp`, which is off the mpp asked for by less than half a pixel per tile (0.1 % or so).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.errors import SlideError
from dino_path.slides.slide import Level

Corners = NDArray[np.int32]  # (N, 2): x, y of top-left corners, level-0 px
SHRINKS = (8, 4, 2)  # what JPEG decoders can divide by while they decode
MOST_CORNERS = 20_000_000  # of one slide's grid: 160 MB; 80,000 x 80,000 px at a step of 18
CORNERS_AT_ONCE = 2**20  # 150 MB while their share of tissue is computed
LARGEST_SNAP = 0.01  # relative change of the mpp that a whole step between overlapping tiles may cost


@dataclass(frozen=True)
class TileSpec:
    """How the tiles of one slide are read.

    Attributes:
        size_px: edge of a tile as it is stored, in px at `tile_mpp`.
        tile_mpp: the true microns per stored pixel: what `read_px` makes of it, near the one asked for.
        level: pyramid level to read from.
        read_px: edge of what is read, in px of that level; equals `size_px` where nothing is resampled.
        stride_read: step of the grid, in px of that level; whole unless overlapping tiles cannot have it so.
        shrink: 8, 4, 2 or 1: `read_px` is a multiple of it and at least `shrink * size_px`, and `stride_read` is a
            multiple where it is whole; a decoder may divide by it.
        size_level0: edge, in level-0 px.
        stride_level0: step of the grid, in level-0 px, a float: corner i lies at round(i * stride_level0).
    """

    size_px: int
    tile_mpp: float
    level: int
    read_px: int
    stride_read: float
    shrink: int
    size_level0: int
    stride_level0: float


def tile_spec(
    levels: Sequence[Level], *, name: str, mpp: float, size_px: int, stride_px: int, tolerance: float
) -> TileSpec:
    """How tiles of `size_px` at `mpp` are read from a slide with these levels.

    A level within the relative `tolerance` of `mpp` is read as it is, and so is the half, quarter or eighth of one.
    Otherwise the next finer one is read and shrunk.

    Args:
        name: of the slide, for messages.

    Raises:
        SlideError: the finest level is coarser than `mpp`: tiles are never upsampled.
    """
    level = _level_for(levels, name=name, mpp=mpp, tolerance=tolerance)
    read_mpp, level0_mpp = levels[level].mpp, levels[0].mpp
    read_px, shrink = _read_size(mpp / read_mpp, size_px=size_px, stride_px=stride_px, tolerance=tolerance)
    tile_mpp = read_mpp * read_px / size_px
    stride_read = stride_px * read_px / size_px
    size_level0 = round(read_px * read_mpp / level0_mpp)
    return TileSpec(
        size_px, tile_mpp, level, read_px, stride_read, shrink, size_level0, stride_read * read_mpp / level0_mpp
    )


def refuse_endless_grid(spec: TileSpec, *, name: str, width_level0: int, height_level0: int) -> None:
    """Refuse a grid of more than MOST_CORNERS, before any of it is made.

    Args:
        name: of the slide, for messages.

    Raises:
        SlideError: see there.
    """
    num_corners = math.prod(int(length / spec.stride_level0) + 1 for length in (width_level0, height_level0))
    if num_corners > MOST_CORNERS:
        raise SlideError(
            name,
            f"has room for {num_corners:,} tiles: {width_level0:,} x {height_level0:,} px, a tile every"
            f" {spec.stride_level0:.4g} px.",
            f"At most {MOST_CORNERS:,} tiles of one slide are listed.",
            "Set tiles.stride_px or tiles.mpp higher; if it is not so large, fetch the file again.",
        )


def tile_grid(spec: TileSpec, *, width_level0: int, height_level0: int, edge: Literal["drop", "pad"]) -> Corners:
    """Corners of all tiles, row by row from the slide's origin.

    Args:
        edge: tiles that would reach over the slide's edge are left out, or are in the grid like all others.
    """
    xs = _steps(width_level0, spec, edge)
    ys = _steps(height_level0, spec, edge)
    grid_y, grid_x = np.meshgrid(ys, xs, indexing="ij")
    return np.stack([grid_x.ravel(), grid_y.ravel()], axis=1)


def corner_on_level(spec: TileSpec, corner_level0: tuple[int, int]) -> tuple[int, int]:
    """Where a tile lies on the level that it is read from: (x, y) of its corner, in px of that level.

    Corners of the grid were rounded to level-0 px; the number of the tile is found again, so its level px are exact.
    """
    x, y = (_length_on_level(spec, at) for at in corner_level0)
    return x, y


def covered_fractions(
    mask: NDArray[np.bool_], px_level0: tuple[float, float], corners: Corners, size_level0: int
) -> NDArray[np.float32]:
    """Exact share of each tile that the mask covers, 0 to 1.

    The integral image is bilinear inside a mask pixel, so reading it between its nodes weighs pixels that a tile cuts
    by the area that it cuts. What lies outside the mask counts as uncovered.

    Args:
        mask: (H, W), covering the slide from its origin.
        px_level0: (x, y) size of a mask pixel, in level-0 px.
    """
    if len(corners) == 0:
        return np.zeros(0, dtype=np.float32)
    integral = np.asarray(cv2.integral(mask.astype(np.uint8), sdepth=cv2.CV_64F), dtype=np.float64)
    fractions = []
    for start in range(0, len(corners), CORNERS_AT_ONCE):
        some = corners[start : start + CORNERS_AT_ONCE]
        left, top = (some[:, i] / px_level0[i] for i in (0, 1))
        right, bottom = ((some[:, i] + size_level0) / px_level0[i] for i in (0, 1))
        area = _between(integral, bottom, right) - _between(integral, top, right)
        area += _between(integral, top, left) - _between(integral, bottom, left)
        share = area * (px_level0[0] * px_level0[1] / size_level0**2)
        fractions.append(np.clip(share, 0, 1).astype(np.float32))
    return np.concatenate(fractions)


def _level_for(levels: Sequence[Level], *, name: str, mpp: float, tolerance: float) -> int:
    near = [i for i, level in enumerate(levels) if _is_near(level.mpp, mpp, tolerance)]
    if near:
        return min(near, key=lambda i: abs(levels[i].mpp - mpp))
    finer = [i for i, level in enumerate(levels) if level.mpp < mpp]
    if finer:
        return max(finer, key=lambda i: levels[i].mpp)
    raise SlideError(
        name,
        f"cannot read tiles at {mpp:g} um/px.",
        f"Its finest level is {levels[0].mpp:.4g} um/px and tiles are never upsampled.",
        f"Set tiles.mpp to {levels[0].mpp:.3g} or more, or list the slide under slides.exclude.",
    )


def _length_on_level(spec: TileSpec, at_level0: int) -> int:
    number = round(at_level0 / spec.stride_level0)
    if round(number * spec.stride_level0) == at_level0:
        return round(number * spec.stride_read)
    return round(at_level0 * spec.stride_read / spec.stride_level0)


def _read_size(ratio: float, *, size_px: int, stride_px: int, tolerance: float) -> tuple[int, int]:
    """Edge to read in level px, and the power of two in it, when level px are `ratio` times finer than wanted."""
    for shrink in (1, *reversed(SHRINKS)):
        if _is_near(shrink / ratio, 1.0, tolerance):
            return shrink * size_px, shrink
    shrink = next((shrink for shrink in SHRINKS if shrink <= ratio), 1)
    exact = size_px * ratio
    step = shrink * size_px // math.gcd(size_px, stride_px)  # multiples of it give whole steps between tiles
    read_px = step * round(exact / step)
    if abs(read_px / exact - 1) > LARGEST_SNAP:
        read_px = shrink * round(exact / shrink)
    return max(read_px, shrink * size_px), shrink


def _is_near(level_mpp: float, mpp: float, tolerance: float) -> bool:
    return abs(level_mpp / mpp - 1) <= tolerance + 1e-9  # 1e-9: 0.525 / 0.5 - 1 is a little more than 0.05 in floats


def _steps(length_level0: int, spec: TileSpec, edge: Literal["drop", "pad"]) -> NDArray[np.int32]:
    count = int(length_level0 / spec.stride_level0) + 2  # one more than can fit; cut below
    starts: NDArray[np.int64] = np.rint(np.arange(count) * spec.stride_level0).astype(np.int64)
    fitting = starts[starts + (spec.size_level0 if edge == "drop" else 1) <= length_level0]
    return fitting.astype(np.int32)


def _between(integral: NDArray[np.float64], y: NDArray[np.floating], x: NDArray[np.floating]) -> NDArray[np.float64]:
    """The integral image at fractional (y, x), bilinear, clamped to its edges."""
    y, x = np.clip(y, 0, integral.shape[0] - 1), np.clip(x, 0, integral.shape[1] - 1)
    row = np.minimum(y.astype(np.int64), integral.shape[0] - 2)
    column = np.minimum(x.astype(np.int64), integral.shape[1] - 2)
    down, right = y - row, x - column
    upper = integral[row, column] * (1 - right) + integral[row, column + 1] * right
    lower = integral[row + 1, column] * (1 - right) + integral[row + 1, column + 1] * right
    return np.asarray(upper * (1 - down) + lower * down)
