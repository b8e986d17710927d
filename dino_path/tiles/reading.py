"""Pixels of tiles at the wanted mpp, straight from the file's JPEG tiles where that proves itself, or by OpenSlide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from dino_path.config import TilesConfig
from dino_path.errors import SlideError
from dino_path.slides.readers.native import NativeReader, NotNative, decode_tile, native_reader
from dino_path.slides.slide import RgbImage, Slide
from dino_path.tiles.geometry import SHRINKS, Corners, TileSpec, corner_on_level, tile_spec

PROOF_TILES = 4  # compared with OpenSlide before a slide is read natively
PROOF_SEED = 0
LARGEST_DIFFERENCE = 2.0  # mean of absolute differences of a tile, grey levels
PROOF_DRAWN = 200  # tiles among which those are chosen
RANDOM_ACCESS_BYTES = 4 * 2**20  # of decoded native tiles per slide where tiles are read in any order


@dataclass(frozen=True)
class Tile:
    """One tile as it was read.

    Attributes:
        pixels: (size_px, size_px, 3) uint8 RGB.
        jpeg: the scanner's own JPEG of exactly these pixels, where there is one and it is to be copied.
    """

    pixels: RgbImage
    jpeg: bytes | None = None


class TileReader:
    """Reads the tiles of one slide, in the fastest way that has been verified on this slide.

    Attributes:
        reader: what the slide's record says: `native`, or the slide's reader and why: `openslide: <why>`.
        shrink: by how much the native reader divides while it decodes: 1, 2, 4 or 8.
    """

    def __init__(
        self, slide: Slide, spec: TileSpec, native: NativeReader | None, *, shrink: int, copies_jpeg: bool, reader: str
    ) -> None:
        """Use `choose`."""
        self.slide, self.spec, self.reader = slide, spec, reader
        self._native, self.shrink = native, shrink
        self._copies_jpeg = copies_jpeg and native is not None and _is_grid_of(native, spec)

    @classmethod
    def choose(cls, slide: Slide, spec: TileSpec, corners: Corners, config: TilesConfig) -> TileReader:
        """The native reader if its pixels agree with OpenSlide's, else OpenSlide.

        Args:
            corners: (N, 2) of the tiles that will be read, level-0 px: some of them are compared.
        """
        native, shrink, reader = None, 1, f"{slide.reader}: tiles.reader"
        if config.reader == "auto":
            try:
                native, shrink = _proved_reader(slide, spec, corners)
                reader = "native"
            except NotNative as reason:
                reader = f"{slide.reader}: {reason}"
        return cls(slide, spec, native, shrink=shrink, copies_jpeg=config.copy_native_jpeg, reader=reader)

    @classmethod
    def again(cls, slide: Slide, spec: TileSpec, *, reader: str, shrink: int) -> TileReader:
        """The reader that was chosen when the slide was tiled: the same pixels, without another proof.

        Raises:
            SlideError: it was the native reader, and the file does not have it any more.
        """
        if reader != "native":
            return cls(slide, spec, None, shrink=1, copies_jpeg=False, reader=reader)
        try:
            native = native_reader(slide, spec.level)
        except NotNative as reason:
            raise SlideError(
                str(slide.path),
                f"is not the file that was tiled ({reason}).",
                "The slide must be unchanged.",
                "Restore the file, or tile it again.",
            ) from None
        native.most_decoded_bytes = RANDOM_ACCESS_BYTES
        return cls(slide, spec, native, shrink=shrink, copies_jpeg=False, reader=reader)

    def subsampling(self, config: TilesConfig) -> Literal["444", "420"]:
        """Colour subsampling for tiles of this slide: that of its own JPEG tiles; if it has none, full resolution."""
        if config.jpeg_subsampling != "auto":
            return config.jpeg_subsampling
        try:
            native = self._native or native_reader(self.slide, self.spec.level)
            return "420" if native.is_subsampled() else "444"
        except NotNative:
            return "444"

    def read(self, corner_level0: tuple[int, int]) -> Tile:
        """One tile; shrunk by area averaging (no aliasing) where no level has the wanted mpp.

        Areas that were not scanned get the slide's background colour.

        Args:
            corner_level0: (x, y) of the top-left corner, in level-0 px.

        Raises:
            SlideError: the pixels cannot be decoded. Other tiles of the slide may still be readable.
        """
        if self._native is not None:
            try:
                if self._copies_jpeg:
                    jpeg = self._native.whole_tile_jpeg(corner_on_level(self.spec, corner_level0))
                    return Tile(decode_tile(jpeg, 1), jpeg)
                return Tile(read_tile_natively(self._native, self.spec, corner_level0, shrink=self.shrink))
            except NotNative:  # this tile alone: missing, damaged, or over the edge. OpenSlide knows what to show.
                pass
        return Tile(read_tile(self.slide, self.spec, corner_level0))

    def read_all(self, corners: Corners) -> Iterator[Tile | SlideError]:
        """The tiles at `corners`, in that order; an unreadable one comes as its error, so that it costs no other."""
        for x, y in corners.tolist():
            try:
                yield self.read((x, y))
            except SlideError as error:
                yield error

    def close(self) -> None:
        """Close the native reader's file; the slide stays open."""
        if self._native is not None:
            self._native.close()


def spec_of(slide: Slide, config: TilesConfig) -> TileSpec:
    """How the tiles of this slide are read.

    Raises:
        SlideError: its finest level is coarser than `tiles.mpp`.
    """
    return tile_spec(
        slide.levels,
        name=slide.name,
        mpp=config.mpp,
        size_px=config.size_px,
        stride_px=config.stride_px or config.size_px,
        tolerance=config.mpp_tolerance,
    )


def read_tile(slide: Slide, spec: TileSpec, corner_level0: tuple[int, int]) -> RgbImage:
    """One tile by OpenSlide: (size_px, size_px, 3) uint8 RGB.

    Raises:
        SlideError: the pixels cannot be decoded.
    """
    return _resampled(slide.read_region(corner_level0, spec.level, (spec.read_px, spec.read_px)), spec)


def read_tile_natively(
    native: NativeReader, spec: TileSpec, corner_level0: tuple[int, int], *, shrink: int
) -> RgbImage:
    """One tile by the native reader, decoded at 1 / `shrink`.

    Raises:
        NotNative: this tile has to go through OpenSlide.
    """
    corner = corner_on_level(spec, corner_level0)
    return _resampled(native.read(corner, (spec.read_px, spec.read_px), shrink=shrink), spec)


def _resampled(pixels: RgbImage, spec: TileSpec) -> RgbImage:
    if pixels.shape[0] == spec.size_px:
        return pixels
    return np.asarray(cv2.resize(pixels, (spec.size_px, spec.size_px), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _is_grid_of(native: NativeReader, spec: TileSpec) -> bool:
    """Whether every tile is a native tile, but for those at the level's edge."""
    native_size = (native.level.tile_width, native.level.tile_height)
    return native_size == (spec.size_px, spec.size_px) == (spec.read_px, spec.read_px) and not (
        spec.stride_read % spec.size_px
    )


def _proved_reader(slide: Slide, spec: TileSpec, corners: Corners) -> tuple[NativeReader, int]:
    """A native reader verified against OpenSlide, and the largest factor by which it may reduce while decoding.

    Raises:
        NotNative: there is none.
    """
    native = native_reader(slide, spec.level)
    examples = _examples(slide, spec, corners)
    difference = float("inf")
    for shrink in (one for one in (*SHRINKS, 1) if one <= spec.shrink and (one == 1 or spec.stride_read % one == 0)):
        difference = _largest_difference(slide, spec, native, shrink, examples)
        if difference <= LARGEST_DIFFERENCE:
            return native, shrink
    native.close()
    if difference == float("inf"):
        raise NotNative("no tile could be compared")
    raise NotNative(f"native pixels differ by {difference:.1f} grey levels")


def _examples(slide: Slide, spec: TileSpec, corners: Corners) -> list[tuple[int, int]]:
    """Corners of a few tiles, drawn with a fixed seed.

    OpenSlide takes level-0 px, whole ones: on coarser levels it may lie between pixels, and interpolates. The tiles
    where it has least to interpolate are chosen.
    """
    downsample = slide.levels[spec.level].downsample
    drawn = np.random.default_rng(PROOF_SEED).permutation(len(corners))[:PROOF_DRAWN]

    def offset(corner: tuple[int, int]) -> float:
        on_level = corner_on_level(spec, corner)
        return round(max(abs(at / downsample - level) for at, level in zip(corner, on_level, strict=True)), 3)

    return sorted(((x, y) for x, y in corners[drawn].tolist()), key=offset)[:PROOF_TILES]


def _largest_difference(
    slide: Slide, spec: TileSpec, native: NativeReader, shrink: int, examples: list[tuple[int, int]]
) -> float:
    """Largest mean absolute difference from OpenSlide among the examples, grey levels; infinite when none compares."""
    differences = []
    for corner in examples:
        try:
            ours = read_tile_natively(native, spec, corner, shrink=shrink)
            theirs = read_tile(slide, spec, corner)
        except (NotNative, SlideError):
            continue  # a damaged tile proves nothing
        differences.append(float(cv2.absdiff(ours, theirs).mean()))
    return max(differences, default=float("inf"))
