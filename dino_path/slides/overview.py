"""A small picture of a whole slide, made block by block, so that no level is ever completely in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.errors import SlideError
from dino_path.slides.slide import RgbImage, Slide

Span = tuple[int, int]  # start, stop
Part = tuple[int, int, int, int]  # of a slide: left, top, width, height, level-0 px

BLOCK_PX = 2048  # edge of one read, in level px: 16 MiB as RGBA
SMALLEST_BLOCK_PX = 256  # a block that cannot be decoded is quartered down to this, to lose no more than the damage
MOST_UNREADABLE = 0.1  # share of the slide; beyond it the slide is damaged, and its good part a biased sample
# Of the level that the picture is made of: 200,000 x 200,000, ten minutes of decoding on one core. A level of more is a
# damaged header, or a slide that nobody can look at either.
MOST_LEVEL_PX = 40_000_000_000
LARGEST_OVERVIEW_PX = 120_000_000  # 360 MB as RGB; at 8 um/px a slide of 80 x 80 mm has 100 million


@dataclass(frozen=True)
class Overview:
    """The whole slide, small.

    Attributes:
        rgb: (H, W, 3) uint8.
        covered: (H, W) bool, False where the scanner recorded nothing (transparent).
        px_level0: (x, y) size of one overview pixel in level-0 px, floats.
        unreadable: share of the slide that could not be decoded, 0 to MOST_UNREADABLE; not covered, therefore.
    """

    rgb: RgbImage
    covered: NDArray[np.bool_]
    px_level0: tuple[float, float]
    unreadable: float = 0.0

    @property
    def scanned(self) -> tuple[slice, slice]:
        """Rows and columns of the smallest rectangle that holds all that was recorded; all, where nothing was."""
        if not self.covered.any():
            return slice(0, self.covered.shape[0]), slice(0, self.covered.shape[1])
        rows, columns = (np.flatnonzero(self.covered.any(axis=axis)) for axis in (1, 0))
        return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def read_overview(slide: Slide, *, mpp: float, part: Part | None = None) -> Overview:
    """The slide, or a part of it, at about `mpp`, area-averaged; never finer than level 0.

    The picture's edges are those of the slide or part exactly, so `px_level0` is what one pixel measures, not `mpp`.

    Raises:
        SlideError: the slide cannot be read, the picture would not fit in memory, or too many pixels go into it.
    """
    px_level0 = max(1.0, mpp / slide.mpp)
    left, top, width_level0, height_level0 = part or (0, 0, slide.width_level0, slide.height_level0)
    width = max(1, round(width_level0 / px_level0))
    height = max(1, round(height_level0 / px_level0))
    if width * height > LARGEST_OVERVIEW_PX:
        raise SlideError(
            slide.name,
            f"a picture of the whole slide at {mpp:g} um/px has {width} x {height} pixels.",
            f"At most {LARGEST_OVERVIEW_PX:,} pixels are held in memory.",
            "Set tiles.mask_mpp higher (8 is usual).",
        )
    scale_x, scale_y = width_level0 / width, height_level0 / height
    # One per cent of slack: a level that matches but for rounding is read as it is.
    level = max(i for i, one in enumerate(slide.levels) if one.downsample <= min(scale_x, scale_y) * 1.01 or i == 0)
    _refuse_endless(slide, level)
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    covered = np.empty((height, width), dtype=np.bool_)
    reader = _LevelReader(slide, level, (left, top))
    level_width, level_height = slide.levels[level].width, slide.levels[level].height
    if part is not None:
        downsample = slide.levels[level].downsample
        level_width, level_height = max(1, round(width_level0 / downsample)), max(1, round(height_level0 / downsample))
    for rows, y_span in _spans(height, level_height):
        for columns, x_span in _spans(width, level_width):
            pixels, cover = reader.read(x_span, y_span)
            wanted = (columns.stop - columns.start, rows.stop - rows.start)
            rgb[rows, columns] = cv2.resize(pixels, wanted, interpolation=cv2.INTER_AREA)
            covered[rows, columns] = cv2.resize(cover, wanted, interpolation=cv2.INTER_AREA) >= 128
    return Overview(rgb, covered, (scale_x, scale_y), reader.unreadable)


def _refuse_endless(slide: Slide, level: int) -> None:
    width, height = slide.levels[level].width, slide.levels[level].height
    if width * height > MOST_LEVEL_PX:
        raise SlideError(
            slide.name,
            f"says that it has {width:,} x {height:,} pixels, all of which a picture of the whole slide is made of.",
            f"A level of at most {MOST_LEVEL_PX:,} pixels is needed.",
            "Fetch the file again; if it is right, save it with a pyramid (vips tiffsave IN OUT.tif --tile --pyramid"
            " --bigtiff), or list it under slides.exclude.",
        )


class _LevelReader:
    """Reads blocks of one level; tolerates a small undecodable share."""

    def __init__(self, slide: Slide, level: int, origin_level0: tuple[int, int]) -> None:
        self._slide, self._level, self._origin_level0 = slide, level, origin_level0
        self._unreadable_px = 0

    @property
    def unreadable(self) -> float:
        """Share of the level that could not be decoded so far."""
        return self._unreadable_px / (self._slide.levels[self._level].width * self._slide.levels[self._level].height)

    def read(self, x_span: Span, y_span: Span) -> tuple[RgbImage, NDArray[np.uint8]]:
        """Pixels and cover of a block, spans in level px from the origin.

        Raises:
            SlideError: too much of the level cannot be decoded.
        """
        (left, right), (top, bottom) = x_span, y_span
        downsample = self._slide.levels[self._level].downsample
        # Down, not to the nearest: half a level-0 pixel over the slide's edge would come back half transparent.
        corner_level0 = self._origin_level0[0] + int(left * downsample), self._origin_level0[1] + int(top * downsample)
        try:
            return self._slide.read_region_and_cover(corner_level0, self._level, (right - left, bottom - top))
        except SlideError as error:
            if max(right - left, bottom - top) > SMALLEST_BLOCK_PX:
                return self._read_in_parts(x_span, y_span)
            self._unreadable_px += (right - left) * (bottom - top)
            if self.unreadable > MOST_UNREADABLE:
                raise error
        shape = (bottom - top, right - left)
        white: RgbImage = np.full((*shape, 3), 255, dtype=np.uint8)
        return white, np.zeros(shape, dtype=np.uint8)

    def _read_in_parts(self, x_span: Span, y_span: Span) -> tuple[RgbImage, NDArray[np.uint8]]:
        rows = [[self.read(x, y) for x in _halves(x_span)] for y in _halves(y_span)]
        pixels = np.concatenate([np.concatenate([part[0] for part in row], axis=1) for row in rows])
        cover = np.concatenate([np.concatenate([part[1] for part in row], axis=1) for row in rows])
        return pixels, cover


def _halves(span: Span) -> list[Span]:
    start, stop = span
    middle = start + -(-(stop - start) // (2 * SMALLEST_BLOCK_PX)) * SMALLEST_BLOCK_PX
    return [span] if middle >= stop else [(start, middle), (middle, stop)]


def _spans(length: int, level_length: int) -> Iterator[tuple[slice, Span]]:
    """Cut one side of the overview into slices, each with its (start, stop) in level px, about BLOCK_PX long."""
    scale = level_length / length
    step = max(1, int(BLOCK_PX / scale))
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield slice(start, stop), (round(start * scale), max(round(stop * scale), round(start * scale) + 1))
