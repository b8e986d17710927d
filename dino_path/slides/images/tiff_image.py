"""One image in a TIFF of any common kind: its samples as the file holds them, or a refusal that says why."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from dino_path.slides.images.jpeg import END, BadJpeg, decode_jpeg, table_segments, whole_jpeg
from dino_path.slides.quiet import silence_decoders

silence_decoders()

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
JPEG = 7
JPEG_2000 = (34712, 33005)  # the second is Aperio's, of RGB
# Those whose decoders are checked against known pixels (tests/unit/slides/test_image_kinds.py). Missing on
# purpose: Aperio's JPEG 2000 of YCbCr (33003), which nobody converts; JPEG XR, whose decoder takes cut data as whole.
COMPRESSIONS = {
    1: "none", 5: "LZW", JPEG: "JPEG", 8: "deflate", 32946: "deflate", 32773: "PackBits", 34933: "PNG",
    34925: "LZMA", 50000: "Zstandard", **dict.fromkeys(JPEG_2000, "JPEG 2000"),
}  # fmt: skip
COLOUR_SAMPLES = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, PALETTE: 1, RGB: 3, YCBCR: 3}
BITS = (1, 2, 4, 8, 16)
ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA = 1, 2
# What tifffile and the decoders below it raise at damaged files.
DAMAGES = (
    tifffile.TiffFileError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error, OSError,
)  # fmt: skip


class BadTiff(ValueError):
    """An unsupported image: damaged, or of a kind whose decoding has not been verified."""


@dataclass(frozen=True)
class TiffSamples:
    """The samples of an image.

    Attributes:
        colours: (H, W, 1 or 3), unsigned, black at 0 and white at `white`.
        alpha: (H, W) in the same unit; None: all is opaque.
        is_premultiplied: the colours were multiplied by alpha already.
        orientation: 1 to 8, as EXIF counts.
    """

    colours: NDArray[np.unsignedinteger[Any]]
    white: int
    alpha: NDArray[np.unsignedinteger[Any]] | None
    is_premultiplied: bool
    orientation: int


def tiff_samples(encoded: bytes, *, most_pixels: int) -> TiffSamples:
    """The first image of a TIFF.

    Raises:
        BadTiff: see there; also when there are more images, but for smaller copies of the first.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(encoded)) as file:
            page = file.pages.first
            _refuse_other_images(file)
            _refuse_unknown_kind(page, most_pixels)
            _refuse_damage(page, encoded)
            return _samples(page, page.asarray(maxworkers=1))
    except BadTiff:
        raise
    except DAMAGES as error:
        raise BadTiff(f"a TIFF that cannot be decoded: {error}") from None


def _refuse_other_images(file: tifffile.TiffFile) -> None:
    in_one_page = (file.imagej_metadata or {}).get("images", 1) if file.is_imagej else 1
    others = [page for page in file.pages[1:] if not (isinstance(page, tifffile.TiffPage) and page.is_reduced)]
    if others or in_one_page != 1 or file.pages.first.imagedepth != 1:
        raise BadTiff(f"a TIFF of {max(len(others) + 1, in_one_page)} images; a single image is needed")


def _refuse_unknown_kind(page: tifffile.TiffPage, most_pixels: int) -> None:
    width, height = max(page.imagewidth, page.tilewidth), max(page.imagelength, page.tilelength)
    if width * height > most_pixels:
        raise BadTiff(f"{width} x {height} pixels, more than the {most_pixels:,} of one tile")
    if page.compression not in COMPRESSIONS:
        raise BadTiff(f"a TIFF with compression {_name(page.compression)}")
    is_compressed_ycbcr = page.photometric == YCBCR and page.compression != JPEG
    if page.photometric not in COLOUR_SAMPLES or is_compressed_ycbcr:
        raise BadTiff(f"a TIFF whose colours are {_name(page.photometric)}")
    bits, kind = page.bitspersample, page.sampleformat
    if kind != tifffile.SAMPLEFORMAT.UINT or bits not in BITS:
        raise BadTiff(
            f"its pixels are {page.dtype or _name(kind)} of {bits} bits, but colours need 1 to 16 bits without sign"
        )
    extra = page.samplesperpixel - COLOUR_SAMPLES[page.photometric]
    if extra not in (0, 1) or (extra and (page.compression == JPEG or page.photometric == PALETTE)):
        raise BadTiff(f"a TIFF of {page.samplesperpixel} channels")


def _refuse_damage(page: tifffile.TiffPage, encoded: bytes) -> None:
    """Refuse damage that tifffile would show as black, libjpeg as grey, or OpenJPEG as a blur."""
    if len(page.dataoffsets) != math.prod(page.chunked):
        raise BadTiff(f"a TIFF of {len(page.dataoffsets)} parts where {math.prod(page.chunked)} make the image")
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        if length == 0 or offset + length > len(encoded):
            raise BadTiff("a truncated TIFF")
        stream = encoded[offset : offset + length]
        if page.compression in JPEG_2000 and not stream.rstrip(b"\0").endswith(END):
            raise BadTiff("a TIFF with a truncated JPEG 2000 stream")
        if page.compression == JPEG:
            tables = table_segments(page.jpegtables) if page.jpegtables else b""
            try:
                decode_jpeg(whole_jpeg(stream, tables, is_rgb=page.photometric == RGB), shrink=1)
            except BadJpeg as error:
                raise BadTiff(f"a TIFF with a damaged JPEG: {error}") from None


def _samples(page: tifffile.TiffPage, pixels: NDArray[Any]) -> TiffSamples:
    """Channels last, black at 0, the alpha apart."""
    pixels = pixels.reshape(_shape(page))
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        pixels = np.moveaxis(pixels, 0, -1)
    orientation = page.tags.valueof(274, 1)
    white = 2**page.bitspersample - 1
    if page.photometric == PALETTE:
        # The high byte, as libtiff takes it: some writers fill the low byte with zeros, others repeat the high one.
        palette = (np.asarray(page.colormap) >> 8).astype(np.uint8)
        return TiffSamples(np.moveaxis(palette[:, pixels[..., 0]], 0, -1), 255, None, False, orientation)
    number = COLOUR_SAMPLES[page.photometric]
    colours, kind = pixels[..., :number].astype(np.uint16), page.extrasamples[:1]
    if page.photometric == WHITE_IS_ZERO:
        colours = (white - colours).astype(np.uint16)
    has_alpha = kind in ((ASSOCIATED_ALPHA,), (UNASSOCIATED_ALPHA,))  # else a channel of which nothing is known
    alpha = pixels[..., number].astype(np.uint16) if has_alpha else None
    return TiffSamples(colours, white, alpha, kind == (ASSOCIATED_ALPHA,), orientation)


def _shape(page: tifffile.TiffPage) -> tuple[int, int, int]:
    height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        return channels, height, width
    return height, width, channels


def _name(value: Any) -> str:
    """tifffile's name of a tag's value, or the value itself."""
    return str(getattr(value, "name", value))
