"""A map of features: tiles in two dimensions with what is known of them, their neighbours, and their thumbnails.

Shape suffixes: M tiles of the map, D features, K neighbours.
"""

from __future__ import annotations

import base64
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError, TileStoreError
from dino_path.evaluation.protocols.cache import FeatureCache, Images
from dino_path.evaluation.protocols.tile_map import (
    agreement,
    clusters,
    lay_out,
    method_note,
    nearest_in_other_groups,
    neighbours_kept,
)
from dino_path.evaluation.results.map_tiles import MapTiles
from dino_path.features.extractor import Extractor, batches_of
from dino_path.features.files import read_feature_file
from dino_path.features.images import read_batches
from dino_path.features.layouts import ClamLayout, TridentLayout
from dino_path.progress import meter
from dino_path.records.feature_map import (
    NONE,
    ColumnRecord,
    FeatureMapRecord,
    MapMethod,
    PicturesRecord,
    packed,
)
from dino_path.tiles.images import ImageFiles
from dino_path.tiles.source import TileSource
from dino_path.tiles.writing import encode_jpeg

logger = logging.getLogger(__name__)

NUM_NEIGHBOURS = 10
PAGE_BYTES = 15_000_000  # at most, with everything in it
FRAME_BYTES = 150_000  # of it for the script, the style and the words
EDGES_PX = (96, 64, 48, 32, 24, 16)  # of thumbnails; the largest that fits is taken
JPEG_QUALITY = 72
SHEET_ROWS = 24  # and columns: a browser decodes a sheet at once
NUM_ESTIMATED = 192  # tiles that tell how large a thumbnail becomes
MAP_RANGE = 65534
COSINE_STEPS = 30_000

Features = NDArray[np.float32]


@dataclass(frozen=True)
class MapSettings:
    """How a map is made; the fields are the options of `dino-path map`."""

    method: MapMethod
    num_clusters: int
    seed: int


def extract(
    tiles: MapTiles, extractor: Extractor, config: EvaluationConfig, folder: Path, *, device: torch.device,
    num_workers: int,
) -> Features:  # fmt: skip
    """Features (M, D) of the tiles, kept in `folder`. Raises as `FeatureCache.features` does."""
    cache = FeatureCache(folder, device, config.batch_size, num_workers, config.input_px)
    return cache.features(extractor, Images(tiles.drawn, tiles.content))


def read_features(tiles: MapTiles, folder: Path) -> tuple[str, Features]:
    """The encoder's name, and the features (M, D) of tiles of a store, as `dino-path embed` wrote them to `folder`.

    Raises:
        DataError: a file is missing or damaged, or holds features of other tiles, or of another model than the rest.
    """
    place = tiles.store_rows
    assert place is not None, "feature files need a tile store"
    store, rows = place
    parts: list[Features] = []
    encoders: dict[str, str] = {}
    number_M = np.searchsorted(store.starts, rows, side="right") - 1
    for number in np.unique(number_M):
        record = store.slides[number]
        layouts = (TridentLayout, ClamLayout)
        names = [layout.feature_name(record) for layout in layouts]
        names += [layout.name_for_reader(record.path) for layout in layouts]  # as earlier versions called all files
        file = next((file for name in names if (file := folder / f"{name}.h5").is_file()), None)
        if file is None:
            raise _no_features(folder, record.slide_id)
        found = read_feature_file(file)
        first, last = store.starts[number : number + 2]
        corners = np.stack([store.x_level0[first:last], store.y_level0[first:last]], axis=1)
        if found.coords is None or not np.array_equal(found.coords, corners):
            raise DataError(
                str(file),
                f"holds features of other tiles than those of {record.slide_id} in {store.path}.",
                "Each row must belong to the same tile.",
                "Give the store from which the features were computed, or call `dino-path embed` again.",
            )
        encoders[found.origin.encoder_digest] = found.origin.encoder
        parts.append(found.features[rows[number_M == number] - first])
    if len(encoders) > 1:
        raise DataError(
            str(folder),
            f"holds features of {len(encoders)} models ({', '.join(encoders.values())}).",
            "All features of a map must come from one model.",
            "Delete the files of the others and call `dino-path embed` again.",
        )
    return next(iter(encoders.values())), np.concatenate(parts)


def make_map(
    tiles: MapTiles, features_MD: Features, model: str, settings: MapSettings, *, num_all_tiles: int,
    num_workers: int,
) -> FeatureMapRecord:  # fmt: skip
    """The map of these tiles, at most PAGE_BYTES when it is written as a page.

    Args:
        model: its name.
        num_all_tiles: that the tiles were drawn from.

    Raises:
        TileStoreError: a tile cannot be read.
    """
    features_MD = np.ascontiguousarray(features_MD, np.float32)
    num_tiles = len(features_MD)
    num_neighbours = min(NUM_NEIGHBOURS, num_tiles - 2)
    group_M = tiles.group_M
    logger.info("neighbours of %s tiles", f"{num_tiles:,}")
    neighbour_MK, cosine_MK = nearest_in_other_groups(features_MD, group_M, num_neighbours)
    logger.info("laying out %s tiles (%s)", f"{num_tiles:,}", settings.method)
    places_M2 = lay_out(features_MD, settings.method, seed=settings.seed)
    cluster_M = clusters(features_MD, settings.num_clusters, seed=settings.seed)
    columns = [
        _column(title, values, group_M, neighbour_MK, decides=title == tiles.unit)
        for title, values in tiles.columns.items()
    ]
    columns.append(_column("cluster", [f"{number + 1}" for number in cluster_M], group_M, neighbour_MK, decides=True))
    low, span = places_M2.min(axis=0), float(np.ptp(places_M2, axis=0).max()) or 1.0
    x_M, y_M = np.rint((places_M2 - low) / span * MAP_RANGE).T
    store_rows = tiles.store_rows
    corners = None
    if store_rows is not None:
        store, rows = store_rows
        corners = [packed(column[rows], "i4") for column in (store.x_level0, store.y_level0)]
    record = FeatureMapRecord(
        model=model,
        data=tiles.name,
        unit=tiles.unit,
        method=settings.method,
        method_note=method_note(settings.method, num_tiles),
        seed=settings.seed,
        num_all_tiles=num_all_tiles,
        num_tiles=num_tiles,
        num_units=len(np.unique(group_M)),
        tile_um=store_rows[0].mpp * store_rows[0].size_px if store_rows is not None else None,
        num_neighbours=num_neighbours,
        kept=neighbours_kept(features_MD, places_M2, num_neighbours),
        kept_by_chance=num_neighbours / (num_tiles - 1),
        x=packed(x_M, "u2"),
        y=packed(y_M, "u2"),
        columns=tuple(columns),
        names=_names(tiles),
        x_level0=corners[0] if corners else None,
        y_level0=corners[1] if corners else None,
        neighbours=packed(np.where(neighbour_MK < 0, NONE, neighbour_MK), "u2"),
        similarity=packed(np.rint(cosine_MK * COSINE_STEPS), "i2"),
        pictures=PicturesRecord(edge_px=EDGES_PX[-1], per_row=SHEET_ROWS, tiles="", sheets=()),
    )
    budget = PAGE_BYTES - FRAME_BYTES - len(record.model_dump_json().encode())
    return record.model_copy(update={"pictures": thumbnails(tiles.drawn, budget, num_workers=num_workers)})


def thumbnails(source: TileSource, budget: int, *, num_workers: int) -> PicturesRecord:
    """Thumbnails of all tiles, as large as `budget` (bytes, base64) allows; at the smallest size perhaps not of all,
    but evenly of those that lie one after another in `source`.

    Raises:
        TileStoreError: a tile cannot be read.
    """
    chosen = np.arange(len(source), dtype=np.int64)
    some = _small(source, _spread(chosen, NUM_ESTIMATED), EDGES_PX[0], num_workers, "looking at tiles")
    per_tile = {edge: _num_bytes(_sheets(_at(some, edge))) / len(some) for edge in EDGES_PX}
    edges = [edge for edge in EDGES_PX if per_tile[edge] * len(chosen) <= budget] or [EDGES_PX[-1]]
    chosen = _spread(chosen, int(budget / per_tile[EDGES_PX[-1]]))
    pictures = _small(source, chosen, edges[0], num_workers, "thumbnails")
    for edge in edges:
        sheets = _sheets(_at(pictures, edge))
        if _num_bytes(sheets) <= budget:
            break
    while _num_bytes(sheets) > budget:  # the smallest, and larger than those that were looked at
        kept = _spread(np.arange(len(chosen)), int(len(chosen) * 0.95 * budget / _num_bytes(sheets)))
        chosen, pictures = chosen[kept], [pictures[number] for number in kept]
        sheets = _sheets(_at(pictures, edge))
    return PicturesRecord(
        edge_px=edge,
        per_row=SHEET_ROWS,
        tiles="" if len(chosen) == len(source) else packed(chosen, "u2"),
        sheets=tuple(base64.b64encode(sheet).decode() for sheet in sheets),
    )


def _spread(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    if len(numbers) <= most:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, most).astype(np.int64)]


def _small(
    source: TileSource, numbers: NDArray[np.int64], edge_px: int, num_workers: int, what: str
) -> list[NDArray[np.uint8]]:
    """Tiles (edge_px, edge_px, 3), their middles where they are not square."""
    batches = batches_of(numbers, 256)
    small: list[NDArray[np.uint8]] = []
    with meter(what, len(numbers), "tiles") as counter:
        for batch in read_batches(source, batches, edge_px, num_workers=num_workers):
            if isinstance(batch, TileStoreError):
                raise batch
            small += [np.asarray(image) for image in batch]
            counter.advance(len(batch))
    return small


def _at(pictures: Sequence[NDArray[np.uint8]], edge_px: int) -> list[NDArray[np.uint8]]:
    if pictures[0].shape[0] == edge_px:
        return list(pictures)
    return [np.asarray(cv2.resize(one, (edge_px, edge_px), interpolation=cv2.INTER_AREA), np.uint8) for one in pictures]


def _sheets(pictures: Sequence[NDArray[np.uint8]]) -> list[bytes]:
    """JPEG files of SHEET_ROWS rows and columns; the last may have fewer rows."""
    per_sheet, edge_px = SHEET_ROWS**2, pictures[0].shape[0]
    sheets = []
    for start in range(0, len(pictures), per_sheet):
        some = pictures[start : start + per_sheet]
        num_rows = math.ceil(len(some) / SHEET_ROWS)
        sheet = np.full((num_rows * SHEET_ROWS, edge_px, edge_px, 3), 255, np.uint8)
        sheet[: len(some)] = some
        rows = sheet.reshape(num_rows, SHEET_ROWS, edge_px, edge_px, 3).swapaxes(1, 2)
        whole = np.ascontiguousarray(rows.reshape(num_rows * edge_px, SHEET_ROWS * edge_px, 3))
        sheets.append(encode_jpeg(whole, JPEG_QUALITY, "420"))
    return sheets


def _num_bytes(sheets: Sequence[bytes]) -> int:
    """In base64, with quotation marks and a comma."""
    return sum(4 * math.ceil(len(sheet) / 3) + 3 for sheet in sheets)


def _column(
    title: str, values: Sequence[str], group_M: NDArray[np.int64], neighbour_MK: NDArray[np.int64], *, decides: bool
) -> ColumnRecord:
    """A column with its values by frequency.

    Args:
        decides: say nothing of neighbours: they differ in it by definition, or it was made of the same features. So it
            is where no value occurs in two slides.
    """
    names = [name for name, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))]
    number_of = {name: number for number, name in enumerate(names)}
    code_M = np.array([number_of[value] for value in values], np.int64)
    alike, by_chance = (0.0, 0.0) if decides else agreement(code_M, group_M, neighbour_MK)
    says_something = by_chance > 0
    return ColumnRecord(
        title=title,
        names=tuple(names),
        codes=packed(code_M, "u2"),
        alike=alike if says_something else None,
        alike_by_chance=by_chance if says_something else None,
    )


def _names(tiles: MapTiles) -> tuple[str, ...] | None:
    """File names without their folders, which may tell of a machine or a patient."""
    if tiles.store_rows is not None:
        return None
    names = (tiles.source.name(int(row)) for row in tiles.rows)
    return tuple(Path(name).name if isinstance(tiles.source, ImageFiles) else name for name in names)


def _no_features(folder: Path, slide_id: str) -> DataError:
    return DataError(
        str(folder),
        f"no features of the slide {slide_id}.",
        "A feature file of every slide of the store is needed, as `dino-path embed` writes them.",
        "Give the folder that `dino-path embed` printed, run it again for missing files, or give a model instead.",
    )
