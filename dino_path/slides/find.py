"""Which slides there are: from files, folders and CSV files to one row per slide."""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dino_path.errors import SlideError
from dino_path.slides.duplicates import same_slides
from dino_path.slides.masks import find_mask
from dino_path.slides.readers.dicom import DicomSeries, may_be_dicom
from dino_path.slides.readers.kinds import NEEDS_EXTRA, OPENED
from dino_path.slides.readers.opening import is_slide_file
from dino_path.slides.slide_table import CSV_COLUMNS, bad_slide_table, read_slide_table
from dino_path.table_file import CSV_SUFFIXES
from dino_path.walk import Found, Unreadable, files_below, name_some, without_names

logger = logging.getLogger(__name__)

SLIDE_EXTENSIONS = (*OPENED, *NEEDS_EXTRA)  # DICOM also without an extension
TIFF_EXTENSIONS = (".tif", ".tiff")
# Slides that nobody here reads: in a folder they are named and counted, not passed over in silence.
UNREAD_EXTENSIONS = (
    ".isyntax", ".i2syntax", ".kfb", ".sdpc", ".tmap", ".mds", ".mdsx", ".lif", ".lsm",
    ".nd2", ".oir", ".afi", ".jp2",
)  # fmt: skip
LONGEST_ID_BYTES = 150  # file systems allow 255 for a name; temporary names and tile keys add to it


@dataclass(frozen=True)
class SlideRow:
    """One slide to be tiled.

    Attributes:
        slide_id: unique, without dots or slashes: names files, and keys in tar files.
        mpp: microns per level-0 pixel that the user gave; None: the file's own.
        split: such as "train" or "test"; None when the user gave none.
        overrides: what a CSV sets for this slide alone, as text: `mask` (absolute path) and `tiles.<setting>`; None
            when the user said nothing of the kind, {} when the columns are there and empty.
        shown_path: what records, files and messages show in place of the path, where the slide has a pseudonym (which
            is its id then): a file name. Empty: the path is shown.
    """

    path: Path
    slide_id: str
    patient_id: str | None = None
    mpp: float | None = None
    split: str | None = None
    overrides: dict[str, str] | None = None
    centre: str | None = None
    scanner: str | None = None
    shown_path: str = ""

    @property
    def recorded_path(self) -> str:
        """The path as records hold it."""
        return self.shown_path or str(self.path)

    def recorded_overrides(self, overrides: Mapping[str, str]) -> dict[str, str]:
        """What is set for this slide alone, as records hold it: a mask is named by the pseudonym where there is one."""
        mask = overrides.get("mask")
        if not (mask and self.shown_path):
            return dict(overrides)
        return {**overrides, "mask": f"{self.slide_id}{Path(mask).suffix.lower()}"}


@dataclass(frozen=True)
class SlideSearch:
    """The result of a search.

    Attributes:
        rows: one per slide, in the order of their ids. A link to a slide that is not there has a row too: it fails by
            its name when it is tiled, and is tried again by the next call.
        unreadable: folders, and links to folders, that could not be looked at.
    """

    rows: list[SlideRow]
    unreadable: tuple[Unreadable, ...]


def find_slides(inputs: Sequence[Path], exclude: Sequence[str] = (), *, masks: Path | None = None) -> list[SlideRow]:
    """The rows of `search_slides`, for callers who need all slides.

    Raises:
        SlideError: as there; or a folder could not be looked at.
    """
    search = search_slides(inputs, exclude, masks=masks)
    if search.unreadable:
        raise unreadable_folders(search.unreadable)
    return search.rows


def search_slides(inputs: Sequence[Path], exclude: Sequence[str] = (), *, masks: Path | None = None) -> SlideSearch:
    """One row per slide, whichever way it was given; skipped files are logged.

    Args:
        inputs: slide files, folders (searched with their subfolders), and CSV files with the columns
            `path[,slide_id,patient_id,centre,scanner,mpp,split,mask,tiles.<setting>]`, paths relative to the CSV's
            folder.
        exclude: slide ids or file names to leave out; of folders that cannot be read, their names.
        masks: folder of tissue masks; a slide whose row names a mask of its own keeps that.

    A slide without an id of its own is named by its path relative to the common root of all inputs. A DICOM series is
    one slide, named by its largest level; links and copies of a slide count once.

    Raises:
        SlideError: a path is missing or is no slide, a CSV is malformed, no slide is left, or two slides have one id.
    """
    if not inputs:
        raise SlideError("slides", "none were given.", "Files, folders or a CSV are needed.", "Name at least one.")
    found: dict[Path, SlideRow] = {}
    roots: list[Path] = []
    unreadable: list[Unreadable] = []
    series = DicomSeries()
    for given in sorted(
        inputs, key=lambda path: path.suffix.lower() not in CSV_SUFFIXES
    ):  # these say more than a folder
        path = Path(os.path.abspath(given))  # noqa: PTH100 (symlinks stay as they are: their names are the user's)
        if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises where we may not look)
            walk = _walk_slides(path)
            unreadable += walk.unreadable
            rows = _one_per_series([SlideRow(file, "") for file in walk.files], series)
            roots.append(path)
        elif path.suffix.lower() in CSV_SUFFIXES and os.path.isfile(path):  # noqa: PTH113
            rows = _rows_of_table(path, series)
            roots += [row.path.parent for row in rows]
        else:
            rows = _one_per_series([_row_of_file(path)], series)
            roots.append(path.parent)
        for row in rows:
            found.setdefault(row.path, row)
    unreadable = list(without_names(unreadable, exclude))
    if not found:
        raise unreadable_folders(unreadable) if unreadable else _no_slides(inputs)
    root = Path(os.path.commonpath(roots))
    rows = [
        replace(row, slide_id=safe_id(row.slide_id or _name_of(row.path.relative_to(root)))) for row in found.values()
    ]
    rows = _count_once(_without(rows, exclude))
    refuse_collisions(rows)
    rows.sort(key=lambda row: row.slide_id)
    if masks is not None:
        _refuse_unreadable_masks(masks)
        rows = [_with_mask(row, masks) for row in rows]
    _refuse_shared_masks(rows)
    return SlideSearch(rows, tuple(unreadable))


def unreadable_folders(unreadable: Sequence[Unreadable]) -> SlideError:
    return SlideError(
        "slides",
        f"{len(unreadable)} folder(s) or link(s) cannot be read: {name_some(unreadable)}.",
        "All given paths must be readable, or slides would be missing silently.",
        "Ask for permission, mount the disk, remove the link, or name the folder under slides.exclude.",
    )


def holds_slides(path: Path) -> bool:
    """Whether a folder holds slides, not images. TIFF files can be either; OpenSlide decides by the first."""
    if not path.is_dir():
        return False
    walk = files_below(path, _is_slide_name)
    files = [*walk.files, *(one.path for one in walk.unreadable if _is_slide_name(one.path.name))]
    tiffs = [file for file in files if file.suffix.lower() in TIFF_EXTENSIONS]
    if len(files) > len(tiffs) or (tiffs and is_slide_file(tiffs[0])):
        return True
    return not files and any(map(may_be_dicom, files_below(path, _has_no_extension).files))


def safe_id(name: str) -> str:
    """`name` with everything but letters, digits, - and _ replaced, and shortened with a hash when too long."""
    name = unicodedata.normalize("NFC", name).replace(os.sep, "__").replace("/", "__")
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
    encoded = safe.encode()
    if len(encoded) > LONGEST_ID_BYTES:
        start = encoded[: LONGEST_ID_BYTES - 17].decode(errors="ignore")
        safe = f"{start}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return safe


def is_id_of_path(slide_id: str, path: str) -> bool:
    """Whether `search_slides` could have made this id for a slide at this path without a given id, for any root."""
    parts = Path(path).parts
    ends = (Path(*parts[-number:]) for number in range(1, len(parts) + 1))
    return any(safe_id(_name_of(end)) == slide_id for end in ends)


def _refuse_unreadable_masks(masks: Path) -> None:
    if not masks.is_dir():
        raise SlideError(str(masks), "no such folder.", "A folder of tissue masks is needed.", "Check slides.masks.")
    if not os.access(masks, os.R_OK | os.X_OK):
        raise SlideError(
            str(masks), "cannot be read (permission denied).", "A folder of masks is needed.", "Ask for permission."
        )


def _with_mask(row: SlideRow, masks: Path) -> SlideRow:
    """The row with its mask from the folder; if there is none, with the missing name, so that the slide fails."""
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
                "Every slide needs its own mask.",
                "Name masks by slide id, or give them in a CSV (columns path,mask).",
            )


def _row_of_file(path: Path) -> SlideRow:
    is_dead_link = path.is_symlink() and is_slide_path(path)  # it fails by its name when it is tiled
    if not os.path.exists(path) and not is_dead_link:  # noqa: PTH110
        raise SlideError(
            str(path),
            "no such file or folder.",
            f"A slide, a folder of slides, or a CSV with {CSV_COLUMNS} is needed.",
            "Check the path, and that its disk is mounted.",
        )
    if not is_slide_path(path):
        raise SlideError(
            str(path),
            f"{path.suffix or 'a file without extension'} is not a slide format.",
            f"A file that ends in {', '.join(SLIDE_EXTENSIONS)}, a folder, or a .csv is needed.",
            "Convert other formats to pyramidal TIFF; images in folders need no tiling.",
        )
    return SlideRow(path, "")


def is_slide_path(path: Path) -> bool:
    """Whether a file is a slide by its name, or is DICOM without an extension."""
    return path.suffix.lower() in SLIDE_EXTENSIONS or (_has_no_extension(path.name) and may_be_dicom(path))


def _walk_slides(folder: Path) -> Found:
    """The slides below `folder`, including links to missing slides; skipped files are logged."""
    walk = files_below(folder, lambda name: _is_slide_name(name) or _is_unread_name(name) or _has_no_extension(name))
    lost = [one.path for one in walk.unreadable if _is_slide_name(one.path.name)]
    files = [file for file in walk.files if is_slide_path(file)]
    unread = Counter(file.suffix.lower() for file in walk.files if _is_unread_name(file.name))
    passed_over = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(unread.items()))
    unreadable = tuple(one for one in walk.unreadable if one.path not in lost and not _is_unread_name(one.path.name))
    if not files and not lost and not unreadable:
        raise SlideError(
            str(folder),
            "this folder holds no slides" + (f" in a supported format (skipped: {passed_over})." if unread else "."),
            f"Files that end in {', '.join(SLIDE_EXTENSIONS)} are needed, here or in subfolders.",
            "Check the path; convert other formats to pyramidal TIFF.",
        )
    if unread:
        logger.warning("%s: skipped, unsupported formats: %s", folder, passed_over)
    return Found(tuple(sorted([*files, *lost])), unreadable)


def _is_slide_name(name: str) -> bool:
    return Path(name).suffix.lower() in SLIDE_EXTENSIONS


def _is_unread_name(name: str) -> bool:
    return Path(name).suffix.lower() in UNREAD_EXTENSIONS


def _has_no_extension(name: str) -> bool:
    """Also true for `1.2.840.113`, as archives name DICOM files: numbers are not an extension."""
    suffix = Path(name).suffix[1:]
    return not suffix or suffix.isdecimal()


def _name_of(path: Path) -> str:
    return str(path if _has_no_extension(path.name) else path.with_suffix(""))


def _one_per_series(rows: Iterable[SlideRow], series: DicomSeries) -> list[SlideRow]:
    """Rows with each DICOM series only once, by its largest level; DICOM objects that are not slides are logged."""
    found: dict[Path, SlideRow] = {}
    others: list[str] = []
    for row in rows:
        file, other = series.slide_of(row.path) if may_be_dicom(row.path) else (row.path, None)
        if other is not None:
            others.append(f"{row.path} ({other})")
        else:
            found.setdefault(file, replace(row, path=file))
    if others:
        logger.warning("skipped, DICOM objects that are not slides: %s", name_some(others))
    return list(found.values())


def _rows_of_table(path: Path, series: DicomSeries) -> list[SlideRow]:
    """Rows of a CSV; files of one DICOM series may each have a row, if all say the same."""
    rows: list[SlideRow] = []
    said: dict[Path, tuple[int, Path, SlideRow]] = {}
    for one in read_slide_table(path):
        if not is_slide_path(one.path):
            raise bad_slide_table(path, f"line {one.line} names {one.path}, which has no slide extension.")
        row = SlideRow(
            one.path, one.slide_id, one.patient_id, one.mpp, one.split, one.overrides, one.centre, one.scanner
        )
        slide = series.slide_of(one.path)[0] if may_be_dicom(one.path) else one.path
        line, file, before = said.setdefault(slide, (one.line, one.path, row))
        if line != one.line and (file == one.path or before != replace(row, path=file)):
            raise bad_slide_table(path, f"lines {line} and {one.line} name the same slide ({slide}).")
        rows.append(row)
    return _one_per_series(rows, series)


def _count_once(rows: Sequence[SlideRow]) -> list[SlideRow]:
    """Rows without links to and copies of other slides, which are logged. Rows with different masks are kept.

    Raises:
        SlideError: a link or copy is said to be of another patient, split or mpp.
    """
    rows = sorted(rows, key=lambda row: (row.overrides is None, row.path.is_symlink(), row.slide_id))
    of_mask: dict[str, dict[Path, SlideRow]] = {}
    for row in rows:
        of_mask.setdefault((row.overrides or {}).get("mask", ""), {})[row.path] = row
    kept: list[SlideRow] = []
    for group in of_mask.values():
        same = same_slides(list(group))
        kept += [row for path, row in group.items() if path not in same]
        for path, (first, how) in same.items():
            _refuse_contradiction(group[first], group[path], how)
            logger.warning("%s is %s of %s: the same slide, which counts once (as %s)",
                           path, how, first, group[first].slide_id)  # fmt: skip
    return kept


def _refuse_contradiction(first: SlideRow, other: SlideRow, how: str) -> None:
    for name in ("patient_id", "split", "mpp", "centre", "scanner"):
        one, another = getattr(first, name), getattr(other, name)
        if None not in (one, another) and one != another:
            raise SlideError(
                str(other.path),
                f"is {how} of {first.path}, with another {name} ({another} and {one}).",
                "One slide belongs to one patient, one split, one centre and one scanner.",
                "Remove the wrong row; or give each row its own mask, if the slide holds several tissues.",
            )


def _no_slides(inputs: Sequence[Path]) -> SlideError:
    return SlideError(
        str(inputs[0]) if len(inputs) == 1 else f"{len(inputs)} inputs",
        "none of the given files is a slide.",
        "DICOM files of whole slides are needed, not segmentations, annotations, labels or overviews.",
        "Give the files of the slides.",
    )


def refuse_collisions(rows: Sequence[SlideRow]) -> None:
    by_id: dict[str, Path] = {}
    for row in rows:
        other = by_id.setdefault(row.slide_id, row.path)
        if other != row.path:
            raise SlideError(
                str(row.path),
                f"its slide id {row.slide_id!r} is also that of {other}.",
                "Every slide needs a unique id (dots and slashes count as _).",
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
