"""The position of each tile of a store, one row per tile: in memory, or memory-mapped for a large store.

STORE/index/<selection>_<content>.npy    made when it is first needed, from the slides' tables; may be deleted

All processes of a node that map the file share its pages, and only the pages that are read take memory. The name says
for which slides (`split` and `exclude` decide) and for which content of them it was made; when tiling has changed
something, the next opener writes a new file and removes the old one. Of several that open at once, one writes it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_path.atomic import atomic_write, one_at_a_time
from dino_path.progress import progress
from dino_path.records.slide import SlideRecord
from dino_path.tiles.layout import StoreFolder, damaged_slide
from dino_path.tiles.tile_table import COLUMNS, read_tile_table

logger = logging.getLogger(__name__)

# One row holds all of a tile, so that a tile at random costs one page: from a cold disk 0.6 ms a tile, against 0.8 ms
# with one file per column.
PLACE_COLUMNS = ("offset", "length", "x_level0", "y_level0", "size_level0", "crc32")
PLACE = np.dtype([(name, COLUMNS[name]) for name in PLACE_COLUMNS])
# A slide's table takes 1.8 ms, so smaller stores open within a second or two without leaving a file behind.
MIN_INDEXED_TILES = 1_000_000

Places = NDArray[Any]  # (N,) of PLACE


def open_places(
    folder: StoreFolder, records: Sequence[SlideRecord], num_bytes: Sequence[int], selection: str
) -> Places:
    """The rows of all kept tiles of these slides, in their order.

    Args:
        num_bytes: size of each slide's tar, which no tile may reach over.
        selection: a file name's part that says how these slides were chosen.

    Raises:
        TileStoreError: a slide's table is missing, damaged, or does not belong to its record and tar.
    """
    num_tiles = sum(record.num_tiles for record in records)
    if num_tiles < MIN_INDEXED_TILES:
        return _in_memory(folder, records, num_bytes)
    file = folder.index_file(f"{selection}_{_content(records, num_bytes)}")
    if (places := _mapped(file)) is not None:
        return places
    try:
        # All ranks of a run open its store at once: one builds, and the others wait for what it makes.
        with one_at_a_time(file.with_name(f".{file.name}.lock.tmp")):
            if (places := _mapped(file)) is None:
                logger.info("indexing %s tiles of %s slides, once: %s", f"{num_tiles:,}", f"{len(records):,}", file)
                _build(file, folder, records, num_bytes)
                _remove_others(file, selection)
                places = _mapped(file)
        if places is None:
            raise OSError("it is missing after it was written")
        return places
    except OSError as error:
        logger.warning("%s cannot be written (%s): this process holds %.1f GB of tile positions in memory instead.",
                       file, error, num_tiles * PLACE.itemsize / 1e9)  # fmt: skip
        return _in_memory(folder, records, num_bytes)


def _content(records: Sequence[SlideRecord], num_bytes: Sequence[int]) -> str:
    """A digest of the source of the rows. A slide's record is always written after its table."""
    content = hashlib.sha256(str(PLACE).encode())
    for record, size in zip(records, num_bytes, strict=True):
        content.update(f"{record!r}{size};".encode())
    return content.hexdigest()[:16]


def _mapped(file: Path) -> Places | None:
    """The rows in a file; None if it is missing or truncated."""
    try:
        return np.lib.format.open_memmap(file, mode="r").view(np.ndarray)
    except (OSError, ValueError):
        return None


def _build(file: Path, folder: StoreFolder, records: Sequence[SlideRecord], num_bytes: Sequence[int]) -> None:
    with atomic_write(file, "wb") as stream:
        header = {"descr": PLACE.descr, "fortran_order": False, "shape": (sum(each.num_tiles for each in records),)}
        np.lib.format.write_array_header_1_0(stream, header)
        for rows in progress(_rows(folder, records, num_bytes), "indexing", total=len(records), unit="slides"):
            rows.tofile(stream)


def _in_memory(folder: StoreFolder, records: Sequence[SlideRecord], num_bytes: Sequence[int]) -> Places:
    places = np.empty(sum(record.num_tiles for record in records), PLACE)
    start = 0
    for rows in _rows(folder, records, num_bytes):
        places[start : start + len(rows)] = rows
        start += len(rows)
    return places


def _rows(folder: StoreFolder, records: Sequence[SlideRecord], num_bytes: Sequence[int]) -> Iterator[Places]:
    for record, size in zip(records, num_bytes, strict=True):
        file = folder.table_file(record.slide_id)
        try:
            table = read_tile_table(file)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
            raise damaged_slide(file, str(error)) from None
        num_kept = int(table.kept.sum())
        if num_kept != record.num_tiles or num_kept == 0:
            raise damaged_slide(file, f"{num_kept} tiles are kept, but {record.num_tiles} in the slide's record")
        rows = np.empty(num_kept, PLACE)
        for name in PLACE.names or ():
            rows[name] = getattr(table, name)[table.kept]
        if int((rows["offset"] + rows["length"]).max()) > size:
            raise damaged_slide(folder.tar_file(record.slide_id), f"{size} bytes, fewer than its table lists")
        yield rows


def _remove_others(file: Path, selection: str) -> None:
    """Delete indexes of the same slides from before they changed."""
    for other in file.parent.glob(f"{selection}_*.npy"):
        if other != file:
            other.unlink(missing_ok=True)
