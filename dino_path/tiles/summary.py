"""Summary of a store's slides: a table that can be edited and used as input, and contact sheets.

Any number of tasks write them, each when it ends, from the records that stand then; the last to end has seen all.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dino_path.atomic import atomic_write
from dino_path.records.slide import SlideRecord
from dino_path.records.tables import SLIDES
from dino_path.slides.images.jpeg import BadJpeg, decode_jpeg
from dino_path.slides.resolution import FROM_CSV
from dino_path.slides.slide import RgbImage
from dino_path.tiles.layout import PER_SLIDE, StoreFolder, damaged_slide
from dino_path.tiles.pictures import FONT, LONG_EDGE_PX
from dino_path.tiles.writing import encode_jpeg

INPUTS = (
    "path", "slide_id", "patient_id", "centre", "scanner", "mpp", "split", "mask",
    *(f"tiles.{name}" for name in PER_SLIDE),
)  # fmt: skip
RESULTS = (
    "status", "reason", "flags", "num_tiles", "num_candidates", "num_pen", "num_black", "num_dark", "num_blurred",
    "num_unreadable", "tissue_percent", "mpp_found", "mpp_source", "tile_mpp", "reader", "seconds",
)  # fmt: skip
COLUMNS, ROWS, CELL_WIDTH_PX, CELL_HEIGHT_PX = 6, 8, 260, 240  # of a contact sheet
CELL_TEXT_PX, LETTER_PX, LINE_PX = 34, 7, 15
STATUS_COLOURS = {"done": (0, 110, 60), "empty": (190, 110, 0), "failed": (190, 0, 0)}


def write_summary(folder: StoreFolder) -> None:
    """Write the contact sheets and `slides.csv`, unless they are newer than every record."""
    seen: dict[Path, int] | None = None
    while not _is_current(folder) and (times := _record_times(folder)) != seen:  # another task may have ended meanwhile
        seen = times
        records = folder.records()
        _write_sheets(folder, records)
        _write_table(folder, records)


def _is_current(folder: StoreFolder) -> bool:
    if not folder.summary_file.exists():
        return False
    written_ns = folder.summary_file.stat().st_mtime_ns
    return all(time_ns <= written_ns for time_ns in _record_times(folder).values())


def _record_times(folder: StoreFolder) -> dict[Path, int]:
    """When each record was written, ns."""
    times: dict[Path, int] = {}
    for file in folder.record_files():
        with suppress(FileNotFoundError):  # another task has just removed it, to tile the slide anew
            times[file] = file.stat().st_mtime_ns
    return times


def _write_table(folder: StoreFolder, records: Sequence[SlideRecord]) -> None:
    names = (*INPUTS, *RESULTS)
    rows = map(_row, records)
    SLIDES.write(folder.summary_file, names, ([row.get(name, "") for name in names] for row in rows))


def _row(record: SlideRecord) -> dict[str, Any]:
    return {
        **asdict(record),
        "mask": "",
        **record.overrides,
        "mpp": record.mpp if record.mpp_source == FROM_CSV else "",
        "mpp_found": record.mpp,
        "flags": "; ".join(record.flags),
    }


def _write_sheets(folder: StoreFolder, records: Sequence[SlideRecord]) -> None:
    for page, start in enumerate(range(0, len(records), ROWS * COLUMNS), start=1):
        cells = [_cell(folder, record) for record in records[start : start + ROWS * COLUMNS]]
        num_columns = min(COLUMNS, len(cells))
        cells += [np.full_like(cells[0], 255)] * (-len(cells) % num_columns)
        rows = [np.concatenate(cells[at : at + num_columns], axis=1) for at in range(0, len(cells), num_columns)]
        with atomic_write(folder.contact_sheet_file(page), "wb") as stream:
            stream.write(encode_jpeg(np.concatenate(rows), 85, "420"))


def _cell(folder: StoreFolder, record: SlideRecord) -> RgbImage:
    """One slide's overlay, small, with its id, status and number of tiles."""
    cell: RgbImage = np.full((CELL_HEIGHT_PX, CELL_WIDTH_PX, 3), 255, dtype=np.uint8)
    overlay = folder.overlay_file(record.slide_id)
    if record.status == "failed":
        _write_reason(cell, record.reason)
    elif (picture := _marked_slide(overlay, record)) is not None:
        _paste(cell, picture)
    lines = (record.slide_id, f"{record.status}  {record.num_tiles:,} tiles  {'; '.join(record.flags)}")
    for number, (text, colour) in enumerate(zip(lines, ((0, 0, 0), STATUS_COLOURS[record.status]), strict=True)):
        at = (4, CELL_HEIGHT_PX - CELL_TEXT_PX + 13 + LINE_PX * number)
        cv2.putText(cell, text[: CELL_WIDTH_PX // LETTER_PX], at, FONT, 0.38, colour, 1, cv2.LINE_AA)
    return cell


def _write_reason(cell: RgbImage, reason: str) -> None:
    """The reason in the place of a missing picture; `slides.csv` has the full text."""
    lines = textwrap.wrap(reason.encode("ascii", "replace").decode(), CELL_WIDTH_PX // LETTER_PX)
    fitting = (CELL_HEIGHT_PX - CELL_TEXT_PX) // LINE_PX - 1
    if len(lines) > fitting:
        lines = [*lines[: fitting - 1], "... the rest is in slides.csv"]
    for number, line in enumerate(lines, start=1):
        cv2.putText(cell, line, (4, LINE_PX * number), FONT, 0.38, STATUS_COLOURS["failed"], 1, cv2.LINE_AA)


def _marked_slide(overlay: Path, record: SlideRecord) -> RgbImage | None:
    """The slide's part of an overlay, decoded at a quarter; what is below it is left out. None: no such file."""
    try:
        small = decode_jpeg(overlay.read_bytes(), shrink=4)
    except FileNotFoundError:
        return None
    except BadJpeg as error:
        raise damaged_slide(overlay, str(error)) from None
    width_level0, height_level0 = record.pictured_part[2:]
    scale = min(1.0, LONG_EDGE_PX / max(width_level0, height_level0)) / 4
    height, width = (max(1, round(edge * scale)) for edge in (height_level0, width_level0))
    return small[:height, :width]


def _paste(cell: RgbImage, picture: RgbImage) -> None:
    """Fit the picture into the cell's upper part, centred."""
    box_width, box_height = CELL_WIDTH_PX - 8, CELL_HEIGHT_PX - CELL_TEXT_PX - 8
    scale = min(box_width / picture.shape[1], box_height / picture.shape[0])
    width, height = (max(1, int(edge * scale)) for edge in (picture.shape[1], picture.shape[0]))
    left, top = (CELL_WIDTH_PX - width) // 2, 4 + (box_height - height) // 2
    cell[top : top + height, left : left + width] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
