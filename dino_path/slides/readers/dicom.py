"""DICOM files: which are slides, and which files form one slide. Only headers are read, no pixels.

A slide is a series: one file per level, beside label, overview and thumbnail, in one folder (OpenSlide finds the others
from any of them).
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_path.errors import SlideError
from dino_path.slides.readers.damage import damaged

DICOM_SUFFIXES = (".dcm", ".dicom")
PREAMBLE_BYTES = 128
MAGIC = b"DICM"
SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
# What pydicom raises on damaged headers besides two errors of its own: it parses values when they are asked for.
DAMAGED = (
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError, MemoryError,
    struct.error,
)  # fmt: skip
SLIDE_KINDS = ("volume", "label", "overview", "thumbnail")
LAST_TAG = 0x00480007  # TotalPixelMatrixRows, the last that is needed; tags stand in ascending order


@dataclass(frozen=True)
class DicomHeader:
    """The description in a DICOM header.

    Attributes:
        series: SeriesInstanceUID; "" where it names none.
        kind: "volume" is a level of a slide; "label", "overview" or "thumbnail" belong to one; else the name of
            another kind of object, such as "Segmentation Storage".
        num_px: of the whole level.
        samples, bits: channels of a pixel, and bits of each; 0: not said.
        colours: PhotometricInterpretation; "" where it names none.
    """

    series: str
    kind: str
    num_px: int
    samples: int = 0
    bits: int = 0
    colours: str = ""


def may_be_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name, or begins like it and has no extension (numbers are none: `1.2.840.113`)."""
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return True
    if suffix[1:] and not suffix[1:].isdecimal():
        return False
    try:
        return is_dicom(path)
    except OSError:
        return False  # an unreadable file without an extension: nothing says that it is a slide


def is_dicom(path: Path) -> bool:
    """Whether the file starts as DICOM does.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return stream.read(PREAMBLE_BYTES + len(MAGIC))[PREAMBLE_BYTES:] == MAGIC


def read_dicom_header(path: Path) -> DicomHeader | None:
    """The header of a DICOM file; None when the file is damaged, is none, or may not be read."""
    from pydicom.errors import BytesLengthException, InvalidDicomError
    from pydicom.filereader import read_partial

    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that break DICOM's rules, and are what they are
            found = read_partial(stream, stop_when=lambda tag, _vr, _length: int(tag) > LAST_TAG)
            storage = found.get("SOPClassUID")
            kinds = [str(value).lower() for value in found.get("ImageType", None) or ()]
            columns, rows = (int(found.get(f"TotalPixelMatrix{what}", None) or 0) for what in ("Columns", "Rows"))
            series = str(found.get("SeriesInstanceUID", None) or "")
            samples, bits = (int(found.get(name, None) or 0) for name in ("SamplesPerPixel", "BitsAllocated"))
            colours = str(found.get("PhotometricInterpretation", None) or "")
    except (InvalidDicomError, BytesLengthException, *DAMAGED):
        return None
    if storage is None:
        return None
    if storage != SLIDE_CLASS:
        return DicomHeader(series, str(getattr(storage, "name", storage)), 0, samples, bits, colours)
    beside = next((kind for kind in ("label", "overview", "thumbnail") if kind in kinds), None)
    return DicomHeader(series, beside or "volume", columns * rows, samples, bits, colours)


def refuse_dicom_without_colour(path: Path) -> None:
    """Refuse DICOM objects that are not slides, and slides that no reader shows in true colours.

    Raises:
        SlideError: so it is, or the header is damaged.
    """
    header = read_dicom_header(path)
    if header is None:
        raise damaged(path, "its DICOM header cannot be read")
    if header.kind not in SLIDE_KINDS:
        raise SlideError(
            str(path),
            f"is a DICOM object of another kind ({header.kind}).",
            "A VL Whole Slide Microscopy Image is needed; not a segmentation or annotation.",
            "Give the slide's own files.",
        )
    if (header.bits, header.samples) != (8, 3):
        raise SlideError(
            str(path),
            f"has {header.bits} bits per channel and {header.samples} channel{'s' * (header.samples != 1)} "
            f"({header.colours or 'colours not said'}).",
            "Three 8-bit colours (red, green, blue) are needed.",
            "Export it as 8-bit RGB from the tool that wrote it, or list the slide under slides.exclude.",
        )


def series_files(path: Path) -> list[Path]:
    """The file and all others beside it that belong to its series: a slide is one file for each level, or more.

    Raises:
        SlideError: it is damaged.
    """
    series = DicomSeries()
    if series.header(path) is None:
        raise damaged(path, "its DICOM header cannot be read")
    return [path, *(file for file in series.files_of(path) if file != path)]


class DicomSeries:
    """Series by folder: every file's header is read once."""

    def __init__(self) -> None:
        self._headers: dict[Path, DicomHeader | None] = {}
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def header(self, file: Path) -> DicomHeader | None:
        if file not in self._headers:
            self._headers[file] = read_dicom_header(file)
        return self._headers[file]

    def slide_of(self, file: Path) -> tuple[Path, str | None]:
        """The file that stands for the slide of `file`, and None; or `file` and what it is, where that is no slide.

        It is the largest level of the series, whichever file was named. A damaged file stands for itself.
        """
        header = self.header(file)
        if header is None:
            return file, None
        first = (self.files_of(file) or [file])[0]
        found = self.header(first)
        assert found is not None
        return (first, None) if found.kind == "volume" else (file, found.kind)

    def files_of(self, file: Path) -> list[Path]:
        """The files of the series that `file` belongs to, as `_series_in` sorts them; none where it names no series."""
        header = self.header(file)
        return self._series_in(file.parent).get(header.series, []) if header is not None and header.series else []

    def _series_in(self, folder: Path) -> dict[str, list[Path]]:
        """series -> its files in `folder`, the largest level first, those beside it last."""
        if folder not in self._folders:
            found: dict[str, list[Path]] = {}
            for file in _dicom_files(folder):
                header = self.header(file)
                if header is not None and header.kind in SLIDE_KINDS:
                    found.setdefault(header.series, []).append(file)
            self._folders[folder] = {series: sorted(files, key=self._place) for series, files in found.items()}
        return self._folders[folder]

    def _place(self, file: Path) -> tuple[bool, int, str]:
        header = self.header(file)
        assert header is not None
        return header.kind != "volume", -header.num_px, file.name


def _dicom_files(folder: Path) -> Sequence[Path]:
    try:
        return [file for file in folder.iterdir() if not file.name.startswith(".") and may_be_dicom(file)]
    except OSError:
        return ()  # the file was named by itself: its folder may be entered, and not listed
