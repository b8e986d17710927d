"""JPEG: strict decoding, and whole files from the streams of a TIFF (tables apart, colours named by its tags).

Source: TIFF Technical Note 2 (abbreviated streams and JPEGTables); ITU-T T.81 annex B (markers).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import numpy as np
import simplejpeg

from dino_path.slides.images.rgb import RgbImage

START, END = b"\xff\xd8", b"\xff\xd9"
START_OF_SCAN = 0xDA
# Frames, tables, scans, restart interval and number of lines. Comments, application segments and reserved markers hold
# nothing that decoding needs, but for the two that name the colours.
NEEDED = {*range(0xC0, 0xD0), START_OF_SCAN, 0xDB, 0xDC, 0xDD}
ADOBE_TRANSFORMS = (0, 1, 2)  # RGB or CMYK, YCbCr, YCCK
EXIF = b"Exif\0\0"
STANDALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length: TEM and the restarts
TABLES = (0xDB, 0xC4, 0xDD)  # quantisation, Huffman, restart interval
FRAME_HEADERS = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: what every decoder reads
# In compressed pixels a byte 0xFF is followed by 0 or a restart marker; whatever else follows it is the next marker.
# At the end of the stream nothing follows: a picture that ends so is cut short.
MARKER_AFTER_PIXELS = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)

# Decoders guess the colours from these: JFIF says YCbCr, Adobe's transform 0 says RGB. One of them stands first.
SAYS_YCBCR = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
SAYS_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


class BadJpeg(ValueError):
    """The bytes are not a JPEG, or a damaged one."""


def decode_jpeg(jpeg: bytes, *, shrink: int) -> RgbImage:
    """The picture as (height / shrink, width / shrink, 3) uint8 RGB, both rounded up; the EXIF rotation is not applied.

    Whatever makes libjpeg-turbo warn is an error here: data that end early, codes that do not exist, bytes that are
    left over, no end marker. OpenCV and Pillow fill in grey instead. A JPEG has no checksum, so damage that decodes to
    the same number of pixels goes unseen.

    Args:
        shrink: 1, 2, 4 or 8: the decoder skips the work for what is not wanted.

    Raises:
        BadJpeg: it cannot be decoded, or not without such a warning.
    """
    try:
        if shrink == 1:
            return np.asarray(simplejpeg.decode_jpeg(jpeg, "RGB"))
        width, height, _ = frame_size(jpeg)
        least = {"min_width": -(-width // shrink), "min_height": -(-height // shrink)}
        return np.asarray(simplejpeg.decode_jpeg(jpeg, "RGB", **least))
    except ValueError as error:
        raise BadJpeg(str(error)) from None


def whole_jpeg(stream: bytes, tables: bytes, *, is_rgb: bool) -> bytes:
    """A JPEG file of one TIFF tile that every decoder shows in the colours that the TIFF's tags name.

    Application segments and comments before the pixels are left out: they may contradict the TIFF about the colours.
    The compressed pixels are not touched. For a file that is kept, `without_metadata` takes the rest away.

    Args:
        stream: the tile as it lies in the file, abbreviated or whole.
        tables: what `table_segments` made of JPEGTables; empty without them.
        is_rgb: the TIFF's photometric interpretation is RGB; otherwise YCbCr.

    Raises:
        BadJpeg: no JPEG, or one that ends early.
    """
    # Some writers pad tiles to an even length or more; what comes after the end marker is no part of the picture.
    end = stream.rfind(END)
    if end < 0:
        raise BadJpeg("the stream has no end marker")
    kept = [START, SAYS_RGB if is_rgb else SAYS_YCBCR, tables]
    for marker, start, stop in _segments(stream):
        if marker == START_OF_SCAN:
            return b"".join([*kept, stream[start : end + len(END)]])
        if marker in NEEDED:
            kept.append(stream[start:stop])
    raise BadJpeg("the stream has no scan")


def table_segments(jpeg_tables: bytes) -> bytes:
    """The quantisation and Huffman tables of a TIFF's JPEGTables, without its start and end markers.

    Raises:
        BadJpeg: it is no such stream.
    """
    return b"".join(jpeg_tables[start:stop] for marker, start, stop in _segments(jpeg_tables) if marker in TABLES)


def without_metadata(jpeg: bytes) -> bytes:
    """The same pixels without application segments, comments and trailing bytes, except the segments that name the
    colours.

    Raises:
        BadJpeg: its segments do not join, or it ends early.
    """
    colours = b"".join(_colour_segments(jpeg))
    return b"".join([START, colours, *_decoding_parts(jpeg), END])


def _colour_segments(jpeg: bytes) -> Iterator[bytes]:
    """JFIF and Adobe's transform, by which decoders choose the colours, without other contents of these segments."""
    for _, start, stop in _segments(jpeg):
        segment = jpeg[start:stop]
        if segment[4:8] == b"JFIF":
            yield SAYS_YCBCR
        elif segment[4:9] == b"Adobe" and segment[-1] in ADOBE_TRANSFORMS:
            yield SAYS_RGB[:-1] + segment[-1:]


def _decoding_parts(stream: bytes) -> Iterator[bytes]:
    """All that decoding needs of a JPEG, without its start and end: tables, frame, and its scans with their pixels.

    Raises:
        BadJpeg: its segments do not join, it has no scan, or no end marker.
    """
    at = len(START)
    while True:
        marker, stop = 0, at
        for marker, start, stop in _segments(stream, at):
            if marker in NEEDED:
                yield stream[start:stop]
        if marker == END[1] and at > len(START):
            return
        if marker != START_OF_SCAN:
            raise BadJpeg("the stream has no scan" if at == len(START) else "the stream has no end marker")
        # A progressive JPEG has more tables and scans after the pixels of its first one.
        end = MARKER_AFTER_PIXELS.search(stream, stop)
        if end is None:
            raise BadJpeg("the stream has no end marker")
        yield stream[stop : end.start()]
        at = end.start()


def exif_of(jpeg: bytes) -> bytes:
    """The contents of the EXIF segment; empty if there is none.

    Raises:
        BadJpeg: its segments do not join.
    """
    return next((jpeg[at + 4 : stop] for _, at, stop in _segments(jpeg) if jpeg[at + 4 : at + 10] == EXIF), b"")


def frame_size(jpeg: bytes) -> tuple[int, int, int]:
    """(width, height, components) from the frame header.

    Raises:
        BadJpeg: there is none that every decoder reads.
    """
    for marker, start, _ in _segments(jpeg):
        if marker in FRAME_HEADERS:
            height, width, components = struct.unpack_from(">HHB", jpeg, start + 5)
            return width, height, components
        if marker == START_OF_SCAN:
            break
    raise BadJpeg("the stream has no frame header of a common kind")


def is_subsampled(jpeg: bytes) -> bool:
    """Whether some channel has fewer samples than another: 4:2:0 and 4:2:2, but not 4:4:4.

    Raises:
        BadJpeg: see `frame_size`.
    """
    _, _, components = frame_size(jpeg)
    start = next(at for marker, at, _ in _segments(jpeg) if marker in FRAME_HEADERS)
    factors = [jpeg[start + 11 + 3 * number] for number in range(components)]
    return len(set(factors)) > 1


def _segments(stream: bytes, at: int = len(START)) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of each segment from `at` to the next scan or the end; the marker's two bytes included."""
    if stream[: len(START)] != START:
        raise BadJpeg("the stream does not start as a JPEG")
    while at + len(END) <= len(stream):
        marker = stream[at + 1]
        if stream[at] != 0xFF or marker == 0:
            raise BadJpeg("the stream's segments do not join")
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in STANDALONE:
            at += 2
            continue
        if marker == END[1]:
            yield marker, at, at + len(END)
            return
        if at + 4 > len(stream):
            break
        stop = at + 2 + (stream[at + 2] << 8 | stream[at + 3])
        if stop > len(stream):
            raise BadJpeg("the stream ends within a segment")
        yield marker, at, stop
        if marker == START_OF_SCAN:
            return
        at = stop
