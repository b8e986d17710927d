"""Tiles directly from JPEG-compressed pyramids: OpenSlide's pixels, decoded several times faster.

OpenSlide decodes a native tile completely, converts it and composes it into the region. Here one read fetches the
compressed bytes at their offset, libjpeg-turbo decodes them at 1/1, 1/2, 1/4 or 1/8 (skipping unneeded work), and
nothing is composed. Whenever this reader is unsure, it raises NotNative and OpenSlide reads the region: no pixel is
guessed or filled with white.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from dino_path.slides.images.jpeg import (
    BadJpeg,
    decode_jpeg,
    frame_size,
    is_subsampled,
    table_segments,
    whole_jpeg,
    without_metadata,
)
from dino_path.slides.readers.damage import DECODER_ERRORS
from dino_path.slides.slide import RgbImage, Slide

VENDORS = ("aperio", "generic-tiff")  # the others overlap tiles, leave gaps, or have no tiles
TIFF_JPEG, TIFF_RGB, TIFF_YCBCR, TIFF_CONTIGUOUS = 7, 2, 6, 1
# If our grid does not coincide with the native tiles, a native tile is needed for several of ours, on two rows of the
# grid. 64 MB hold two rows of 256 px tiles on a slide 43,000 px wide, so that each is decoded once.
DECODED_BYTES = 64 * 2**20


class NotNative(Exception):
    """Why OpenSlide must read a slide, or a region of it, instead."""


@dataclass(frozen=True)
class NativeLevel:
    """Where the compressed tiles of one level lie in the file.

    Attributes:
        width, height: of the level, px.
        tile_width, tile_height: of every native tile, px; the last ones extend beyond the level's edge.
        offsets, lengths: (N,) bytes, row by row; a length of 0 means that the tile was never written.
        tables: JPEG tables shared by the tiles; empty if each tile has its own.
        is_rgb: the samples are RGB, else YCbCr.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    tables: bytes
    is_rgb: bool

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile_width)

    @property
    def rows(self) -> int:
        return -(-self.height // self.tile_height)


class NativeReader:
    """Reads one level of a slide. The file is opened on first use in each process.

    Attributes:
        most_decoded_bytes: limit of the cache of decoded native tiles.
    """

    def __init__(self, path: Path, level: NativeLevel) -> None:
        self._descriptor, self._pid = -1, -1
        self.path, self.level = path, level
        self._decoded: OrderedDict[tuple[int, int, int], RgbImage] = OrderedDict()
        self._decoded_bytes = 0
        self.most_decoded_bytes = DECODED_BYTES

    def read(self, corner: tuple[int, int], size: tuple[int, int], *, shrink: int) -> RgbImage:
        """Read a region of the level, reduced by `shrink` while decoding.

        Args:
            corner, size: (x, y) and (width, height), in px of the level; multiples of `shrink`.

        Returns:
            (height / shrink, width / shrink, 3) uint8 RGB.

        Raises:
            NotNative: the region crosses the level's edge, or needs a missing or damaged tile.
        """
        (x, y), (width, height) = corner, size
        level = self.level
        if x < 0 or y < 0 or x + width > level.width or y + height > level.height:
            raise NotNative("the region reaches over the level's edge")
        # libjpeg-turbo reduces each native tile by itself. A pixel that straddles two native tiles, or a corner between
        # reduced pixels, would need resampling, which OpenSlide's path does.
        if any(at % shrink for at in (x, y, width, height, level.tile_width, level.tile_height)):
            raise NotNative(f"the region lies between pixels of the 1/{shrink} picture")
        if (width, height) == (level.tile_width, level.tile_height) and not (x % width or y % height):
            return self._native_tile(x // width, y // height, shrink)  # no copy needed
        x, y, width, height = x // shrink, y // shrink, width // shrink, height // shrink
        pixels: RgbImage = np.empty((height, width, 3), dtype=np.uint8)
        for row, to_y, from_y in _pieces(y, height, level.tile_height // shrink):
            for column, to_x, from_x in _pieces(x, width, level.tile_width // shrink):
                pixels[to_y, to_x] = self._native_tile(column, row, shrink)[from_y, from_x]
        return pixels

    def whole_tile_jpeg(self, corner: tuple[int, int]) -> bytes:
        """The native tile at this corner as a JPEG file, with the scanner's compressed pixels and without metadata.

        Args:
            corner: (x, y), in px of the level; a multiple of the native tile's size.

        Raises:
            NotNative: no complete tile starts there, or the tile is missing or damaged.
        """
        level = self.level
        column, over_x = divmod(corner[0], level.tile_width)
        row, over_y = divmod(corner[1], level.tile_height)
        is_inside = (column + 1) * level.tile_width <= level.width and (row + 1) * level.tile_height <= level.height
        if over_x or over_y or not is_inside:
            raise NotNative("no complete native tile starts there")
        # Comments and application segments may hold any text, such as a name: they must not reach the store.
        try:
            jpeg = without_metadata(self._jpeg(column, row))
            if frame_size(jpeg) != (level.tile_width, level.tile_height, 3):
                raise NotNative("the size of the native tile differs from the TIFF header")
        except BadJpeg as error:
            raise NotNative(str(error)) from None
        return jpeg

    def is_subsampled(self) -> bool:
        """Whether the tiles store colour at a lower resolution than brightness, judged by the first written tile.

        Raises:
            NotNative: no tile can be read.
        """
        written = np.flatnonzero(self.level.lengths)
        if not len(written):
            raise NotNative("no native tile was written")
        row, column = divmod(int(written[0]), self.level.columns)
        try:
            return is_subsampled(self._jpeg(column, row))
        except BadJpeg as error:
            raise NotNative(str(error)) from None

    def close(self) -> None:
        """Close the file and forget decoded tiles; a later read opens it again."""
        if self._descriptor >= 0 and self._pid == os.getpid():
            os.close(self._descriptor)
        self._descriptor = -1
        self._decoded.clear()
        self._decoded_bytes = 0

    def _native_tile(self, column: int, row: int, shrink: int) -> RgbImage:
        """One decoded native tile, from the cache if possible. Read only: the array is shared with later calls."""
        key = (column, row, shrink)
        kept = self._decoded.get(key)
        if kept is not None:
            self._decoded.move_to_end(key)
            return kept
        tile = decode_tile(self._jpeg(column, row), shrink)
        if tile.shape[:2] != (self.level.tile_height // shrink, self.level.tile_width // shrink):
            raise NotNative("the size of a native tile differs from the TIFF header")
        self._decoded[key] = tile
        self._decoded_bytes += tile.nbytes
        while self._decoded_bytes > self.most_decoded_bytes and len(self._decoded) > 1:  # a huge tile is still returned
            self._decoded_bytes -= self._decoded.popitem(last=False)[1].nbytes
        return tile

    def _jpeg(self, column: int, row: int) -> bytes:
        number = row * self.level.columns + column
        offset, length = int(self.level.offsets[number]), int(self.level.lengths[number])
        if length == 0:
            raise NotNative("a native tile was never written")
        try:
            # After a fork, parent and child would share one descriptor, and whichever closes it first breaks the other.
            # `pread` needs no shared file position, so threads may read at the same time.
            if self._descriptor < 0 or self._pid != os.getpid():
                self._descriptor, self._pid = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC), os.getpid()
            stream = os.pread(self._descriptor, length, offset)
        except OSError as error:  # OpenSlide will hit the same error and report it
            raise NotNative(str(error)) from None
        if len(stream) < length:
            raise NotNative("the file ends within a native tile")
        try:
            return whole_jpeg(stream, self.level.tables, is_rgb=self.level.is_rgb)
        except BadJpeg as error:
            raise NotNative(str(error)) from None

    def __getstate__(self) -> dict[str, Any]:
        # Readers are sent to worker processes: a descriptor means nothing there, and the cache would cost up to 64 MB.
        return {**self.__dict__, "_descriptor": -1, "_pid": -1, "_decoded": OrderedDict(), "_decoded_bytes": 0}

    def __del__(self) -> None:
        self.close()


def native_reader(slide: Slide, level: int) -> NativeReader:
    """A reader of one level of the slide.

    Raises:
        NotNative: the level has no JPEG tiles, or a layout that only OpenSlide supports.
    """
    if slide.vendor not in VENDORS:
        raise NotNative(f"its format is {slide.vendor}")
    width, height = slide.levels[level].width, slide.levels[level].height
    try:
        with tifffile.TiffFile(slide.path) as file:
            fitting = [
                page
                for page in file.pages
                if isinstance(page, tifffile.TiffPage)
                and page.is_tiled
                and (page.imagewidth, page.imagelength) == (width, height)
            ]
            # tifffile and OpenSlide number pages differently, so the level is found by its size. If two pages have the
            # same size (focal planes, or a second scan), nothing says which one OpenSlide shows.
            if len(fitting) != 1:
                raise NotNative(f"{len(fitting)} tiled pages have the size of level {level}")
            return NativeReader(slide.path, _native_level(fitting[0], file.filehandle.size))
    except DECODER_ERRORS as error:
        raise NotNative(f"its TIFF directory cannot be read ({' '.join(str(error).split())})") from None


def decode_tile(jpeg: bytes, shrink: int) -> RgbImage:
    """Decode a native tile, reduced by 1, 2, 4 or 8 while decoding.

    Raises:
        NotNative: the tile is damaged or cannot be decoded.
    """
    try:
        return decode_jpeg(jpeg, shrink=shrink)
    except BadJpeg as error:
        raise NotNative(f"a native tile cannot be decoded ({error})") from None


def _native_level(page: Any, file_bytes: int) -> NativeLevel:
    if page.compression != TIFF_JPEG:
        raise NotNative(f"its tiles are compressed as {getattr(page.compression, 'name', page.compression)}")
    if page.photometric not in (TIFF_RGB, TIFF_YCBCR):
        raise NotNative(f"its colours are {getattr(page.photometric, 'name', page.photometric)}")
    if (page.samplesperpixel, page.bitspersample, page.planarconfig) != (3, 8, TIFF_CONTIGUOUS):
        raise NotNative("its pixels are not three interleaved bytes")
    tables = table_segments(page.jpegtables) if page.jpegtables else b""
    offsets, lengths = (np.asarray(values, dtype=np.int64) for values in (page.dataoffsets, page.databytecounts))
    level = NativeLevel(
        page.imagewidth, page.imagelength, page.tilewidth, page.tilelength, offsets, lengths, tables,
        page.photometric == TIFF_RGB,
    )  # fmt: skip
    if len(offsets) != level.columns * level.rows or len(lengths) != len(offsets):
        raise NotNative("its TIFF directory lists a different number of tiles than the level has")
    if (lengths < 0).any() or (lengths > file_bytes).any():
        raise NotNative("its TIFF directory lists tiles that are longer than the file")
    return level


def _pieces(start: int, length: int, tile: int) -> Iterator[tuple[int, slice, slice]]:
    """Cut a span at the borders of native tiles: (number of the tile, target slice, source slice) of each piece."""
    for number in range(start // tile, (start + length - 1) // tile + 1):
        first, last = max(start, number * tile), min(start + length, (number + 1) * tile)
        yield number, slice(first - start, last - start), slice(first - number * tile, last - number * tile)
