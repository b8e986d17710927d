"""Pixels of one page of a TIFF: only the tiles or strips that a region touches are read and decoded."""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.slides.images.jpeg import decode_jpeg, table_segments, whole_jpeg
from dino_path.slides.readers.damage import damaged
from dino_path.slides.readers.reader import Size
from dino_path.slides.readers.tiff_plan import (
    APERIO_JPEG2000_YCBCR,
    JPEG,
    MIN_IS_WHITE,
    PREMULTIPLIED,
    RGB,
    SEPARATE_PLANES,
    UNCOMPRESSED,
)

Samples = NDArray[np.uint8]  # (H, W, S): S samples per pixel, 1 to 4

CACHE_BYTES = 64 * 2**20  # of decoded pieces, for all slides of a process
ROWS_AT_ONCE = 64  # of an uncompressed picture that is one strip: it need not be read as a whole
_numbers = itertools.count()


class PagePixels:
    """Reads regions of one page of an open TIFF. "Piece" is a tile or a strip, whichever the page has."""

    def __init__(self, page: Any, path: Path) -> None:
        self._page, self._path, self._number = page, path, next(_numbers)
        self.size: Size = (page.imagewidth, page.imagelength)
        self.num_samples: int = page.samplesperpixel
        self.is_premultiplied: bool = page.extrasamples[:1] == PREMULTIPLIED
        self._num_planes = self.num_samples if page.planarconfig == SEPARATE_PLANES else 1
        self._offsets, self._lengths = list(page.dataoffsets), list(page.databytecounts)
        self._piece: Size = (page.tilewidth, page.tilelength)
        if not page.is_tiled:
            self._piece = (page.imagewidth, min(page.rowsperstrip, page.imagelength))
            if page.compression == UNCOMPRESSED and self._piece[1] == page.imagelength > ROWS_AT_ONCE:
                self._cut_strips()
        columns, rows = (-(-edge // piece) for edge, piece in zip(self.size, self._piece, strict=True))
        self._columns, self._num_pieces = columns, columns * rows
        if len(self._offsets) != self._num_pieces * self._num_planes or len(self._lengths) != len(self._offsets):
            raise damaged(path, "its directory lists another number of pieces than the picture has")
        self._tables = table_segments(page.jpegtables) if page.compression == JPEG and page.jpegtables else b""

    def read(self, corner: tuple[int, int], size: Size) -> tuple[Samples, NDArray[np.uint8]]:
        """A region that lies on the page.

        Args:
            corner, size: (x, y) and (width, height), in px of the page.

        Returns:
            (H, W, S) samples, and (H, W) that is 255, or 0 where a piece was never written.

        Raises:
            SlideError: the file ends within a piece.
            DECODER_ERRORS, BadJpeg: a piece cannot be decoded.
        """
        (x, y), (width, height) = corner, size
        pixels: Samples = np.zeros((height, width, self.num_samples), dtype=np.uint8)
        cover = np.full((height, width), 255, dtype=np.uint8)
        piece_width, piece_height = self._piece
        samples_each = self.num_samples // self._num_planes
        for row in range(y // piece_height, (y + height - 1) // piece_height + 1):
            for column in range(x // piece_width, (x + width - 1) // piece_width + 1):
                left, top = max(x, column * piece_width), max(y, row * piece_height)
                right = min(x + width, (column + 1) * piece_width)
                bottom = min(y + height, (row + 1) * piece_height)
                here = slice(top - y, bottom - y), slice(left - x, right - x)
                for plane in range(self._num_planes):
                    decoded = self._decoded(plane * self._num_pieces + row * self._columns + column)
                    if decoded is None:
                        cover[here] = 0
                        continue
                    there = decoded[
                        top - row * piece_height : bottom - row * piece_height,
                        left - column * piece_width : right - column * piece_width,
                    ]
                    pixels[(*here, slice(plane * samples_each, (plane + 1) * samples_each))] = there
        return pixels, cover

    def _decoded(self, index: int) -> Samples | None:
        """One piece, from memory when it was among the last ones; None when it was never written."""
        if not self._lengths[index] or not self._offsets[index]:
            return None
        kept = _process_pieces(os.getpid())
        key = (self._number, index)
        piece = kept.get(key)
        if piece is None:
            piece = self._decode(self._bytes(index), index)
            kept.add(key, piece)
        return piece

    def _bytes(self, index: int) -> bytes:
        stream = self._page.parent.filehandle
        offset, length = self._offsets[index], self._lengths[index]
        if offset + length > stream.size:
            raise damaged(self._path, "the file ends within its pixels")
        stream.seek(offset)
        return bytes(stream.read(length))

    def _decode(self, data: bytes, index: int) -> Samples:
        page = self._page
        if page.compression == JPEG:
            is_rgb = page.photometric == RGB and not page.is_jfif  # a JFIF marker says YCbCr, whatever the TIFF says
            rgb = decode_jpeg(whole_jpeg(data, self._tables, is_rgb=is_rgb), shrink=1)
            return rgb if self.num_samples // self._num_planes == 3 else rgb[..., :1]
        if page.compression == UNCOMPRESSED and not page.is_tiled:
            samples = np.frombuffer(data, np.uint8).reshape(-1, self.size[0], self.num_samples // self._num_planes)
        else:
            segment, _, _ = page.decode(data, index)
            samples = np.asarray(segment[0], dtype=np.uint8)
        if page.compression == APERIO_JPEG2000_YCBCR:
            return np.asarray(cv2.cvtColor(samples[..., [0, 2, 1]], cv2.COLOR_YCrCb2RGB), dtype=np.uint8)
        return 255 - samples if page.photometric == MIN_IS_WHITE else samples

    def _cut_strips(self) -> None:
        """Read a picture that is one uncompressed strip in pieces of a few rows."""
        width, height = self.size
        row_bytes = width * (self.num_samples // self._num_planes)
        starts = range(0, height, ROWS_AT_ONCE)
        self._lengths = [min(ROWS_AT_ONCE, height - start) * row_bytes for start in starts] * self._num_planes
        self._offsets = [first + start * row_bytes for first in self._offsets for start in starts]
        self._piece = (width, ROWS_AT_ONCE)


class _Pieces:
    """The pieces that were decoded last, up to CACHE_BYTES. Threads that read different slides share them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int], Samples] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def get(self, key: tuple[int, int]) -> Samples | None:
        with self._lock:
            piece = self._kept.get(key)
            if piece is not None:
                self._kept.move_to_end(key)
            return piece

    def add(self, key: tuple[int, int], piece: Samples) -> None:
        with self._lock:
            self._kept[key] = piece
            self._bytes += piece.nbytes
            while self._bytes > CACHE_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes


@lru_cache(maxsize=1)
def _process_pieces(_pid: int) -> _Pieces:
    return _Pieces()
