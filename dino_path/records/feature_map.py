"""A map of features, inside the page that `dino-path map` writes: one file for people and for programs.

`map.html` holds the record as JSON in `<script type="application/json" class="feature-map-data">`. Columns of numbers
are base64 of little-endian integers: tens of thousands of tiles stay small, and the browser reads them as they are.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dino_path.disk import parse_json
from dino_path.errors import DataError
from dino_path.records.format import Format, Record

MapMethod = Literal["tsne", "pca"]
NONE = 65535  # where a tile has fewer neighbours than asked for
MOST_TILES = 60_000  # their numbers have 16 bits, and NONE is one of them
DATA = re.compile(r'<script type="application/json" class="feature-map-data">(.*?)</script>', re.DOTALL)


class ColumnRecord(Record):
    """A column by which tiles can be coloured.

    Attributes:
        title: `class`, `slide`, `patient`, `split`, `cluster`, or a column of the user's.
        names: of the values, the most frequent first.
        codes: of each tile the number of its value, uint16.
        alike: of tiles' neighbours the share with the tile's own value; None: this column decides who is a neighbour.
        alike_by_chance: the same, were neighbours drawn from all tiles of other slides.
    """

    title: str
    names: tuple[str, ...]
    codes: str
    alike: float | None = None
    alike_by_chance: float | None = None


class PicturesRecord(Record):
    """Thumbnails, row by row in square sheets.

    Attributes:
        edge_px: of a thumbnail; per_row: thumbnails in a row of a sheet, and rows in a sheet.
        tiles: the tile of each thumbnail, uint16; empty: all tiles in order.
        sheets: JPEG files, base64.
    """

    edge_px: int
    per_row: int
    tiles: str
    sheets: tuple[str, ...]


class FeatureMapRecord(Record):
    """Tiles in two dimensions.

    Attributes:
        model, data: what the features are of.
        unit: what neighbours must differ in: "slide", "patient" or "image".
        method: how the tiles were laid out; `method_note` says it in words.
        num_all_tiles: of which `num_tiles` were drawn; `num_units` slides, patients or images have some.
        tile_um: edge of a tile in um, where known.
        kept: of tiles' `num_neighbours` nearest in feature space, the share that are among as many nearest in the map.
        kept_by_chance: the same of a map drawn at random.
        x, y: place of each tile in the map, uint16; 0 to 65534 over the longer side.
        columns: what tiles can be coloured by.
        names: file of each tile, where tiles are files.
        x_level0, y_level0: top-left corners in their slides, level-0 px, int32, where known.
        neighbours: (num_tiles, num_neighbours) tiles of other units, most similar first, uint16; NONE where there are
            no more.
        similarity: their cosines as round(30000 * cosine), int16.
    """

    model: str
    data: str
    unit: Literal["slide", "patient", "image"]
    method: MapMethod
    method_note: str
    seed: int
    num_all_tiles: int
    num_tiles: int
    num_units: int
    tile_um: float | None
    num_neighbours: int
    kept: float
    kept_by_chance: float
    x: str
    y: str
    columns: tuple[ColumnRecord, ...]
    names: tuple[str, ...] | None = None
    x_level0: str | None = None
    y_level0: str | None = None
    neighbours: str
    similarity: str
    pictures: PicturesRecord
    notes: tuple[str, ...] = ()


FEATURE_MAP = Format(
    "feature map",
    FeatureMapRecord,
    DataError,
    "A page as `dino-path map` writes it is needed.",
    "Make it with `dino-path map`.",
)


def packed(values: NDArray[Any], kind: Literal["u2", "i2", "i4"]) -> str:
    """Integers as base64 of their little-endian bytes."""
    return base64.b64encode(np.ascontiguousarray(values, f"<{kind}").tobytes()).decode()


def unpacked(text: str, kind: Literal["u2", "i2", "i4"]) -> NDArray[Any]:
    """The integers that `packed` wrote, one after another."""
    return np.frombuffer(base64.b64decode(text), f"<{kind}")


def map_json(record: FeatureMapRecord) -> str:
    """The record as JSON that is safe in a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(FEATURE_MAP.plain(record), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def read_feature_map(page: Path) -> FeatureMapRecord:
    """The map in a page of `dino-path map`.

    Raises:
        DataError: no such page, or a damaged one.
        NewerFormat: a later dino_path wrote it.
    """
    try:
        found = DATA.search(page.read_text(encoding="utf-8"))
        tree = parse_json(found[1]) if found else None
    except (OSError, ValueError) as error:
        raise FEATURE_MAP.damaged(page, str(error)) from None
    return FEATURE_MAP.parse(tree, page)
