"""Refusals of files that cannot be opened as slides: the true cause, and what to do."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dino_path.errors import SlideError
from dino_path.slides.readers.damage import undecodable
from dino_path.slides.readers.kinds import Extra

# Formats of several files: where the others must lie, seen from the one that is named.
COMPANIONS = {".mrxs": "{stem}/Slidedat.ini", ".vsi": "_{stem}_"}


def refuse_missing_extra(extra: Extra, path: Path) -> None:
    """Refuse a file whose reader is not installed, with the command that installs it."""
    if find_spec(extra) is None:
        what = "DICOM of this kind" if path.suffix.lower() == ".dcm" else f"{path.suffix} files"
        raise SlideError(
            str(path),
            f"{what} are read through {extra}, which is not installed.",
            "It is an extra of dino-path.",
            f"Install it: uv pip install 'dino-path[{extra}]'",
        )


def refuse_missing_companion(path: Path) -> None:
    """Refuse a file whose pixels are in other, missing files."""
    pattern = COMPANIONS.get(path.suffix.lower(), "")
    companion = pattern.format(stem=path.stem)
    if companion and not (path.parent / companion).exists():
        raise SlideError(
            str(path),
            "has no pixels of its own, and the file with its pixels is missing.",
            f"A {path.suffix} file and {companion} in the same folder are needed.",
            f"Copy {companion.split('/')[0]} next to it; neither may be renamed.",
        )


def why_not_opened(path: Path, reason: str) -> SlideError:
    """The refusal of a file that OpenSlide does not open.

    Args:
        reason: what OpenSlide says.
    """
    try:
        refuse_missing_companion(path)
    except SlideError as missing:
        return missing
    if path.stat().st_size == 0:
        return SlideError(str(path), "is empty.", "A slide file is needed.", "Fetch the file again.")
    if "unsupported or missing" in reason.lower():  # OpenSlide's words for every file that it does not know
        return SlideError(
            str(path),
            "OpenSlide does not recognise this file as a slide.",
            "A complete and undamaged file in one of OpenSlide's formats is needed.",
            "Check that the download is complete; convert other formats to pyramidal TIFF.",
        )
    if "!=" in reason:  # whole, but with other numbers than OpenSlide reads: bits, channels
        reason = f"not supported: {reason}"
    return undecodable(path, reason)
