"""Which slides there are: from files, folders and CSV files to one row per slide."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dino_path.errors import SlideError
from dino_path.slides.dicom import dicom_series
from dino_path.slides.kinds import NEEDS_EXTRA, OPENED
from dino_path.slides.masks import find_mask
from dino_path.slides.opening import is_slide_file

logger = logging.getLogger(__name__)

# Other files in a folder are not looked at.
SLIDE_EXTENSIONS = (*OPENED, *NEEDS_EXTRA)
TIFF_EXTENSIONS = (".tif", ".tiff")
LONGEST_ID_BYTES = 150  # file systems allow 255 for a name; temporary names and tile keys add to it
CSV_COLUMNS = "path[,slide_id,patient_id,mpp,split,mask,tiles.<setting>]"


@dataclass(frozen=True)
class SlideRow:
    """One slide to be tiled.

    Attributes:
        slide_id: unique, without dots or slashes: names files, and keys in tar files.
        mpp: microns per level-0 pixel that the user gave; None: the file's own.
        split: such as "train" or "test"; None when the user gave none.
        overrides: what a CSV sets for this slide alone, as text: `mask` (absolute path) and `tiles.<setting>`; None
            when the user said nothing of the kind, {} when the columns are there and empty.
    """

    path: Path
    slide_id: str
    patient_id: str | None = None
    mpp: float | None = None
    split: str | None = None
    overrides: dict[str, str] | None = None


def find_slides(inputs: Sequence[Path], exclude: Sequence[str] = (), *, masks: Path | None = None) -> list[SlideRow]:
    """One row per slide, in the order of their ids.

    Args:
        inputs: slide files, folders (searched with their subfolders), and CSV files with the columns
            `path[,slide_id,patient_id,mpp,split,mask,tiles.<setting>]`, paths relative to the CSV's folder.
        exclude: slide ids or file names to leave out.
        masks: folder of tissue masks; a slide whose row names a mask of its own keeps that.

    A slide without an id of its own is named by its path relative to the common root of all inputs.

    Raises:
        SlideError: a path is missing or is no slide, a CSV is malformed, no slide is left, or two slides have one id.
    """
    found: dict[Path, SlideRow] = {}
    roots: list[Path] = []
    for given in sorted(inputs, key=lambda path: path.suffix.lower() != ".csv"):  # a CSV says more than a folder
        path = Path(os.path.abspath(given))  # noqa: PTH100 (symlinks stay as they are: their names are the user's)
        rows = list(_rows_of(path))
        roots += [path] if path.is_dir() else [row.path.parent for row in rows]
        for row in rows:
            found.setdefault(row.path, row)
    if not inputs:
        raise SlideError("slides", "none were given.", "Files, folders or a CSV are needed.", "Name at least one.")
    root = Path(os.path.commonpath(roots))
    rows = [
        replace(row, slide_id=safe_id(row.slide_id or str(row.path.relative_to(root).with_suffix(""))))
        for row in found.values()
    ]
    refuse_collisions(rows)
    rows = sorted(_without(rows, exclude), key=lambda row: row.slide_id)
    if masks is not None:
        rows = [_with_mask(row, masks) for row in rows]
    _refuse_shared_masks(rows)
    return rows


def holds_slides(path: Path) -> bool:
    """Whether a folder is one of slides, not of images: TIFF files are either, and OpenSlide tells by the first."""
    files = _slides_in(path) if path.is_dir() else []
    tiffs = [file for file in files if file.suffix.lower() in TIFF_EXTENSIONS]
    return len(files) > len(tiffs) or bool(tiffs and is_slide_file(tiffs[0]))


def safe_id(name: str) -> str:
    """`name` with everything but letters, digits, - and _ replaced, and shortened with a hash when too long."""
    name = unicodedata.normalize("NFC", name).replace(os.sep, "__").replace("/", "__")
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
    encoded = safe.encode()
    if len(encoded) > LONGEST_ID_BYTES:
        start = encoded[: LONGEST_ID_BYTES - 17].decode(errors="ignore")
        safe = f"{start}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return safe


def _with_mask(row: SlideRow, masks: Path) -> SlideRow:
    """The row with its mask from the folder; where it has none, with the one that would be needed (the slide fails)."""
    if not masks.is_dir():
        raise SlideError(str(masks), "no such folder.", "A folder of tissue masks is needed.", "Check slides.masks.")
    if row.overrides and row.overrides.get("mask"):
        return row
    mask = find_mask(masks, row.slide_id, row.path) or masks / f"{row.slide_id}.png"
    return replace(row, overrides={**(row.overrides or {}), "mask": os.path.abspath(mask)})  # noqa: PTH100


def _refuse_shared_masks(rows: Sequence[SlideRow]) -> None:
    """File names repeat in subfolders: a mask that is found by name must not serve two slides."""
    owners: dict[str, SlideRow] = {}
    for row in rows:
        mask = (row.overrides or {}).get("mask")
        if mask and owners.setdefault(mask, row) is not row:
            raise SlideError(
                mask,
                f"is the mask of two slides, {owners[mask].slide_id} and {row.slide_id}.",
                "Every slide needs a mask of its own.",
                "Name masks by slide id, or give them in a CSV (columns path,mask).",
            )


def _rows_of(path: Path) -> Iterator[SlideRow]:
    """Rows of one input; `slide_id` is empty where the user gave none."""
    if path.is_dir():
        files = _slides_in(path)
        if not files:
            raise SlideError(
                str(path),
                "this folder holds no slides.",
                f"Files that end in {', '.join(SLIDE_EXTENSIONS)} are needed, here or in subfolders.",
                "Check the path; convert other formats to pyramidal TIFF.",
            )
        yield from (SlideRow(file, "") for file in files)
    elif not path.exists():
        raise SlideError(
            str(path),
            "no such file or folder.",
            f"A slide, a folder of slides, or a CSV with {CSV_COLUMNS} is needed.",
            "Check the path, and that its disk is mounted.",
        )
    elif path.suffix.lower() == ".csv":
        yield from _rows_of_csv(path)
    elif path.suffix.lower() in SLIDE_EXTENSIONS:
        yield SlideRow(path, "")
    else:
        raise SlideError(
            str(path),
            f"{path.suffix or 'a file without extension'} is no slide format.",
            f"A file that ends in {', '.join(SLIDE_EXTENSIONS)}, a folder, or a .csv is needed.",
            "Convert other formats to pyramidal TIFF; folders of images need no tiling.",
        )


def _slides_in(folder: Path) -> list[Path]:
    """Slide files below `folder`, sorted; links are followed (once), hidden files are not looked at."""
    files: list[Path] = []
    seen: set[str] = set()
    for here, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        slides = [Path(here, name) for name in sorted(names) if _is_slide_name(name)]
        files += _one_per_dicom_series(slides)
    return sorted(files)


def _is_slide_name(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SLIDE_EXTENSIONS


def _one_per_dicom_series(files: Sequence[Path]) -> Iterator[Path]:
    """Drop further files of a DICOM series: a slide is one file per level there, and OpenSlide opens any of them."""
    series_seen: set[str] = set()
    for file in files:
        series = dicom_series(file) if file.suffix.lower() == ".dcm" else None
        if series is None or series not in series_seen:
            yield file
        if series is not None:
            series_seen.add(series)


def _rows_of_csv(path: Path) -> Iterator[SlideRow]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = list(csv.reader(stream, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _bad_csv(path, f"cannot be read ({' '.join(str(error).split())}).") from None
    if not table:
        raise _bad_csv(path, "is empty.")
    header = [column.strip().lower() for column in table[0]]
    if "path" not in header:
        raise _bad_csv(path, f"has no column `path` (its first line: {','.join(table[0])}).")
    if len(set(header)) < len(header):
        raise _bad_csv(path, f"names a column twice ({','.join(table[0])}).")
    seen: dict[Path, int] = {}
    for line, cells in enumerate(table[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise _bad_csv(path, f"line {line} has {len(cells)} cells, its header {len(header)}.")
        row = _row_of_line(path, line, dict(zip(header, (cell.strip() for cell in cells), strict=True)))
        if row.path in seen:
            raise _bad_csv(path, f"lines {seen[row.path]} and {line} name the same slide ({row.path}).")
        seen[row.path] = line
        yield row
    if not seen:
        raise _bad_csv(path, "lists no slides.")


def _row_of_line(csv_path: Path, line: int, cells: dict[str, str]) -> SlideRow:
    if not cells["path"]:
        raise _bad_csv(csv_path, f"line {line} has no path.")
    slide = Path(os.path.abspath(csv_path.parent / cells["path"]))  # noqa: PTH100
    if not slide.is_file():
        raise _bad_csv(csv_path, f"line {line} names {slide}, which is no file.")
    if slide.suffix.lower() not in SLIDE_EXTENSIONS:
        raise _bad_csv(csv_path, f"line {line} names {slide}, which has no slide extension.")
    mpp = None
    if cells.get("mpp"):
        try:
            mpp = float(cells["mpp"])
        except ValueError:
            raise _bad_csv(csv_path, f"line {line}: mpp {cells['mpp']!r} is no number.") from None
    own = [name for name in cells if name == "mask" or name.startswith("tiles.")]
    overrides = {name: cells[name] for name in own if cells[name]}
    if "mask" in overrides:
        overrides["mask"] = os.path.abspath(csv_path.parent / overrides["mask"])  # noqa: PTH100
    return SlideRow(
        slide,
        cells.get("slide_id", ""),
        cells.get("patient_id") or None,
        mpp,
        cells.get("split") or None,
        overrides if own else None,
    )


def _bad_csv(path: Path, found: str) -> SlideError:
    return SlideError(
        str(path),
        found,
        f"A CSV with a header line and the columns {CSV_COLUMNS} is needed; paths are relative to the CSV.",
        "Mend the CSV.",
    )


def refuse_collisions(rows: Sequence[SlideRow]) -> None:
    by_id: dict[str, Path] = {}
    for row in rows:
        other = by_id.setdefault(row.slide_id, row.path)
        if other != row.path:
            raise SlideError(
                str(row.path),
                f"its slide id {row.slide_id!r} is also that of {other}.",
                "Every slide needs an id of its own (dots and slashes count as _).",
                "Rename one file, or give ids in a CSV (columns path,slide_id).",
            )


def _without(rows: Sequence[SlideRow], exclude: Sequence[str]) -> list[SlideRow]:
    left = [row for row in rows if not {row.slide_id, row.path.name}.intersection(exclude)]
    for name in exclude:
        if not any(name in (row.slide_id, row.path.name) for row in rows):
            logger.warning("slides.exclude names %s, which is not among the %d slides", name, len(rows))
    if not left:
        raise SlideError(
            "slides",
            f"slides.exclude leaves none of {len(rows)}.",
            "At least one is needed.",
            "Shorten slides.exclude.",
        )
    return left
