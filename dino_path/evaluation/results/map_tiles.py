"""The tiles of a map: the selection, and the known facts on each tile.

Shape suffixes: N all tiles, M drawn ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dino_path.errors import DataError
from dino_path.evaluation.labelled.datasets import LabelledSet, hash_contents
from dino_path.table_file import path_of
from dino_path.tiles.images import ImageFiles
from dino_path.tiles.source import Subset, TileSource, open_tiles
from dino_path.tiles.store import TileStore
from dino_path.tiles.tables import TABLE_SUFFIXES, read_table

Unit = Literal["slide", "patient", "image"]
Ints = NDArray[np.int64]
NOT_GIVEN = "not given"
# Of a table what is no colour, and what a map calls the others.
NO_COLOURS = {"path", "label", "split", "content", "format_version"}
TITLES = {"slide_id": "slide", "patient_id": "patient"}
KEYS = ("path", "slide_id", "patient_id")
FEWEST_TILES = 10


@dataclass(frozen=True)
class MapTiles:
    """Tiles that can be drawn into a map, and after `draw` those that are.

    Attributes:
        name: of the data.
        source: all tiles.
        rows: (M,) numbers of the drawn ones in `source`, ascending.
        columns: title -> value of each drawn tile.
        content: changes when a drawn tile or their order does.
    """

    name: str
    source: TileSource
    rows: Ints
    columns: Mapping[str, Sequence[str]]
    content: str

    @property
    def unit(self) -> Unit:
        """The unit in which neighbours must differ: the slide if known, else the patient, else the image."""
        return "slide" if "slide" in self.columns else "patient" if "patient" in self.columns else "image"

    @property
    def group_M(self) -> Ints:  # noqa: N802
        """Number of each tile's slide, patient or image."""
        if self.unit == "image":
            return np.arange(len(self.rows), dtype=np.int64)
        return np.unique(np.array(self.columns[self.unit]), return_inverse=True)[1].astype(np.int64)

    @property
    def drawn(self) -> TileSource:
        """The drawn tiles."""
        return Subset(self.source, self.rows)

    @property
    def store_rows(self) -> tuple[TileStore, Ints] | None:
        """The tile store that the tiles lie in, and their numbers there; None where they are image files."""
        place: tuple[TileSource, Ints] = self.source, self.rows
        while isinstance(source := place[0], Subset):
            place = source.source, source.indices[place[1]]
        source, rows = place
        return (source, rows) if isinstance(source, TileStore) else None


@dataclass(frozen=True)
class Table:
    """A user's columns.

    Attributes:
        key: the column by which a tile finds its row: `path` (absolute then), `slide_id` or `patient_id`.
        row_of: value of that column -> row.
    """

    file: Path
    key: str
    row_of: Mapping[str, int]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Table:
        """A CSV, TSV or Parquet table with `path`, `slide_id` or `patient_id`, and what to colour by.

        Raises:
            DataError: it cannot be read, has none of these columns, or nothing besides.
        """
        columns = read_table(file, needed=())
        lower = {name.casefold(): name for name in columns}
        key = next((key for key in KEYS if key in lower), None)
        others = {TITLES.get(low, name): columns[name] for low, name in lower.items() if low not in NO_COLOURS}
        if key is None or not {title for title in others if title != TITLES.get(key)}:
            raise DataError(
                str(file),
                f"it has the columns {', '.join(columns) or 'none'}.",
                f"One of {', '.join(KEYS)} is needed, and at least one column to colour by, such as centre.",
                "Rename or add a column.",
            )
        cells = columns[lower[key]]
        if key == "path":
            cells = [os.path.abspath(path_of(cell, file.parent)) for cell in cells]  # noqa: PTH100
        return cls(file, key, {cell: row for row, cell in enumerate(cells)}, others)

    def of(self, keys: Sequence[str]) -> dict[str, Sequence[str]]:
        """Each column's value for tiles with these keys; NOT_GIVEN where a tile has no row, or its cell is empty.

        Raises:
            DataError: no tile has a row.
        """
        rows = [self.row_of.get(key, -1) for key in keys]
        if max(rows) < 0:
            raise DataError(
                str(self.file),
                f"no tile has a row in it; its {self.key} begins with {next(iter(self.row_of), 'nothing')!r}, the"
                f" tiles' with {keys[0]!r}.",
                f"Its column {self.key} must match the data.",
                f"Correct the column {self.key}.",
            )
        return {
            title: [(cells[row] if row >= 0 else "") or NOT_GIVEN for row in rows]
            for title, cells in self.columns.items()
        }


def tiles_of_labelled(spec: str, labelled: LabelledSet, table: Table | None, part: str | None, most: int, *,
                      seed: int) -> MapTiles:  # fmt: skip
    """At most `most` tiles of a labelled set, as many of each slide or patient as can be.

    Args:
        spec: the set's; of a table the further columns can be coloured by.
        table: further columns.
        part: "train", "val" or "test"; None: all.

    Raises:
        DataError: the part has fewer than FEWEST_TILES tiles, or `table` does not fit.
    """
    tiles = np.arange(len(labelled.labels)) if part is None else labelled.part(part)
    _refuse_few(min(len(tiles), most), spec, sorted({*labelled.split.tolist()}))
    group_N = np.arange(len(tiles)) if labelled.groups is None else labelled.groups[tiles]
    rows = tiles[draw(np.unique(group_N, return_inverse=True)[1], most, seed=seed)]
    columns: dict[str, Sequence[str]] = {"class": [labelled.classes[label] for label in labelled.labels[rows]]}
    if labelled.groups is not None and labelled.group_kind is not None:
        columns[labelled.group_kind] = labelled.groups[rows].tolist()
    if part is None:
        columns["split"] = labelled.split[rows].tolist()
    content = hashlib.sha256(labelled.content[rows].tobytes()).hexdigest()  # of all: LabelledSet.content_digest
    found = MapTiles(labelled.name, labelled.source, rows, columns, content)
    if (place := found.store_rows) is not None:
        found = replace(found, columns={**columns, "slide": [place[0].slide_id(int(row)) for row in place[1]]})
    own = Path(spec)
    if own.suffix.lower() in TABLE_SUFFIXES and own.is_file() and _has_colours(own):
        found = _with_table(found, Table.read(own))
    return found if table is None else _with_table(found, table)


def tiles_of_source(path: Path, table: Table | None, part: str | None, most: int, *, seed: int) -> MapTiles:
    """At most `most` tiles of a tile store, as many of each slide as can be; or images of a folder.

    Args:
        table, part: as of a labelled set; `part` is a split of the store's slides.

    Raises:
        DataError: there are fewer than FEWEST_TILES tiles, or `table` does not fit.
        TileStoreError: see `open_tiles`.
    """
    source = open_tiles(path, split=part)
    name = path.resolve().name
    if not isinstance(source, TileStore):
        rows = draw(np.arange(len(source)), most, seed=seed)
        content = hashlib.sha256(hash_contents(Subset(source, rows), name).tobytes()).hexdigest()
        found = MapTiles(name, source, rows, {"folder": _folders(source, rows)}, content)
        _refuse_few(len(rows), str(path))
        return found if table is None else _with_table(found, table)
    rows = draw(np.repeat(np.arange(len(source.slides), dtype=np.int32), np.diff(source.starts)), most, seed=seed)
    slides = [source.slides[number] for number in np.searchsorted(source.starts, rows, side="right") - 1]
    columns: dict[str, Sequence[str]] = {"slide": [slide.slide_id for slide in slides]}
    if any(slide.patient_id for slide in slides):
        columns["patient"] = [slide.patient_id or NOT_GIVEN for slide in slides]
    if part is None and any(slide.split for slide in slides):
        columns["split"] = [slide.split or NOT_GIVEN for slide in slides]
    found = MapTiles(name, source, rows, columns, Subset(source, rows).digest)
    _refuse_few(len(rows), str(path))
    return found if table is None else _with_table(found, table)


def draw(group_N: NDArray[np.integer], most: int, *, seed: int) -> Ints:
    """At most `most` numbers below N, ascending: as many of every group as of any other, as far as it has them."""
    if len(group_N) <= most:
        return np.arange(len(group_N), dtype=np.int64)
    counts = np.bincount(group_N)
    random = np.random.default_rng(seed)
    quotas = even_quotas(counts, most, random)
    order = np.argsort(group_N, kind="stable")
    starts = np.cumsum(counts) - counts
    drawn: list[Ints] = [
        order[start + random.choice(count, quota, replace=False)]
        for start, count, quota in zip(starts, counts, quotas, strict=True)
        if quota
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def even_quotas(counts: NDArray[np.integer], total: int, random: np.random.Generator) -> Ints:
    """How many to take of each, together `total` or all that there are: the same number, or all where there are fewer.

    What is left of `total` after that goes to some that have more, one each, drawn at random.
    """
    low, high = 0, int(counts.max())
    while low < high:  # the largest number that each can give
        middle = (low + high + 1) // 2
        low, high = (middle, high) if int(np.minimum(counts, middle).sum()) <= total else (low, middle - 1)
    quotas: Ints = np.minimum(counts, low).astype(np.int64)
    more = np.flatnonzero(counts > low)
    quotas[random.choice(more, min(len(more), total - int(quotas.sum())), replace=False)] += 1
    return quotas


def _refuse_few(num_tiles: int, thing: str, splits: Sequence[str] = ()) -> None:
    if num_tiles < FEWEST_TILES:
        raise DataError(
            thing,
            f"{num_tiles} tiles are available" + (f"; its splits are {', '.join(splits)}." if splits else "."),
            f"A map needs at least {FEWEST_TILES}.",
            "Check the path and --split.",
        )


def _has_colours(file: Path) -> bool:
    return any(name.casefold() not in NO_COLOURS for name in read_table(file, needed=()))


def _with_table(tiles: MapTiles, table: Table) -> MapTiles:
    """The tiles with the table's columns, where they have not such a column already."""
    keys = _paths(tiles) if table.key == "path" else tiles.columns.get(TITLES[table.key])
    if keys is None:
        raise DataError(
            str(table.file),
            f"identifies tiles by {table.key}, which the data do not have.",
            "The data must have the key: path for image files, slide_id or patient_id if given.",
            "Give a table with another key.",
        )
    further = {title: cells for title, cells in table.of(keys).items() if title not in tiles.columns}
    return replace(tiles, columns={**tiles.columns, **further})


def _paths(tiles: MapTiles) -> Sequence[str] | None:
    source = tiles.source
    return [os.path.abspath(source.paths[row]) for row in tiles.rows] if isinstance(source, ImageFiles) else None  # noqa: PTH100


def _folders(source: TileSource, rows: Ints) -> list[str]:
    return [Path(source.name(int(row))).parent.name for row in rows]
