"""Decodes image files of all supported kinds: correct pixels, or a refusal. Nothing is filled in.

OpenCV shows TIFFs of some compressions as black and cut JPEGs as grey; Pillow clips 16 bits. So each kind has the
decoder that was checked, in tests/unit/slides/test_image_kinds.py, against known pixels.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_path.slides.images.jpeg import EXIF, BadJpeg, decode_jpeg, exif_of, frame_size, without_metadata
from dino_path.slides.images.rgb import RgbImage
from dino_path.slides.images.tiff_image import BadTiff, tiff_samples

MOST_PIXELS = 80_000_000  # of one image: about 9,000 x 9,000, 240 MB as RGB
ROWS_AT_ONCE = 256
ORIENTATION = 274  # the EXIF and TIFF tag
DECODERS = {"PNG": imagecodecs.png_decode, "BMP": imagecodecs.bmp_decode, "WEBP": imagecodecs.webp_decode}


class BadImage(ValueError):
    """Not an image, a damaged one, or of a kind that we do not take; the text says which."""


def decode_image(encoded: bytes) -> RgbImage:
    """(H, W, 3) uint8 RGB: grey as RGB, 16 bits as 8, transparency over white, turned as its EXIF says.

    Colour profiles are not applied: a tile has the numbers that its file holds.

    Raises:
        BadImage: see there.
    """
    if encoded[:2] == b"\xff\xd8":
        return _decode_photo(encoded)
    if encoded[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        try:
            samples = tiff_samples(encoded, most_pixels=MOST_PIXELS)
        except BadTiff as error:
            raise BadImage(str(error)) from None
        colours, white = samples.colours, samples.white
        return _turned(_as_rgb(colours, white, samples.alpha, samples.is_premultiplied), samples.orientation)
    return _decode_picture(encoded)


def _decode_photo(encoded: bytes) -> RgbImage:
    try:
        width, height, channels = frame_size(encoded)
        if channels not in (1, 3):
            raise BadImage(f"a JPEG of {channels} inks (CMYK), whose colours depend on the printer")
        _refuse_large(width, height)
        try:
            pixels = decode_jpeg(encoded, shrink=1)
        except BadJpeg:  # a broken colour profile or note is a warning too, and no damage to the picture
            pixels = decode_jpeg(without_metadata(encoded), shrink=1)
        return _turned(pixels, _orientation(exif_of(encoded)))
    except (BadJpeg, struct.error) as error:
        raise BadImage(f"a damaged JPEG: {error}") from None


def _decode_picture(encoded: bytes) -> RgbImage:
    """PNG, BMP and WebP. Pillow reads the header, imagecodecs the pixels."""
    try:
        with Image.open(io.BytesIO(encoded), formats=tuple(DECODERS)) as header:
            kind, (width, height), has_more = header.format, header.size, getattr(header, "is_animated", False)
            exif = header.info.get("exif", b"")
    except Image.DecompressionBombError:  # Pillow's limit is twice ours
        raise BadImage(f"more than the {MOST_PIXELS:,} pixels of one tile") from None
    except (OSError, SyntaxError, ValueError, struct.error):
        raise BadImage(f"{len(encoded)} bytes that are not a JPEG, PNG, TIFF, BMP or WebP") from None
    _refuse_large(width, height)
    if has_more:
        raise BadImage("an animation; a single image is needed")
    try:
        pixels = np.asarray(DECODERS[str(kind)](encoded))
    except (ValueError, TypeError, RuntimeError) as error:  # imagecodecs' own are children of RuntimeError
        raise BadImage(f"a damaged {kind}: {error}") from None
    if pixels.dtype not in (np.uint8, np.uint16):
        raise BadImage(f"its pixels are {pixels.dtype}, but colours need 8 or 16 bits without sign")
    pixels = pixels.reshape(height, width, -1)
    number = pixels.shape[2] - 1 + pixels.shape[2] % 2  # 1, 3 of 1, 2, 3, 4: what is left is alpha
    alpha = pixels[..., number] if number < pixels.shape[2] else None
    return _turned(_as_rgb(pixels[..., :number], np.iinfo(pixels.dtype).max, alpha, False), _orientation(exif))


def _refuse_large(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise BadImage(f"{width} x {height} pixels, more than the {MOST_PIXELS:,} of one tile")


def _as_rgb(
    colours: NDArray[np.unsignedinteger[Any]],
    white: int,
    alpha: NDArray[np.unsignedinteger[Any]] | None,
    is_premultiplied: bool,
) -> RgbImage:
    """8 bits, three channels, over white. `colours` (H, W, 1 or 3) and `alpha` (H, W) go from 0 to `white`."""
    rgb = np.empty((*colours.shape[:2], 3), dtype=np.uint8)
    for top in range(0, len(colours), ROWS_AT_ONCE):  # as floats the whole of a large image takes ten times its own
        rows = slice(top, top + ROWS_AT_ONCE)
        levels: NDArray[Any] = colours[rows]
        if white != 255 or alpha is not None:
            levels = levels / (white / 255)
            if alpha is not None:
                weight = alpha[rows, :, None] / white
                levels = (levels if is_premultiplied else levels * weight) + 255 * (1 - weight)
            levels = np.clip(np.rint(levels), 0, 255)
        rgb[rows] = levels  # one channel fills three
    return rgb


def _orientation(exif: bytes) -> int:
    """Orientation 1 to 8, from the first directory of an EXIF block; 1 if there is none or it is damaged."""
    body = exif.removeprefix(EXIF)
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", body, 4)
        (num_tags,) = struct.unpack_from(f"{order}H", body, at)
        for number in range(num_tags):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", body, at + 2 + 12 * number)
            if tag == ORIENTATION:
                return int(value)
    except struct.error:
        pass
    return 1


def _turned(pixels: RgbImage, orientation: int) -> RgbImage:
    """The image upright. 2 to 4 are a mirror, a half turn and both; 5 to 8 the same after a transposition."""
    match orientation:
        case 2:
            return np.ascontiguousarray(pixels[:, ::-1])
        case 3:
            return np.ascontiguousarray(pixels[::-1, ::-1])
        case 4:
            return np.ascontiguousarray(pixels[::-1])
        case 5:
            return np.ascontiguousarray(pixels.transpose(1, 0, 2))
        case 6:
            return np.asarray(cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE), np.uint8)
        case 7:
            return np.ascontiguousarray(pixels[::-1, ::-1].transpose(1, 0, 2))
        case 8:
            return np.asarray(cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE), np.uint8)
        case _:
            return pixels
