"""Pictures that cover a whole slide, a number in every pixel: PNG, and TIFF with or without a pyramid."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from dino_path.errors import SlideError
from dino_path.slides.quiet import silence_decoders

silence_decoders()

Picture = NDArray[Any]  # (H, W) or (H, W, C)

PICTURE_ENDINGS = (".png", ".tif", ".tiff")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_GREY = 0  # colour type; all others are decoded to four channels at most
LARGEST_BYTES = 2**30  # decoded; a slide of 80 x 80 mm has 100 million pixels at 8 um/px
ENOUGH_FOR_LABELS_PX = 2**26  # read of a TIFF of class numbers: 8 x 8 pixels for each of a million tiles
ASPECT_TOLERANCE = 0.02
# What tifffile and its codecs raise on damaged files; TiffFileError is a ValueError, imagecodecs' are RuntimeErrors.
TIFF_ERRORS = (
    OSError, EOFError, ValueError, KeyError, IndexError, TypeError, RuntimeError, ArithmeticError, ImportError,
    struct.error,
)  # fmt: skip


def read_labels(file: Path, name: str, size_level0: tuple[int, int]) -> NDArray[Any]:
    """(H, W) class numbers of a picture that covers the whole slide `name` of `size_level0` (width, height) px.

    A TIFF comes back at the level, or thinned out to, about ENOUGH_FOR_LABELS_PX: no number is ever averaged.

    Raises:
        SlideError: no such picture, another shape than the slide, or colours.
    """
    shrink = math.sqrt(ENOUGH_FOR_LABELS_PX / (size_level0[0] * size_level0[1]))
    enough = (math.ceil(size_level0[0] * shrink), math.ceil(size_level0[1] * shrink))
    picture = read_picture(file, name, size_level0, enough_px=enough)
    if picture.ndim == 2:
        return picture
    labels = labels_of_colours(picture[..., :3])
    if labels is None:
        raise SlideError(
            str(file),
            "is a colour picture.",
            "Class numbers are read from grey pictures, or from the red channel if no two colours share a red value.",
            "Save it as a grey picture of class numbers, with 0 for no class.",
        )
    return labels


def read_picture(file: Path, name: str, size_level0: tuple[int, int], *, enough_px: tuple[int, int]) -> Picture:
    """The pixels as they are stored, RGB or RGBA where they are colours.

    Args:
        enough_px: (width, height) to which a larger TIFF may be thinned out.

    Raises:
        SlideError: the file cannot be read, has another shape than the slide, or would not fit in memory.
    """
    if file.suffix.lower() == ".png":
        _refuse_png(file, name, size_level0)
        return _decode_png(file)
    try:
        with tifffile.TiffFile(file) as tiff:
            levels = [level for level in tiff.series[0].levels if len(level.pages) == 1]
            if not levels:
                raise ValueError("it has no picture of one page")
            return _read_tiff(file, name, size_level0, [level.pages[0].aspage() for level in levels], enough_px)
    except TIFF_ERRORS as error:
        raise unreadable_mask(file, error) from None


def labels_of_colours(colours_HW3: Picture) -> NDArray[Any] | None:
    """The red channel, where no two colours of the picture share a red: grey pictures, and the masks of PANDA."""
    red, green, blue = colours_HW3[..., 0], colours_HW3[..., 1], colours_HW3[..., 2]
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return np.asarray(red)
    if colours_HW3.dtype != np.uint8:
        return None
    for other in (green, blue):
        pairs = np.bincount((red.astype(np.uint16) << 8 | other).ravel(), minlength=2**16).reshape(256, 256)
        if ((pairs > 0).sum(axis=1) > 1).any():
            return None
    return np.asarray(red)


def unreadable_mask(file: Path, error: Exception) -> SlideError:
    """The refusal of a mask that is damaged or no mask."""
    return SlideError(
        str(file),
        f"the mask cannot be read ({' '.join(str(error).split())[:150]}).",
        "A complete file of outlines, or a complete PNG or TIFF picture, is needed.",
        "Make the mask again, or check the path and that its disk is mounted.",
    )


def _decode_png(file: Path) -> Picture:
    try:
        picture: Picture | None = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise unreadable_mask(file, error) from None
    if picture is None:
        raise unreadable_mask(file, ValueError("the PNG is damaged"))
    if picture.ndim == 2:
        return picture
    code = cv2.COLOR_BGRA2RGBA if picture.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(picture, code))


def _refuse_png(file: Path, name: str, size_level0: tuple[int, int]) -> None:
    """Refuse, by the header, files that are not PNG, differ in shape from the slide, or would not fit in memory."""
    try:
        with file.open("rb") as stream:
            header = stream.read(26)
    except OSError as error:
        raise unreadable_mask(file, error) from None
    if len(header) < 26 or not header.startswith(PNG_SIGNATURE):
        raise unreadable_mask(file, ValueError("it is no PNG"))
    width, height, bits, colour_type = struct.unpack(">IIBB", header[16:])
    num_bytes = width * height * (1 if colour_type == PNG_GREY else 4) * (2 if bits == 16 else 1)
    _refuse_large(file, (width, height), num_bytes)
    _refuse_other_shape(file, name, size_level0, (width, height))


def _read_tiff(
    file: Path,
    name: str,
    size_level0: tuple[int, int],
    levels: list[tifffile.TiffPage],
    enough_px: tuple[int, int],
) -> Picture:
    """The coarsest level that has `enough_px`, else the finest, thinned out to no less than that."""
    _refuse_other_shape(file, name, size_level0, (levels[0].imagewidth, levels[0].imagelength))
    enough = [one for one in levels if one.imagewidth >= enough_px[0] and one.imagelength >= enough_px[1]]
    level = enough[-1] if enough else levels[0]
    if level.dtype is None or level.dtype.kind not in "bu":
        raise ValueError(f"its pixels are {level.dtype}; whole numbers without a sign are needed")
    width, height = level.imagewidth, level.imagelength
    step = max(1, min(width // enough_px[0], height // enough_px[1]))
    out_width, out_height = max(1, width // step), max(1, height // step)
    channels = level.samplesperpixel
    _refuse_large(file, (out_width, out_height), out_width * out_height * channels * level.dtype.itemsize)
    stored_px = level.tilewidth * level.tilelength if level.is_tiled else width * (level.rowsperstrip or height)
    _refuse_large(file, (width, height), stored_px * channels * level.dtype.itemsize)
    # The level pixel under the centre of each pixel that is kept.
    columns = ((np.arange(out_width) + 0.5) * width / out_width).astype(int)
    rows = ((np.arange(out_height) + 0.5) * height / out_height).astype(int)
    picture: Picture = np.zeros((out_height, out_width, channels), np.uint8 if level.dtype.kind == "b" else level.dtype)
    for block, top, left, channel in _blocks(level):
        at_rows = slice(*np.searchsorted(rows, (top, top + block.shape[0])))
        at_columns = slice(*np.searchsorted(columns, (left, left + block.shape[1])))
        kept = block[np.ix_(rows[at_rows] - top, columns[at_columns] - left)]
        picture[at_rows, at_columns, channel : channel + block.shape[2]] = kept
    return picture[..., 0] if channels == 1 else picture


def _blocks(level: tifffile.TiffPage) -> Iterator[tuple[Picture, int, int, int]]:
    """Every tile or strip of a level, (h, w, C), with its top, left and first channel; those that are absent are 0."""
    for data, (plane, _, top, left, _), shape in level.segments():
        if data is not None:
            yield data[0, : shape[1], : shape[2]], top, left, plane


def _refuse_large(file: Path, size: tuple[int, int], num_bytes: int) -> None:
    if num_bytes > LARGEST_BYTES:
        raise SlideError(
            str(file),
            f"the mask has {size[0]} x {size[1]} pixels.",
            f"It must fit into {LARGEST_BYTES:,} bytes.",
            "Save it smaller (8 um/px is enough), as a grey picture with 8 bits; or as a tiled TIFF with a pyramid.",
        )


def _refuse_other_shape(file: Path, name: str, size_level0: tuple[int, int], size: tuple[int, int]) -> None:
    # Both are equal when the shapes agree; a pixel more or less in either edge moves them by an edge of the slide.
    (width_level0, height_level0), (width, height) = size_level0, size
    wide, high = width * height_level0, height * width_level0
    slack = ASPECT_TOLERANCE * max(wide, high) + max(size_level0)
    if abs(wide - high) > slack:
        raise SlideError(
            str(file),
            f"the mask ({width} x {height} pixels) differs in shape from {name} ({width_level0} x {height_level0}).",
            "A mask must cover exactly the whole slide, as OpenSlide opens it.",
            "Check that it belongs to this slide, and that the tool did not crop, rotate or pad it.",
        )
