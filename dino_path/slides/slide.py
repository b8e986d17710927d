"""One whole-slide image: its levels, its mpp, and safe reading, whoever reads the file.

Frames: `level-0 px` are pixels of the finest level, origin at its top-left corner; `level px` are pixels of one level.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.errors import SlideError
from dino_path.slides.images.rgb import RgbImage as RgbImage
from dino_path.slides.readers.kinds import ReaderName
from dino_path.slides.readers.opening import open_reader, open_slide_file
from dino_path.slides.readers.reader import Reader
from dino_path.slides.resolution import find_mpp

WHITE = (255, 255, 255)
LONGEST_SIDE_MM = 400  # sections of whole brains on glass are half as long


@dataclass(frozen=True)
class Level:
    """One level of the pyramid. `downsample` to level 0 is a float (3.9990 and 4.0029 occur): never `int()` it."""

    width: int
    height: int
    downsample: float
    mpp: float


class Slide:
    """An open slide. Handles are opened on first use in each process, so a Slide may be pickled or forked.

    Attributes:
        levels: finest first.
        mpp: microns per pixel of level 0.
        mpp_source: where `mpp` came from, such as `openslide.mpp-x` or `objective power`.
        reader: who reads the file.
        vendor: the reader's name of the format, such as `aperio`, `generic-tiff` or `ome-tiff`.
        flags: what a person should know of the file, such as `grey`.
        background: RGB put under transparent pixels.
        bounds_origin: (x, y) of the scanned part's corner, level-0 px: QuPath counts from there. (0, 0) for most.
    """

    def __init__(
        self,
        path: Path,
        levels: tuple[Level, ...],
        mpp: float,
        mpp_source: str,
        vendor: str,
        background: tuple[int, int, int],
        bounds_origin: tuple[int, int] = (0, 0),
        *,
        reader: ReaderName = "openslide",
        flags: tuple[str, ...] = (),
    ) -> None:
        self.path, self.levels, self.mpp, self.mpp_source = path, levels, mpp, mpp_source
        self.vendor, self.background, self.bounds_origin = vendor, background, bounds_origin
        self.reader, self.flags = reader, flags
        self._handle: Reader | None = None
        self._pid = -1

    @classmethod
    def open(cls, path: Path, *, mpp: float | None = None) -> Slide:
        """Open `path` and settle its mpp.

        Args:
            mpp: microns per pixel of level 0 that the user gave (slides CSV); it overrules the file.

        Raises:
            SlideError: missing, or refused by every reader; mpp unknown, implausible, or different in x and y; longer
                than any slide.
        """
        name, handle = open_slide_file(path)
        handle.close()
        facts = handle.facts
        mpp_level0, source = find_mpp(path.name, facts.properties, given=mpp)
        _refuse_longer_than_glass(path.name, facts.sizes[0], mpp_level0, source)
        levels = tuple(
            Level(width, height, downsample, mpp_level0 * downsample)
            for (width, height), downsample in zip(facts.sizes, facts.downsamples, strict=True)
        )
        return cls(
            path,
            levels,
            mpp_level0,
            source,
            facts.vendor,
            _background_colour(facts.properties),
            _bounds_origin(facts.properties),
            reader=name,
            flags=facts.flags,
        )

    @property
    def name(self) -> str:
        """The file name, for messages."""
        return self.path.name

    @property
    def width_level0(self) -> int:
        return self.levels[0].width

    @property
    def height_level0(self) -> int:
        return self.levels[0].height

    def read_region(self, corner_level0: tuple[int, int], level: int, size: tuple[int, int]) -> RgbImage:
        """Pixels of one level; what is transparent or outside the slide comes back as `background`.

        Args:
            corner_level0: (x, y) of the top-left corner, in level-0 px.
            size: (width, height), in px of `level`.

        Raises:
            SlideError: the region cannot be decoded.
        """
        return self.read_region_and_cover(corner_level0, level, size)[0]

    def read_region_and_cover(
        self, corner_level0: tuple[int, int], level: int, size: tuple[int, int]
    ) -> tuple[RgbImage, NDArray[np.uint8]]:
        """The pixels, and (H, W) uint8 that is 255 where the scanner recorded something and 0 where nothing."""
        try:
            rgba = self._process_handle().read_region(corner_level0, level, size)
        except SlideError:
            self.close()  # OpenSlide latches: after one failure every later read fails. The next read opens again.
            raise
        alpha = rgba[..., 3]
        if int(alpha.min()) == 255:
            return np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), dtype=np.uint8), alpha
        if int(alpha.max()) == 0:  # half of a sparse slide: blending would cost four times what reading does
            return np.full((*alpha.shape, 3), self.background, dtype=np.uint8), alpha
        weight = alpha[..., None].astype(np.float32) / 255
        under = np.asarray(self.background, dtype=np.float32)
        return np.rint(rgba[..., :3] * weight + under * (1 - weight)).astype(np.uint8), alpha

    def close(self) -> None:
        """Close the handle of this process; a later read opens it again."""
        if self._handle is not None and self._pid == os.getpid():
            self._handle.close()
        self._handle = None

    def _process_handle(self) -> Reader:
        if self._handle is None or self._pid != os.getpid():
            self._handle, self._pid = open_reader(self.reader, self.path), os.getpid()
        return self._handle

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_pid": -1}


def _refuse_longer_than_glass(name: str, size: tuple[int, int], mpp: float, source: str) -> None:
    longest_mm = max(size) * mpp / 1000
    if longest_mm > LONGEST_SIDE_MM:
        raise SlideError(
            name,
            f"says that it has {size[0]:,} x {size[1]:,} px of {mpp:.4g} um ({source}): {longest_mm:,.0f} mm of glass.",
            f"A slide of at most {LONGEST_SIDE_MM} mm is needed.",
            "If the mpp is wrong, give the true one in the slides CSV (columns path,mpp); else fetch the file again.",
        )


def _background_colour(properties: Mapping[str, str]) -> tuple[int, int, int]:
    text = properties.get("openslide.background-color", "")
    try:
        red, green, blue = bytes.fromhex(text)
    except ValueError:
        return WHITE
    return red, green, blue


def _bounds_origin(properties: Mapping[str, str]) -> tuple[int, int]:
    try:
        return int(properties["openslide.bounds-x"]), int(properties["openslide.bounds-y"])
    except (KeyError, ValueError):
        return 0, 0
