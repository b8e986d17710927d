"""Which reader opens a slide file: decided here and nowhere else, by the file's extension and its first bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import assert_never

import tifffile

from dino_path.errors import SlideError
from dino_path.slides.quiet import silence_decoders
from dino_path.slides.readers.damage import DECODER_ERRORS, damaged
from dino_path.slides.readers.dicom import is_dicom, refuse_dicom_without_colour
from dino_path.slides.readers.kinds import NEEDS_EXTRA, ReaderName
from dino_path.slides.readers.openslide_reader import NotOpened, OpenSlideReader, detect_vendor
from dino_path.slides.readers.reader import Reader
from dino_path.slides.readers.refusals import refuse_missing_companion, refuse_missing_extra, why_not_opened
from dino_path.slides.readers.tiff_plan import is_plain_colour

silence_decoders()

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian, classic and BigTIFF
# OpenSlide shows what these TIFFs hold as libtiff converts it, 16 bits and single channels too, without a word.
CONVERTED_VENDORS = ("generic-tiff", "aperio")


def open_slide_file(path: Path) -> tuple[ReaderName, Reader]:
    """The reader of this file, opened, and its name.

    Raises:
        SlideError: there is no such file, no reader for it, or an extra that is not installed.
    """
    with _absence_refused(path):
        name = _reader_name(path)
        if name is None:
            try:
                return "openslide", _opened_by_openslide(path)
            except NotOpened as reason:
                name = _reader_beyond_openslide(path, str(reason))
    return name, open_reader(name, path)


def open_reader(name: ReaderName, path: Path) -> Reader:
    """Open the file with the reader of this name.

    Raises:
        SlideError: that reader refuses the file, or is an extra that is not installed.
    """
    with _absence_refused(path):
        return _opened(name, path)


def _opened(name: ReaderName, path: Path) -> Reader:
    match name:
        case "openslide":
            try:
                return _opened_by_openslide(path)
            except NotOpened as reason:
                raise why_not_opened(path, str(reason)) from None
        case "tifffile":
            from dino_path.slides.readers.tiff_reader import TiffReader

            return TiffReader(path)
        case "slideio":
            refuse_missing_companion(path)
            refuse_missing_extra("slideio", path)
            from dino_path.slides.readers.slideio_reader import SlideioReader

            return SlideioReader(path)
        case "wsidicom":
            refuse_missing_extra("wsidicom", path)
            from dino_path.slides.readers.wsidicom_reader import WsidicomReader

            return WsidicomReader(path)
        case _:
            assert_never(name)


def _opened_by_openslide(path: Path) -> OpenSlideReader:
    """OpenSlide takes as much memory for a tile as the TIFF says that it has; where there is less, the process ends."""
    if _is_tiff(path):
        try:
            with tifffile.TiffFile(path) as file:
                longest = max((max(page.databytecounts, default=0) for page in file.pages if page.is_tiled), default=0)
                size = file.filehandle.size
        except DECODER_ERRORS:
            longest = size = 0  # OpenSlide says what is damaged
        if longest > size:
            raise damaged(path, f"its directory lists a tile of {longest:,} bytes, but the file has {size:,}")
    return OpenSlideReader(path)


@contextmanager
def _absence_refused(path: Path) -> Iterator[None]:
    """Refuse a file that is not there, was removed in this moment, or may not be read."""
    if not path.is_file():
        raise SlideError(
            str(path), "no such file.", "A slide file is needed.", "Check the path, and that its disk is mounted."
        )
    try:
        yield
    except OSError as error:
        raise SlideError(
            str(path),
            f"cannot be opened ({error.strerror or error}).",
            "A readable file is needed.",
            "Check its permissions, and that its disk is mounted.",
        ) from None


def is_slide_file(path: Path) -> bool:
    """Whether the file's format is one of slides: OpenSlide knows it, or it is a TIFF in tiles. Strips are pictures."""
    if detect_vendor(path) is not None:
        return True
    if not _is_tiff(path):
        return False
    try:
        with tifffile.TiffFile(path) as file:
            return bool(file.pages.first.is_tiled)
    except DECODER_ERRORS:
        return False


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) in TIFF_STARTS


def _reader_name(path: Path) -> ReaderName | None:
    """The only reader for the file; None when OpenSlide is to try first."""
    extra = NEEDS_EXTRA.get(path.suffix.lower())  # a .vsi starts as a TIFF, too: its thumbnail
    if extra is not None:
        return extra
    return "tifffile" if _is_tiff(path) and not _shows_true_colours(path) else None


def _shows_true_colours(path: Path) -> bool:
    """Whether OpenSlide knows this TIFF, all of its levels, and shows its colours as they are."""
    vendor = detect_vendor(path)
    if vendor not in CONVERTED_VENDORS:
        return vendor is not None
    try:
        with tifffile.TiffFile(path) as file:
            page, has_levels_elsewhere = file.pages.first, file.is_ome or file.is_qpi
    except DECODER_ERRORS:
        return True  # OpenSlide reads what it can of a damaged file, and says what it cannot
    return not has_levels_elsewhere and is_plain_colour(page)


def _reader_beyond_openslide(path: Path, reason: str) -> ReaderName:
    """Who reads what OpenSlide refuses.

    Raises:
        SlideError: nobody.
    """
    if is_dicom(path):
        refuse_dicom_without_colour(path)
        return "wsidicom"
    if path.suffix.lower() == ".czi":
        return "slideio"
    if _is_tiff(path) and detect_vendor(path) in CONVERTED_VENDORS and "unsupported" in reason.lower():
        return "tifffile"  # a compression that imagecodecs may know
    raise why_not_opened(path, reason)
