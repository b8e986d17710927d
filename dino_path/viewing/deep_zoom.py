"""Slides as squares of 512 px at every power of two, read from the level that suits best.

Zoom 0 has the pixels of level 0; each further zoom halves both sides. Square (column, row) of zoom z covers
`SQUARE_PX * 2**z` level-0 px from `(column, row) * SQUARE_PX * 2**z`; those at the edge are smaller.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dino_path.errors import SlideError
from dino_path.records.slide import SlideRecord
from dino_path.slides.region import MOST_READ_PX, level_for, read_scaled
from dino_path.slides.resolution import FROM_CSV
from dino_path.slides.slide import RgbImage, Slide
from dino_path.tiles.slide_identity import is_slide_of, slide_identity
from dino_path.tiles.writing import encode_jpeg

SQUARE_PX = 512
JPEG_QUALITY = 85
MOST_READING = 4  # at a time, each in memory of at most 64 MiB
MOST_IDLE = 8  # slides that stay open while nobody reads them
CACHE_BYTES = 128 * 2**20  # of encoded squares


class OpenSlides:
    """Lends open slides, each to one thread at a time: a reader serves no two."""

    def __init__(self, records: Sequence[SlideRecord]) -> None:
        self._records = records
        self._idle: list[tuple[int, Slide]] = []  # least recently used first
        self._lock, self._turns = threading.Lock(), threading.BoundedSemaphore(MOST_READING)

    @contextmanager
    def lend(self, number: int) -> Iterator[Slide]:
        """The slide of this number, open. Waits while MOST_READING others read.

        Raises:
            SlideError: it is missing, is another file than was tiled, or cannot be opened.
        """
        with self._turns:
            slide = self._take(number) or self._open(number)
            try:
                yield slide
            finally:
                self._give_back(number, slide)

    def close(self) -> None:
        """Close readers that are not in use."""
        with self._lock:
            for _, slide in self._idle:
                slide.close()
            self._idle.clear()

    def _take(self, number: int) -> Slide | None:
        with self._lock:
            for place in reversed(range(len(self._idle))):
                if self._idle[place][0] == number:
                    return self._idle.pop(place)[1]
        return None

    def _open(self, number: int) -> Slide:
        record = self._records[number]
        slide = Slide.open(Path(record.path), mpp=record.mpp if record.mpp_source == FROM_CSV else None)
        if not is_slide_of(record, slide.path, slide_identity(slide.path, record.identity)):
            slide.close()
            raise SlideError(
                record.path,
                "is not the file that was tiled.",
                "The slide from which the store's tiles were cut is needed.",
                "Restore it, or run `dino-path tile` again.",
            )
        return slide

    def _give_back(self, number: int, slide: Slide) -> None:
        with self._lock:
            self._idle.append((number, slide))
            oldest = self._idle.pop(0)[1] if len(self._idle) > MOST_IDLE else None
        if oldest is not None:
            oldest.close()


class DeepZoom:
    """Squares of many slides as JPEG; those asked for last are kept, up to CACHE_BYTES."""

    def __init__(self, slides: OpenSlides) -> None:
        self._slides = slides
        self._kept: OrderedDict[tuple[int, int, int, int], bytes] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def coarsest(self, number: int) -> int:
        """The largest zoom of a slide: where one square shows all of it, or the last that can be read at once."""
        with self._slides.lend(number) as slide:
            wanted = max(0, math.ceil(math.log2(max(slide.width_level0, slide.height_level0) / SQUARE_PX)))
            return max(zoom for zoom in range(wanted + 1) if zoom == 0 or _read_px(slide, zoom) <= MOST_READ_PX)

    def square(self, number: int, zoom: int, column: int, row: int) -> bytes:
        """One square as JPEG.

        Raises:
            SlideError: it lies outside the slide, or cannot be read.
        """
        key = (number, zoom, column, row)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._slides.lend(number) as slide:
            encoded = encode_jpeg(read_square(slide, zoom, column, row), JPEG_QUALITY, "420")
        with self._lock:
            if key not in self._kept:
                self._kept[key] = encoded
                self._bytes += len(encoded)
            while self._bytes > CACHE_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return encoded


def read_square(slide: Slide, zoom: int, column: int, row: int) -> RgbImage:
    """One square: (height, width, 3) uint8 RGB, at most SQUARE_PX each way.

    Raises:
        SlideError: it lies outside the slide, or cannot be read.
    """
    downsample = 2**zoom
    left, top = column * SQUARE_PX * downsample, row * SQUARE_PX * downsample
    width = min(SQUARE_PX, math.ceil((slide.width_level0 - left) / downsample))
    height = min(SQUARE_PX, math.ceil((slide.height_level0 - top) / downsample))
    if zoom > 30 or width <= 0 or height <= 0:
        raise SlideError(
            slide.name,
            f"zoom {zoom} has no image square in column {column}, row {row}.",
            f"A square of a slide of {slide.width_level0:,} x {slide.height_level0:,} px is needed.",
            "Request one on the slide.",
        )
    return read_scaled(slide, (left, top), (width * downsample, height * downsample), (width, height))


def _read_px(slide: Slide, zoom: int) -> float:
    """Edge of the region that a square of this zoom needs, in px of the level from which it is read."""
    return SQUARE_PX * float(2**zoom) / slide.levels[level_for(slide, 2**zoom)].downsample
