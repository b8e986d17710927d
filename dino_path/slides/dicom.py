"""What the header of a DICOM file says: whether it is a slide, of which series, and in which colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

from dino_path.errors import SlideError
from dino_path.slides.damage import damage_refused, damaged

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # SOP class: VL Whole Slide Microscopy Image Storage
PREAMBLE_BYTES = 128
HEADER = ["SOPClassUID", "SeriesInstanceUID", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation"]


def is_dicom(path: Path) -> bool:
    """Whether the file starts as DICOM does."""
    with path.open("rb") as stream:
        return stream.read(PREAMBLE_BYTES + 4)[PREAMBLE_BYTES:] == b"DICM"


def refuse_dicom_without_colour(path: Path) -> None:
    """Refuse DICOM objects that are no slides, and slides that no reader shows in true colours.

    Raises:
        SlideError: so it is.
    """
    header = _header(path)
    if header.get("SOPClassUID", "") != WHOLE_SLIDE:
        raise SlideError(
            str(path),
            f"is a DICOM object of another kind ({header.SOPClassUID.name}).",
            "A VL Whole Slide Microscopy Image is needed; segmentations and annotations lie beside their slide.",
            "Name the slide's own files.",
        )
    bits, samples = header.get("BitsAllocated", 0), header.get("SamplesPerPixel", 0)
    if (bits, samples) != (8, 3):
        raise SlideError(
            str(path),
            f"has {bits} bits per channel and {samples} channel{'s' * (samples != 1)} "
            f"({header.get('PhotometricInterpretation', 'colours not said')}).",
            "Three 8-bit colours (red, green, blue) are needed.",
            "Export it as 8-bit RGB from the tool that wrote it, or list the slide under slides.exclude.",
        )


def dicom_series(path: Path) -> str | None:
    """The DICOM series that `path` belongs to (one slide is many files); None when it is no whole-slide image."""
    try:
        header = _header(path) if is_dicom(path) else {}
    except (SlideError, OSError):  # whoever opens it says why
        return None
    is_slide = header.get("SOPClassUID", "") == WHOLE_SLIDE
    return str(header.get("SeriesInstanceUID", "")) or None if is_slide else None


def series_files(path: Path) -> list[Path]:
    """The file and all others beside it that belong to its series: a slide is one file for each level, or more.

    Raises:
        SlideError: it is damaged.
    """
    series = _header(path).get("SeriesInstanceUID")
    beside = (file for file in sorted(path.parent.iterdir()) if file.is_file() and file != path)
    return [path, *(file for file in beside if dicom_series(file) == series)]


def _header(path: Path) -> Any:
    with damage_refused(path, InvalidDicomError):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER)
    if "SOPClassUID" not in header:
        raise damaged(path, "its header does not say what kind of object it is")
    return header
