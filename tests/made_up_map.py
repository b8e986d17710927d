"""A synthetic map of features: numbers from a seed, thumbnails of one colour each."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from dino_path.records.feature_map import NONE, ColumnRecord, FeatureMapRecord, PicturesRecord, packed

ROWS = 24


def made_up_map(num_tiles: int = 400, *, num_slides: int = 5, classes: tuple[str, ...] = ("gland", "stroma", "fat"),
                slide_names: tuple[str, ...] | None = None, seed: int = 0) -> FeatureMapRecord:  # fmt: skip
    """Tile i is of slide i % num_slides and of class i % len(classes); its neighbours are the ten tiles after it that
    are of other slides; classes lie apart.
    """
    random = np.random.default_rng(seed)
    number = np.arange(num_tiles)
    code, slide = number % len(classes), number % num_slides
    centre = np.array([[12000, 15000], [50000, 20000], [30000, 50000]])[code % 3]
    places = np.clip(centre + random.normal(0, 5000, (num_tiles, 2)), 0, 65534).astype(int)
    following = (number[:, None] + np.arange(1, 16)) % num_tiles
    neighbours = np.full((num_tiles, 10), NONE)
    for tile, row in enumerate(following):
        others = row[slide[row] != slide[tile]][:10]
        neighbours[tile, : len(others)] = others
    cosines = np.arange(29900, 28900, -100)
    names = slide_names or tuple(f"slide-{one}" for one in range(num_slides))
    columns = (
        ColumnRecord(
            title="class", names=classes, codes=packed(code, "u2"), alike=0.5, alike_by_chance=1 / len(classes)
        ),
        ColumnRecord(title="slide", names=names, codes=packed(slide, "u2")),
        ColumnRecord(title="cluster", names=tuple("123"), codes=packed(number % 3, "u2")),
    )  # fmt: skip
    return FeatureMapRecord(
        model="model", data="made up", unit="slide", method="pca", method_note="nothing", seed=seed,
        num_all_tiles=2 * num_tiles, num_tiles=num_tiles, num_units=num_slides, tile_um=None, num_neighbours=10,
        kept=0.25, kept_by_chance=10 / (num_tiles - 1), x=packed(places[:, 0], "u2"), y=packed(places[:, 1], "u2"),
        columns=columns, x_level0=packed(number * 256, "i4"), y_level0=packed(number * 512, "i4"),
        neighbours=packed(neighbours, "u2"), similarity=packed(np.tile(cosines, (num_tiles, 1)), "i2"),
        pictures=PicturesRecord(edge_px=16, per_row=ROWS, tiles="", sheets=_sheets(num_tiles)),
    )  # fmt: skip


def _sheets(num_tiles: int) -> tuple[str, ...]:
    sheets = []
    for start in range(0, num_tiles, ROWS**2):
        colours = np.random.default_rng(start).integers(60, 220, (ROWS, ROWS, 3)).astype(np.uint8)
        sheet = np.repeat(np.repeat(colours, 16, axis=0), 16, axis=1)
        sheets.append(base64.b64encode(cv2.imencode(".jpg", sheet)[1].tobytes()).decode())
    return tuple(sheets)
