"""Slides through tifffile and imagecodecs: OME-TIFF, QPTIFF, strips, and compressions that OpenSlide does not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from dino_path.slides.images.jpeg import BadJpeg
from dino_path.slides.readers.damage import damage_refused
from dino_path.slides.readers.reader import RgbaImage, Size, corner_on_level, place_on_level
from dino_path.slides.readers.tiff_pixels import PagePixels
from dino_path.slides.readers.tiff_plan import plan_slide


class TiffReader:
    """One TIFF, opened by tifffile."""

    _file: tifffile.TiffFile | None = None

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            SlideError: it is damaged, or no slide that we can show in its true colours.
        """
        self._path = path
        with damage_refused(path):
            self._file = tifffile.TiffFile(path)
            plan = plan_slide(self._file, path)
            self._levels = [[PagePixels(page, path) for page in pages] for pages in plan.levels]
        self.facts = plan.facts

    def read_region(self, corner_level0: tuple[int, int], level: int, size: Size) -> RgbaImage:
        """See `Reader`."""
        corner = corner_on_level(corner_level0, self.facts.downsamples[level])
        start, inside, (x, y) = place_on_level(corner, size, self.facts.sizes[level])
        rgba: RgbaImage = np.zeros((size[1], size[0], 4), dtype=np.uint8)
        if not min(inside):
            return rgba
        with damage_refused(self._path, BadJpeg):
            planes, covers = zip(*(page.read(start, inside) for page in self._levels[level]), strict=True)
        samples = np.concatenate(planes, axis=2)  # one page of 1, 3 or 4 samples, or three pages of 1
        here = rgba[y : y + inside[1], x : x + inside[0]]
        here[..., :3] = samples[..., :3]
        here[..., 3] = np.minimum.reduce(covers)
        if samples.shape[2] == 4:
            here[..., 3] = np.minimum(here[..., 3], samples[..., 3])
            if self._levels[level][0].is_premultiplied:
                straight = samples[..., :3] * (255 / np.maximum(samples[..., 3:], 1))
                here[..., :3] = np.rint(np.minimum(straight, 255))
        return rgba

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __del__(self) -> None:
        self.close()
