"""Reads users' and publishers' layouts of labelled images into one form: `Listing`."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dino_path.errors import DataError
from dino_path.records.tables import LABELLED
from dino_path.table_file import Table, Vocabulary, path_of, why_no_file
from dino_path.tiles.images import ImageFiles, image_files
from dino_path.tiles.source import TileSource
from dino_path.tiles.tables import TABLE_SUFFIXES, read_known_table
from dino_path.walk import folders_in, name_some

logger = logging.getLogger(__name__)

GroupKind = Literal["patient", "slide"]
GROUP_COLUMNS: tuple[tuple[str, GroupKind], ...] = (("patient_id", "patient"), ("slide_id", "slide"))
GROUPS_FILE = "groups.csv"
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
UNLABELLED = ("unlabelled", "unlabeled")
# `test_external`, `Train-2`: a part of the data by its name, and never a class. `testis` is none of them.
PART_NAME = re.compile(r"(train(ing)?|val(id|idation)?|test(ing)?|hold_?out|held_?out)([ _.\-\d].*)?", re.IGNORECASE)
MANIFEST = Vocabulary(
    ("path", "label", "patient_id", "slide_id", "centre", "scanner", "split"), passed_over=("content",)
)
GROUPS_TABLE = Vocabulary(("path", "label", "patient_id", "slide_id", "centre", "scanner"), passed_over=("content",))


@dataclass(frozen=True)
class Listing:
    """The images of a layout with their facts, before a split is drawn. Lists are as long as the source.

    Attributes:
        name: short name for tables.
        groups: patient or slide of each image (`group_kind`); None: the data name none.
        split: "train", "val" or "test" of each image; None: the data bring none.
        centres, scanners: who made the slide of each image, and with which scanner; None: the data do not say.
        notes: what the user should know, as sentences.
    """

    name: str
    source: TileSource
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    group_kind: GroupKind | None = None
    split: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    centres: tuple[str, ...] | None = None
    scanners: tuple[str, ...] | None = None


def read_folder(folder: Path) -> Listing:
    """A folder of class folders; `groups.csv` (path, patient_id or slide_id) in it names the groups, and centres.

    Folders called train, val and test that hold class folders are taken as the split. A folder called `unlabelled`
    is no class. No class is called train, val or test, nor `test_external` and the like.

    Raises:
        DataError: no such folder, no classes, an empty class, `groups.csv` does not fit, or parts of the data lie
            beside classes or beside other parts.
        TileStoreError: a folder or a link cannot be read.
    """
    if not folder.is_dir():
        raise no_such_path(folder)
    names = [path.name for path in subfolders(folder) if path.name.lower() not in UNLABELLED]
    if any(PART_NAME.fullmatch(name) for name in names):
        _refuse_mixed_parts(folder, names)
        return _read_split_folders(folder)
    paths, labels, notes = _read_class_folders(folder)
    listing = Listing(folder.resolve().name, ImageFiles(paths), tuple(labels), notes=tuple(notes))
    return _with_groups(listing, folder, paths)


def read_manifest(file: Path) -> Listing:
    """A CSV, TSV or Parquet table: path, label, and optionally patient_id, slide_id, centre, scanner, split.

    Other columns are named in a note.

    Relative paths are relative to the folder of the table. Rows without a label are left out and counted.

    Raises:
        DataError: no such file, a missing column or value, a missing or repeated image, an unknown split, or a column
            that may mean one of these.
    """
    if not file.is_file():
        raise no_such_path(file)
    table = read_known_table(file, MANIFEST, LABELLED, needed=("path", "label"))
    columns, notes = _labelled_rows(table)
    return listing_of(file, columns, (*table.notes, *notes))


def listing_of(file: Path, columns: Mapping[str, Sequence[str]], notes: tuple[str, ...]) -> Listing:
    """What the columns path, label[, patient_id][, slide_id][, split] of a table list.

    Raises:
        DataError: see `read_manifest`.
    """
    for name in ("path", "split"):
        _refuse_empty(file, columns, name)
    paths = files_of(file, columns["path"], "images")
    counts = Counter(os.path.abspath(path) for path in paths)  # noqa: PTH100 (`a/../b.png` is `b.png`)
    repeated = [path for path, count in counts.items() if count > 1]
    if repeated:
        raise DataError(
            str(file),
            f"{len(repeated)} images have several rows: {name_some(repeated)}.",
            "Every image needs exactly one row.",
            "Remove the others.",
        )
    listing = Listing(
        file.stem, ImageFiles(paths), tuple(columns["label"]), split=_read_split(file, columns), notes=notes
    )
    return _with_group_column(_with_makers(listing, file, columns), file, columns)


def files_of(file: Path, cells: Sequence[str], what: str) -> list[Path]:
    """The paths in a column of a table.

    Args:
        what: is there, for messages.

    Raises:
        DataError: some are no files.
    """
    paths = [path_of(cell, file.parent) for cell in cells]
    missing = [
        f"{path}{why_no_file(cell)}"
        for path, cell in zip(paths, cells, strict=True)
        if not os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises where we may not look)
    ]
    if missing:
        raise DataError(
            str(file),
            f"{len(missing)} of {len(paths)} {what} are missing, first {missing[0]}.",
            "Every path must be a file; relative paths start at the folder of the table.",
            "Correct the paths, or remove the rows.",
        )
    return paths


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
    """The folders in a folder, sorted; hidden ones are left out.

    Raises:
        DataError: it may not be read, or a link in it leads nowhere.
    """
    try:
        found = folders_in(folder)
    except OSError as error:
        raise _unreadable(folder, f"cannot be read ({(error.strerror or 'permission denied').lower()}).") from None
    if found.unreadable:
        raise _unreadable(folder, f"{len(found.unreadable)} link(s) in it lead nowhere: {name_some(found.unreadable)}.")
    return list(found.files)


def _unreadable(folder: Path, found: str) -> DataError:
    return DataError(
        str(folder),
        found,
        "All class folders must be readable, or the result would silently rest on a part of the data.",
        "Ask for permission, mount the disk, or remove the links.",
    )


def _refuse_mixed_parts(folder: Path, names: Sequence[str]) -> None:
    """Refuse folders of which some, by their names, are parts of the data, unless they are one train, val and test."""
    parts = Counter(SPLIT_NAMES.get(name.lower()) for name in names)
    named = [name for name in names if PART_NAME.fullmatch(name)]
    others = [name for name in names if name not in named]
    if any(name.lower() not in SPLIT_NAMES for name in names):
        raise DataError(
            str(folder),
            f"{', '.join(named)}: named like parts of the data, not like classes"
            + (f"; beside {', '.join(others)}." if others else "."),
            f"Either folders {', '.join(SPLITS)} with class folders inside (and `unlabelled`), or only class folders"
            f" are needed.",
            "Move other folders away. To evaluate on a further test set, make a new folder that links to it as"
            " `test` and to the same `train`. Rename a class with such a name.",
        )
    doubled = [name for name in names if parts[SPLIT_NAMES[name.lower()]] > 1]
    if doubled:
        raise DataError(
            str(folder),
            f"{' and '.join(doubled)} mean the same part of the data.",
            f"One folder each of {', '.join(SPLITS)} is needed.",
            "Put their images together, or move one away.",
        )


def _read_class_folders(folder: Path) -> tuple[list[Path], list[str], list[str]]:
    """Image paths, their labels, and notes."""
    paths: list[Path] = []
    labels: list[str] = []
    notes: list[str] = []
    for subfolder in subfolders(folder):
        if subfolder.name.lower() in UNLABELLED:
            notes.append(_note_unlabelled(subfolder))
            continue
        images = image_files(subfolder)
        if not images:
            raise DataError(
                str(subfolder),
                "this class folder holds no images.",
                "Every folder is a class and needs images (JPEG, PNG, TIFF, BMP, WebP).",
                "Fill it, or remove the folder.",
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


def _note_unlabelled(folder: Path) -> str:
    return f"{folder.name}: {len(image_files(folder)):,} images without label left out"


def _read_split_folders(folder: Path) -> Listing:
    parts = {SPLIT_NAMES[path.name.lower()]: path for path in subfolders(folder) if path.name.lower() in SPLIT_NAMES}
    listing = join_parts(folder, parts)
    notes = [_note_unlabelled(path) for path in subfolders(folder) if path.name.lower() in UNLABELLED]
    return replace(listing, notes=(*listing.notes, *notes))


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
    table = read_known_table(file, GROUPS_TABLE, LABELLED, needed=("path",))
    columns = table.columns
    row_of = {path_of(path, folder).resolve(): row for row, path in enumerate(columns["path"])}
    rows = [row_of.get(path.resolve(), -1) for path in paths]
    if -1 in rows:
        raise DataError(
            str(file),
            f"{rows.count(-1)} of {len(rows)} images have no row, first {paths[rows.index(-1)].relative_to(folder)}.",
            "Every labelled image needs a row with its path (from this folder) and its patient_id or slide_id.",
            "Add the rows, or remove the file to split without groups.",
        )
    for row, label, path in zip(rows, listing.labels, paths, strict=True):
        if "label" in columns and columns["label"][row] not in ("", label):
            raise DataError(
                str(file),
                f"{path.relative_to(folder)} has label {columns['label'][row]!r} and lies in the folder {label!r}.",
                "Folder and table must agree.",
                "Correct the table, or move the image.",
            )
    ordered = {name: [values[row] for row in rows] for name, values in columns.items()}
    listing = _with_makers(replace(listing, notes=(*listing.notes, *table.notes)), file, ordered)
    grouped = _with_group_column(listing, file, ordered)
    if grouped.groups is None:
        raise DataError(
            str(file),
            f"it has the columns {', '.join(columns)}, and names no patient or slide.",
            "A column patient_id or slide_id with values is needed.",
            "Fill or rename the column, or take the file away to split without groups.",
        )
    return grouped


# --- tables -------------------------------------------------------------------------------------------------------


def _labelled_rows(table: Table) -> tuple[Mapping[str, Sequence[str]], list[str]]:
    """The columns of the rows that have a label, without columns that are empty in every row; and notes on both."""
    labels = table.columns["label"]
    kept = [row for row, label in enumerate(labels) if label]
    if not kept:
        raise DataError(
            str(table.path),
            f"none of its {len(labels)} rows has a label.",
            "Two classes are needed (NA, NaN, null and None are missing values).",
            "Fill the column `label`.",
        )
    notes = []
    if num_without := len(labels) - len(kept):
        notes.append(f"{num_without:,} rows without a label (empty, NA, NaN, null, None, ...) left out")
    columns: dict[str, Sequence[str]] = {}
    for name, cells in table.columns.items():
        values = [cells[row] for row in kept] if num_without else cells
        if any(values) or name == "path":
            columns[name] = values
        else:
            notes.append(f"column `{name}` is empty in every row: treated as unknown")
    return columns, notes


def _with_group_column(listing: Listing, file: Path, columns: Mapping[str, Sequence[str]]) -> Listing:
    """The listing grouped by patient, else by slide, else unchanged."""
    for name, kind in GROUP_COLUMNS:
        if any(columns.get(name, ())):
            _refuse_empty(file, columns, name)
            return replace(listing, groups=tuple(columns[name]), group_kind=kind)
    return listing


def _with_makers(listing: Listing, file: Path, columns: Mapping[str, Sequence[str]]) -> Listing:
    """The listing with its centres and scanners, where the columns have them."""
    found: dict[str, tuple[str, ...] | None] = {}
    for name in ("centre", "scanner"):
        is_known = any(columns.get(name, ()))
        if is_known:
            _refuse_empty(file, columns, name)
        found[name] = tuple(columns[name]) if is_known else None
    return replace(listing, centres=found["centre"], scanners=found["scanner"])


def _refuse_empty(file: Path, columns: Mapping[str, Sequence[str]], name: str) -> None:
    """Refuse a column that is empty or NA in some rows: a patient who is not known may be one of the other side."""
    values = columns.get(name, ())
    empty = [row for row, value in enumerate(values) if not value]
    if empty:
        raise DataError(
            str(file),
            f"{name!r} is empty (or NA) in {len(empty)} of {len(values)} rows, first {columns['path'][empty[0]]}.",
            "Every row needs a value, or the column must be removed.",
            "Fill the column, remove those rows, or remove the column.",
        )


def _read_split(file: Path, columns: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    if "split" not in columns:
        return None
    unknown = sorted({value for value in columns["split"] if value.lower() not in SPLIT_NAMES})
    if unknown:
        raise DataError(
            str(file),
            f"unknown split {', '.join(map(repr, unknown[:5]))}.",
            f"The column `split` must contain {', '.join(SPLITS)}.",
            "Rename them, or remove the column to have a split drawn.",
        )
    return tuple(SPLIT_NAMES[value.lower()] for value in columns["split"])


def no_such_path(path: Path) -> DataError:
    return DataError(
        str(path),
        "no such file or folder.",
        "A folder of class folders, or a CSV or Parquet table with path and label, is needed.",
        "Check the path.",
    )
