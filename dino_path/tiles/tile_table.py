"""The table of one slide's tiles: position, measurements, and whether each is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dino_path.atomic import atomic_write
from dino_path.config import TilesConfig

LIMITS = ("max_black_fraction", "max_pen_fraction", "max_dark_fraction", "min_sharpness")


class TileRow(NamedTuple):
    """One tile as it is measured and written."""

    x_level0: int
    y_level0: int
    size_level0: int
    tissue_fraction: float
    sharpness: float
    pen_fraction: float
    black_fraction: float
    dark_fraction: float
    offset: int
    length: int
    crc32: int = 0


@dataclass(frozen=True)
class TileTable:
    """All readable tiles of one slide with enough tissue, in the order of the grid; (N,) each.

    Attributes:
        x_level0, y_level0, size_level0: top-left corner and edge, level-0 px.
        tissue_fraction, pen_fraction, black_fraction, dark_fraction: share of the tile's area, 0 to 1.
        sharpness: variance of the Laplacian at `tiles.sharpness_mpp`, grey levels squared.
        kept: within all quality limits. The others are stored too: a limit can be changed without reading the slide.
        offset, length: bytes, where the JPEG lies in the slide's tar; length 0 in a store of coordinates.
        crc32: of the JPEG's bytes; 0: none is known, as in stores of earlier versions and of coordinates.
    """

    x_level0: NDArray[np.int32]
    y_level0: NDArray[np.int32]
    size_level0: NDArray[np.int32]
    tissue_fraction: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    pen_fraction: NDArray[np.float32]
    black_fraction: NDArray[np.float32]
    dark_fraction: NDArray[np.float32]
    kept: NDArray[np.bool_]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    crc32: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.kept)

    @classmethod
    def from_rows(cls, rows: Sequence[TileRow]) -> TileTable:
        """The table of these tiles; all of them kept."""
        values = dict(zip(TileRow._fields, zip(*rows, strict=True), strict=True)) if rows else {}
        values["kept"] = (True,) * len(rows)
        columns: dict[str, Any] = {name: np.asarray(values.get(name, ()), dtype) for name, dtype in COLUMNS.items()}
        return cls(**columns)

    @property
    def corners(self) -> NDArray[np.int32]:
        """(N, 2): x, y of the top-left corners, level-0 px."""
        return np.stack([self.x_level0, self.y_level0], axis=1)


COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("x_level0", "y_level0", "size_level0"), np.int32),
    **dict.fromkeys(("tissue_fraction", "sharpness", "pen_fraction", "black_fraction", "dark_fraction"), np.float32),
    "kept": np.bool_,
    **dict.fromkeys(("offset", "length"), np.int64),
    "crc32": np.uint32,
}


def limits_of(config: TilesConfig) -> dict[str, float]:
    """The quality limits among the settings."""
    return {name: float(getattr(config, name)) for name in LIMITS}


def judge(table: TileTable, limits: dict[str, float]) -> tuple[TileTable, dict[str, int]]:
    """The table with `kept` as the limits have it, and how many tiles each reason refused (the first that applied)."""
    kept = np.ones(len(table), dtype=np.bool_)
    counts: dict[str, int] = {}
    for reason, refused in _refusals(table, limits).items():
        counts[reason] = int((kept & refused).sum())
        kept &= ~refused
    return replace(table, kept=kept), counts


def why_refused(table: TileTable, number: int, limits: dict[str, float]) -> str:
    """The first reason against one tile; empty when there is none."""
    return next((reason for reason, refused in _refusals(table, limits).items() if refused[number]), "")


def refusal_reasons(table: TileTable, limits: dict[str, float]) -> list[str]:
    """Per tile the first reason against it; empty for a tile that is kept."""
    reasons = [""] * len(table)
    for reason, refused in _refusals(table, limits).items():
        for number in np.flatnonzero(refused):
            reasons[number] = reasons[number] or reason
    return reasons


def _refusals(table: TileTable, limits: dict[str, float]) -> dict[str, NDArray[np.bool_]]:
    # Compared in float32 as stored: the verdict is the same when the table is read back.
    return {
        "black": table.black_fraction > np.float32(limits["max_black_fraction"]),
        "pen": table.pen_fraction > np.float32(limits["max_pen_fraction"]),
        "dark": table.dark_fraction > np.float32(limits["max_dark_fraction"]),
        "blurred": table.sharpness < np.float32(limits["min_sharpness"]),
    }


def write_tile_table(path: Path, table: TileTable) -> None:
    """Write the table as Parquet, atomically."""
    columns = {name: pa.array(getattr(table, name)) for name in COLUMNS}
    with atomic_write(path, "wb") as stream:
        pq.write_table(pa.table(columns), stream, write_page_checksum=True)


def read_tile_table(path: Path) -> TileTable:
    """Read a slide's table.

    Raises:
        OSError: missing or unreadable.
        ValueError: damaged (pyarrow's own errors are ValueErrors), or without a column.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        there = [name for name in COLUMNS if name != "crc32" or name in file.schema_arrow.names]
        table = file.read(there, use_threads=False)
    if "crc32" not in there:
        table = table.append_column("crc32", pa.array(np.zeros(table.num_rows, np.uint32)))
    return TileTable(**{name: table.column(name).to_numpy().astype(dtype) for name, dtype in COLUMNS.items()})
