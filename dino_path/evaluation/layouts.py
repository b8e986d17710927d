"""Labelled images as users and publishers lay them out on disk, read into one form: `Listing`."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dino_path.errors import DataError
from dino_path.tiles.images import ImageFiles, image_files
from dino_path.tiles.source import TileSource
from dino_path.tiles.tables import TABLE_SUFFIXES, read_table

logger = logging.getLogger(__name__)

GroupKind = Literal["patient", "slide"]
GROUP_COLUMNS: tuple[tuple[str, GroupKind], ...] = (("patient_id", "patient"), ("slide_id", "slide"))
GROUPS_FILE = "groups.csv"
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
UNLABELLED = ("unlabelled", "unlabeled")


@dataclass(frozen=True)
class Listing:
    """What a layout says about its images, before any split is drawn. Lists are as long as the source.

    Attributes:
        name: short name for tables.
        groups: patient or slide of each image (`group_kind`); None: the data name none.
        split: "train", "val" or "test" of each image; None: the data bring none.
        notes: what the user should know, as sentences.
    """

    name: str
    source: TileSource
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    group_kind: GroupKind | None = None
    split: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def read_folder(folder: Path) -> Listing:
    """A folder of class folders; `groups.csv` (path, patient_id or slide_id) in it names the groups.

    Folders called train, val and test that hold class folders are taken as the split. A folder called `unlabelled`
    is no class.

    Raises:
        DataError: no such folder, no classes, an empty class, or `groups.csv` does not fit.
    """
    if not folder.is_dir():
        raise no_such_path(folder)
    names = [path.name for path in subfolders(folder)]
    if names and all(name.lower() in SPLIT_NAMES for name in names):
        return _read_split_folders(folder)
    paths, labels, notes = _read_class_folders(folder)
    listing = Listing(folder.resolve().name, ImageFiles(paths), tuple(labels), notes=tuple(notes))
    return _with_groups(listing, folder, paths)


def read_manifest(file: Path) -> Listing:
    """A CSV or Parquet table: path, label, and optionally patient_id, slide_id, split; other columns are ignored.

    Relative paths are relative to the folder of the table.

    Raises:
        DataError: no such file, a missing column or value, a missing or repeated image, an unknown split.
    """
    if not file.is_file():
        raise no_such_path(file)
    columns = read_table(file, needed=("path", "label"))
    for name in ("path", "label", "split"):
        _refuse_empty(file, columns, name)
    paths = [file.parent / path for path in columns["path"]]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            str(file),
            f"{len(missing)} of {len(paths)} images are missing, first {missing[0]}.",
            "Every path must be a file; relative paths start at the folder of the table.",
            "Correct the paths, or take the rows out.",
        )
    if len(set(paths)) < len(paths):
        repeated = next(path for index, path in enumerate(paths) if path in paths[:index])
        raise DataError(
            str(file), f"{repeated} has several rows.", "Every image needs exactly one row.", "Take the others out."
        )
    listing = Listing(file.stem, ImageFiles(paths), tuple(columns["label"]), split=_read_split(file, columns))
    return _with_group_column(listing, file, columns)


def refuse_unknown_layout(spec: str, layouts: tuple[str, ...]) -> DataError:
    """The refusal of `NAME:PATH` with an unknown name."""
    name = spec.partition(":")[0]
    close = difflib.get_close_matches(name.lower(), layouts, n=1, cutoff=0.5)
    return DataError(
        spec,
        f"no layout is called {name!r}.",
        f"A folder of class folders, a manifest ({' or '.join(TABLE_SUFFIXES)}), or NAME:PATH is needed, "
        f"where NAME is {' or '.join(layouts)}.",
        f"Did you mean '{close[0]}:{spec.partition(':')[2]}'?" if close else "Check the name, or the path.",
    )


# --- class folders ------------------------------------------------------------------------------------------------


def subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_class_folders(folder: Path) -> tuple[list[Path], list[str], list[str]]:
    """Image paths, their labels, and notes."""
    paths: list[Path] = []
    labels: list[str] = []
    notes: list[str] = []
    for subfolder in subfolders(folder):
        images = image_files(subfolder)
        if subfolder.name.lower() in UNLABELLED:
            notes.append(f"{subfolder.name}: {len(images)} images without label left out")
            continue
        if not images:
            raise DataError(
                str(subfolder),
                "this class folder holds no images.",
                "Every folder is a class and needs images (JPEG, PNG, TIFF, BMP, WebP).",
                "Fill it, or take the folder away.",
            )
        paths += images
        labels += [subfolder.name] * len(images)
    if not paths:
        raise DataError(
            str(folder),
            "it holds no class folders.",
            "One folder per class with its images is needed.",
            "Check the path. A tile store is given as `store:PATH`, with evaluation.regions.",
        )
    return paths, labels, notes


def _read_split_folders(folder: Path) -> Listing:
    parts = {SPLIT_NAMES[path.name.lower()]: path for path in subfolders(folder)}
    return join_parts(folder, parts)


def join_parts(folder: Path, parts: dict[str, Path]) -> Listing:
    """One listing of several class-folder trees, one per split."""
    paths: list[Path] = []
    labels: list[str] = []
    split: list[str] = []
    notes: list[str] = []
    for name, part in parts.items():
        part_paths, part_labels, part_notes = _read_class_folders(part)
        paths, labels, notes = paths + part_paths, labels + part_labels, notes + part_notes
        split += [name] * len(part_paths)
    notes.append("split taken from the folders " + ", ".join(part.name for part in parts.values()))
    listing = Listing(folder.resolve().name, ImageFiles(paths), tuple(labels), split=tuple(split), notes=tuple(notes))
    return _with_groups(listing, folder, paths)


def _with_groups(listing: Listing, folder: Path, paths: list[Path]) -> Listing:
    """The listing with the groups of `groups.csv`, where the folder has one."""
    file = folder / GROUPS_FILE
    if not file.is_file():
        return listing
    columns = read_table(file, needed=("path",))
    row_of = {(folder / path).resolve(): row for row, path in enumerate(columns["path"])}
    rows = [row_of.get(path.resolve(), -1) for path in paths]
    if -1 in rows:
        raise DataError(
            str(file),
            f"{rows.count(-1)} of {len(rows)} images have no row, first {paths[rows.index(-1)].relative_to(folder)}.",
            "Every labelled image needs a row with its path (from this folder) and its patient_id or slide_id.",
            "Add the rows, or take the file away to split without groups.",
        )
    for row, label, path in zip(rows, listing.labels, paths, strict=True):
        if "label" in columns and columns["label"][row] != label:
            raise DataError(
                str(file),
                f"{path.relative_to(folder)} has label {columns['label'][row]!r} and lies in the folder {label!r}.",
                "Folder and table must agree.",
                "Correct the table, or move the image.",
            )
    ordered = {name: [values[row] for row in rows] for name, values in columns.items()}
    grouped = _with_group_column(listing, file, ordered)
    if grouped.groups is None:
        raise DataError(
            str(file),
            f"it has the columns {', '.join(columns)}.",
            "A column patient_id or slide_id is needed.",
            "Rename the column, or take the file away to split without groups.",
        )
    return grouped


# --- tables -------------------------------------------------------------------------------------------------------


def _with_group_column(listing: Listing, file: Path, columns: dict[str, list[str]]) -> Listing:
    """The listing grouped by patient, else by slide, else as it is."""
    for name, kind in GROUP_COLUMNS:
        if name in columns:
            _refuse_empty(file, columns, name)
            return replace(listing, groups=tuple(columns[name]), group_kind=kind)
    return listing


def _refuse_empty(file: Path, columns: dict[str, list[str]], name: str) -> None:
    values = columns.get(name, [])
    empty = [row for row, value in enumerate(values) if not value]
    if empty:
        raise DataError(
            str(file),
            f"column {name!r} is empty in {len(empty)} of {len(values)} rows (first: {columns['path'][empty[0]]}).",
            "Every row needs a value, or the column must not be there.",
            "Fill the column, or take it out.",
        )


def _read_split(file: Path, columns: dict[str, list[str]]) -> tuple[str, ...] | None:
    if "split" not in columns:
        return None
    unknown = sorted({value for value in columns["split"] if value.lower() not in SPLIT_NAMES})
    if unknown:
        raise DataError(
            str(file),
            f"unknown split {', '.join(map(repr, unknown[:5]))}.",
            f"The column `split` may say {', '.join(SPLITS)}.",
            "Rename them, or take the column out to have a split drawn.",
        )
    return tuple(SPLIT_NAMES[value.lower()] for value in columns["split"])


def no_such_path(path: Path) -> DataError:
    return DataError(
        str(path),
        "no such file or folder.",
        "A folder of class folders, or a CSV or Parquet table with path and label, is needed.",
        "Check the path.",
    )
