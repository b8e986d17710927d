"""A user's table of slides: one row per slide, with facts that its file does not give."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dino_path.errors import DataError, SlideError
from dino_path.records.tables import SLIDES
from dino_path.table_file import (
    CENTRES,
    PATIENTS,
    Table,
    Vocabulary,
    number,
    path_of,
    read_csv_table,
    settle_columns,
    why_no_file,
)

logger = logging.getLogger(__name__)

CSV_COLUMNS = "path[,slide_id,patient_id,centre,scanner,mpp,split,mask,tiles.<setting>]"
COLUMNS = Vocabulary(
    ("path", "slide_id", "patient_id", "centre", "scanner", "mpp", "split", "mask"),
    aliases={**PATIENTS, **CENTRES, "wsi": "path"},  # `wsi`: TRIDENT's lists
    prefix="tiles.",
)
# `STORE/slides.csv`, given back: its further columns are results, which everybody knows are not read.
OWN_TABLE = {"status", "num_tiles", "mpp_found"}
# An empty one is worth a word: it decides which slides may stand on both sides of a split.
EMPTY_IS_NOTED = ("patient_id", "split")


@dataclass(frozen=True)
class ListedSlide:
    """One row: `slide_id` is "" and the rest None where the table says nothing. `line` counts from 1."""

    line: int
    path: Path
    slide_id: str
    patient_id: str | None
    mpp: float | None
    split: str | None
    overrides: dict[str, str] | None
    centre: str | None = None
    scanner: str | None = None


def read_slide_table(path: Path) -> list[ListedSlide]:
    """The rows of a CSV or TSV of slides; oddities are logged.

    Raises:
        SlideError: it is no such table, or a row names no file or a number that is none.
    """
    try:
        table = read_csv_table(path)
        table = replace(table, columns=SLIDES.lifted(table.columns, path))
        is_own = table.columns.keys() >= OWN_TABLE
        settled = settle_columns(_without_results(table) if is_own else table, COLUMNS)
    except DataError as error:
        raise SlideError(error.thing, error.found, _needed(), error.remedy) from None
    if "path" not in settled.columns:
        raise bad_slide_table(path, f"has no column `path` (it names {', '.join(table.columns)}).")
    if not settled.lines:
        raise bad_slide_table(path, "lists no slides.")
    notes = [*settled.notes]
    if not is_own:
        notes += [f"column `{name}` is empty in every row: treated as unknown" for name in EMPTY_IS_NOTED
                  if name in settled.columns and not any(settled.columns[name])]  # fmt: skip
    for note in notes:
        logger.warning("%s: %s", path, note)
    return list(_rows(settled))


def bad_slide_table(path: Path, found: str) -> SlideError:
    return SlideError(str(path), found, _needed(), "Correct the CSV.")


def _needed() -> str:
    return f"A CSV with a header line and the columns {CSV_COLUMNS} is needed; paths are relative to the CSV."


def _without_results(table: Table) -> Table:
    """The store's own table with the columns alone that it takes."""
    columns = {name: cells for name, cells in table.columns.items()
               if name in COLUMNS.known or name.startswith("tiles.")}  # fmt: skip
    return replace(table, columns=columns)


def _rows(table: Table) -> Iterator[ListedSlide]:
    own = [name for name in table.columns if name == "mask" or name.startswith("tiles.")]
    for row, line in enumerate(table.lines):
        cells = {name: values[row] for name, values in table.columns.items()}
        overrides = {name: cells[name] for name in own if cells[name]}
        if table.has_decimal_commas:
            overrides |= {name: _with_point(text) for name, text in overrides.items() if name != "mask"}
        if "mask" in overrides:
            overrides["mask"] = os.path.abspath(path_of(overrides["mask"], table.path.parent))  # noqa: PTH100
        yield ListedSlide(
            line,
            _slide_file(table.path, line, cells["path"]),
            cells.get("slide_id", ""),
            cells.get("patient_id") or None,
            _mpp(table.path, line, cells),
            cells.get("split") or None,
            overrides if own else None,
            cells.get("centre") or None,
            cells.get("scanner") or None,
        )


def _slide_file(csv_path: Path, line: int, cell: str) -> Path:
    if not cell:
        raise bad_slide_table(csv_path, f"line {line} has no path.")
    slide = Path(os.path.abspath(path_of(cell, csv_path.parent)))  # noqa: PTH100 (links keep the user's names)
    if not os.path.isfile(slide):  # noqa: PTH113 (Path.is_file raises where we may not look)
        raise bad_slide_table(csv_path, f"line {line} names {slide}, which is not a file{why_no_file(cell)}.")
    return slide


def _mpp(csv_path: Path, line: int, cells: Mapping[str, str]) -> float | None:
    if not cells.get("mpp"):
        return None
    try:
        return number(cells["mpp"])
    except ValueError:
        raise bad_slide_table(csv_path, f"line {line}: mpp {cells['mpp']!r} is no number.") from None


def _with_point(text: str) -> str:
    """`0,5` as `0.5`; other text, such as a list of classes, as it is."""
    try:
        number(text)
    except ValueError:
        return text
    return text.replace(",", ".")
