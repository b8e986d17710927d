"""Tables with ids of slides and patients -> the same tables with their pseudonyms, and back."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_path.atomic import atomic_write
from dino_path.errors import DataError
from dino_path.records.pseudonyms import ONLY_OWNER, Entry
from dino_path.table_file import plain_cells, read_csv_table

SLIDE_COLUMNS = (
    "slide_id", "slide", "slide_name", "wsi", "path", "file", "filename", "file_name", "filepath", "file_path",
    "slide_path", "image", "image_path",
)  # fmt: skip
PATIENT_COLUMNS = ("patient_id", "patient", "patientid", "case_id", "subject_id", "participant_id")
SHORTEST_NAME = 4  # a shorter one, such as a patient called 1, says nothing where it stands in other columns
MOST_NAMED = 5  # lines, by a refusal


@dataclass(frozen=True)
class Translation:
    """What became of a table.

    Attributes:
        translated: names of the columns that held slides or patients.
        copied: names of the others, which are as they were.
    """

    num_rows: int
    translated: tuple[str, ...]
    copied: tuple[str, ...]


def to_pseudonyms(table: Path, entries: Sequence[Entry], out: Path, *, drop: Collection[str] = ()) -> Translation:
    """Write a table with the pseudonyms of its slides and patients.

    Slides are told by their id, path or file's name, in the columns that usually hold those; so are patients.

    Args:
        drop: columns to leave out.

    Raises:
        DataError: no such column; a slide or patient that the mapping does not know; or another column names some.
    """
    given = read_csv_table(table)
    columns, lines = _without(table, given.columns, drop), given.lines
    known = {name: _names_of(name, entries) for name in columns}
    translated = {name: names for name, names in known.items() if names is not None}
    if not translated:
        raise DataError(
            str(table),
            f"has no column of slides or patients (it has {', '.join(columns)}).",
            f"One of {', '.join((*SLIDE_COLUMNS[:4], *PATIENT_COLUMNS[:2]))} is needed.",
            "Rename the column.",
        )
    for name, names in translated.items():
        _refuse_unknown(table, name, columns[name], names, lines)
    copied = {name: cells for name, cells in columns.items() if name not in translated}
    _refuse_names(table, copied, entries)
    cells = [[translated[name].get(cell, "") if name in translated else cell for cell in columns[name]]
             for name in columns]  # fmt: skip
    _write(out, list(columns), cells, mode=None)
    return Translation(len(lines), tuple(translated), tuple(copied))


def from_pseudonyms(table: Path, entries: Sequence[Entry], out: Path, *, drop: Collection[str] = ()) -> Translation:
    """Write a table with the ids that pseudonyms stand for, wherever they stand; its owner alone may read it.

    Args:
        drop: columns to leave out.

    Raises:
        DataError: it holds no pseudonym of the mapping.
    """
    columns = _without(table, read_csv_table(table).columns, drop)
    ids = {entry.pseudonym: entry.slide_id for entry in entries}
    ids |= {entry.patient_pseudonym: entry.patient_id for entry in entries if entry.patient_id}
    pattern = re.compile(r"[sp](?:-[0-9a-hjkmnp-tv-z]{4}){3}")
    cells = [[pattern.sub(lambda found: ids.get(found[0], found[0]), cell) for cell in columns[name]]
             for name in columns]  # fmt: skip
    changed = [name for name, new in zip(columns, cells, strict=True) if new != [*columns[name]]]
    if not changed:
        raise DataError(
            str(table), "holds no pseudonym that is in the mapping.", "One at least is needed.", "Check --mapping."
        )
    _write(out, list(columns), cells, mode=ONLY_OWNER)
    return Translation(len(cells[0]), tuple(changed), tuple(name for name in columns if name not in changed))


def _names_of(column: str, entries: Sequence[Entry]) -> Mapping[str, str] | None:
    """What stands in a column of slides or patients -> what is to stand there; None: it is neither."""
    plain = re.sub(r"[\s-]+", "_", column.casefold())
    if plain in PATIENT_COLUMNS:
        return {entry.patient_id: entry.patient_pseudonym for entry in entries if entry.patient_id}
    if plain not in SLIDE_COLUMNS:
        return None
    files = {entry: Path(entry.path) for entry in entries}
    how_often = Counter(name for file in files.values() for name in {file.name, file.stem})
    names: dict[str, str] = {}
    for entry, file in files.items():
        suffix = "" if file.suffix[1:].isdecimal() else file.suffix.lower()
        names |= {one: entry.pseudonym for one in (file.stem,) if how_often[one] == 1}
        names |= {one: f"{entry.pseudonym}{suffix}" for one in (file.name,) if how_often[one] == 1}
        names[entry.path] = f"{entry.pseudonym}{suffix}"
    return names | {entry.slide_id: entry.pseudonym for entry in entries}


def _refuse_unknown(
    table: Path, column: str, cells: Sequence[str], names: Mapping[str, str], lines: Sequence[int]
) -> None:
    unknown = [line for line, cell in zip(lines, cells, strict=True) if cell and cell not in names]
    if unknown:
        named = ", ".join(map(str, unknown[:MOST_NAMED]))
        named += f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
        raise DataError(
            str(table),
            f"column `{column}`: the mapping does not know what stands on line {named}.",
            "Every slide and patient of the table must be in the mapping, or its name would stay.",
            "Tile these slides with --pseudonymise (patients are given in its CSV: path,patient_id), take the lines"
            f" out, or leave the column out (--drop {column}).",
        )


def _refuse_names(table: Path, copied: Mapping[str, Sequence[str]], entries: Sequence[Entry]) -> None:
    names = {name for entry in entries for name in _all_names(entry) if len(name) >= SHORTEST_NAME}
    for column, cells in copied.items():
        if any(cell in names or names.intersection(re.split(r"[\s,;|/\\]+", cell)) for cell in cells):
            raise DataError(
                str(table),
                f"column `{column}` holds names of slides or patients too.",
                "What is not translated is copied as it is, and must name nobody.",
                f"Leave it out (--drop {column}).",
            )


def _all_names(entry: Entry) -> Iterator[str]:
    file = Path(entry.path)
    yield from (entry.slide_id, entry.patient_id, entry.path, file.name, file.stem)


def _without(table: Path, columns: Mapping[str, Sequence[str]], drop: Collection[str]) -> dict[str, Sequence[str]]:
    for name in drop:
        if name not in columns:
            raise DataError(
                str(table),
                f"has no column `{name}` (it has {', '.join(columns)}).",
                "A column of the table is needed.",
                "Correct --drop.",
            )
    return {name: cells for name, cells in columns.items() if name not in drop}


def _write(out: Path, header: Sequence[str], columns: Sequence[Sequence[str]], *, mode: int | None) -> None:
    with atomic_write(out) as stream:
        if mode is not None:
            os.fchmod(stream.fileno(), mode)
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(map(plain_cells, zip(*columns, strict=True)))
