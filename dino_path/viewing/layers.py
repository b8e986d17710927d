"""Layers over a slide: groups of rectangles, each with a name and a colour, shared by page, GeoJSON and pictures.

Shape suffixes: N rectangles.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.errors import DataError
from dino_path.records.slide import SlideRecord
from dino_path.slides.slide import RgbImage
from dino_path.tiles.pictures import FONT
from dino_path.tiles.tile_table import TileTable, refusal_reasons

Colour = tuple[int, int, int]
Boxes = NDArray[np.float64]  # (N, 4): left, top, width, height, level-0 px

KEPT: Colour = (40, 120, 255)
# Reason -> its words, colour, the column that was measured, and the limit that it broke.
REFUSED: dict[str, tuple[str, Colour, str, str]] = {
    "black": ("black: no light", (60, 60, 60), "black_fraction", "max_black_fraction"),
    "pen": ("pen ink", (200, 0, 160), "pen_fraction", "max_pen_fraction"),
    "dark": ("dark as a fold", (140, 80, 0), "dark_fraction", "max_dark_fraction"),
    "blurred": ("blurred", (255, 140, 0), "sharpness", "min_sharpness"),
}
# Told apart by colour-blind people as far as twelve colours can be; none is a colour of H&E.
CLUSTERS: tuple[Colour, ...] = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (240, 228, 66), (86, 180, 233), (213, 94, 0),
    (51, 34, 136), (170, 220, 50), (0, 220, 220), (120, 80, 20), (210, 210, 210), (20, 20, 20),
)  # fmt: skip
HEAT_STEPS = 8
MASK_ALPHA = 0.45  # of the colours in a picture


@dataclass(frozen=True)
class Group:
    """Rectangles of one kind.

    Attributes:
        rows: (N,) rows of the slide's table of tiles; None: they are no tiles of the store.
        values: (N,) a number for each, which `what` names; None: there is none.
    """

    label: str
    colour: Colour
    boxes: Boxes
    rows: NDArray[np.int64] | None = None
    values: NDArray[np.float64] | None = None
    what: str = ""

    def record(self) -> dict[str, Any]:
        """As the page reads it."""
        return {
            "label": self.label,
            "colour": self.colour,
            "boxes": [round(at, 1) for at in self.boxes.ravel().tolist()],
            "rows": None if self.rows is None else self.rows.tolist(),
            "values": None if self.values is None else [float(f"{value:.4g}") for value in self.values],
            "what": self.what,
        }


@dataclass(frozen=True)
class Layer:
    """Something that can be drawn over a slide. `name` is part of file names, `title` is for people."""

    name: str
    title: str
    groups: tuple[Group, ...]

    def record(self) -> dict[str, Any]:
        """As the page reads it."""
        return {"name": self.name, "title": self.title, "groups": [group.record() for group in self.groups]}


def tile_layer(table: TileTable, record: SlideRecord) -> Layer:
    """Kept tiles, and refused ones by the first reason against each."""
    boxes_N4, reasons = boxes_of(table), np.asarray(refusal_reasons(table, record.limits), dtype=object)
    kept = np.flatnonzero(table.kept)
    groups = [Group("kept", KEPT, boxes_N4[kept], kept, table.tissue_fraction[kept].astype(float), "share of tissue")]
    for reason, (words, colour, column, limit) in REFUSED.items():
        rows = np.flatnonzero(reasons == reason)
        if len(rows):
            values = getattr(table, column)[rows].astype(float)
            what = f"{column.replace('_', ' ')}; {limit} is {record.limits[limit]:g}"
            groups.append(Group(f"refused, {words}", colour, boxes_N4[rows], rows, values, what))
    return Layer("tiles", "Tiles", tuple(groups))


def cluster_layer(table: TileTable, clusters_N: NDArray[np.int64], num_clusters: int) -> Layer:
    """The kept tiles by cluster.

    Args:
        clusters_N: of the kept tiles, 0 to `num_clusters` - 1.
    """
    boxes_N4, kept = boxes_of(table), np.flatnonzero(table.kept)
    groups = tuple(
        Group(f"cluster {one + 1}", CLUSTERS[one], boxes_N4[rows], rows)
        for one in range(num_clusters)
        if len(rows := kept[clusters_N == one])
    )
    return Layer("clusters", "Clusters of features", groups)


def boxes_of(table: TileTable) -> Boxes:
    """(N, 4) of all tiles of a table."""
    return np.stack([table.x_level0, table.y_level0, table.size_level0, table.size_level0], axis=1).astype(float)


def heat_layer(file: Path, record: SlideRecord) -> Layer:
    """Rectangles with a value each, in steps from the lowest to the highest: a heat map as `--heatmap` writes it.

    The value is the first number in a feature's `measurements` (QuPath's), or in its properties. Of any polygon the
    rectangle around it is drawn.

    Raises:
        DataError: the file cannot be read, or holds no rectangles with values.
    """
    try:
        features = json.loads(file.read_text(encoding="utf-8-sig"))
        if isinstance(features, dict):
            features = features["features"]
        found = [one for feature in features if (one := _valued_box(feature)) is not None]
        if not found:
            raise ValueError("no polygon in it has a number")
        names, boxes, values = zip(*found, strict=True)
        boxes_N4, values_N = np.asarray(boxes, float), np.asarray(values, float)
        if not (np.isfinite(boxes_N4).all() and np.isfinite(values_N).all()):
            raise ValueError("a coordinate or value is not finite")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise DataError(
            str(file),
            f"is not a heat map ({type(error).__name__}: {' '.join(str(error).split())[:150]}).",
            "A GeoJSON FeatureCollection of polygons is needed, each with a number in its measurements.",
            "Give a file written by `dino-path evaluate slides --heatmap` or `dino-path view --export`.",
        ) from None
    boxes_N4[:, :2] += record.bounds_origin
    edges = np.linspace(values_N.min(), values_N.max(), HEAT_STEPS + 1)
    steps = np.clip(np.searchsorted(edges, values_N, side="right") - 1, 0, HEAT_STEPS - 1)
    colours = heat_colours(np.linspace(0, 1, HEAT_STEPS))
    groups = tuple(
        Group(
            f"{edges[step]:.3g} to {edges[step + 1]:.3g}",
            (int(colours[step, 0]), int(colours[step, 1]), int(colours[step, 2])),
            boxes_N4[steps == step],
            values=values_N[steps == step],
            what=str(names[0]),
        )
        for step in reversed(range(HEAT_STEPS))
        if (steps == step).any()
    )
    return Layer(f"heat_{file.stem}", f"Heat map: {names[0]} ({file.name})", groups)


def _valued_box(feature: dict[str, Any]) -> tuple[str, list[float], float] | None:
    """Name, rectangle (level-0 px) and value of a feature; None where it is no polygon or has no number."""
    geometry, properties = feature.get("geometry") or {}, feature.get("properties") or {}
    if geometry.get("type") != "Polygon":
        return None
    measured = properties.get("measurements") or {}
    pairs = [(one["name"], one["value"]) for one in measured] if isinstance(measured, list) else [*measured.items()]
    for name, value in [*pairs, *properties.items()]:
        if isinstance(value, int | float) and not isinstance(value, bool):
            x, y = np.asarray(geometry["coordinates"][0], float)[:, :2].T
            return str(name), [x.min(), y.min(), np.ptp(x), np.ptp(y)], float(value)
    return None


def heat_colours(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(N, 3) RGB of numbers from 0 to 1: dark blue to yellow, as bright as they are large (viridis)."""
    codes = np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)[:, None]
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(codes, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)[:, 0], np.uint8)


def layer_geojson(layer: Layer, record: SlideRecord) -> dict[str, Any]:
    """A FeatureCollection that QuPath opens: tiles with class, colour and number, counted as QuPath counts."""
    return {"type": "FeatureCollection", "features": [*_features(layer, record)]}


def _features(layer: Layer, record: SlideRecord) -> Iterator[dict[str, Any]]:
    left, top = record.bounds_origin
    for group in layer.groups:
        for number, (x, y, width, height) in enumerate(group.boxes.tolist()):
            x, y = x - left, y - top
            ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
            name = f"{record.slide_id}/{layer.name}/{group.label}/{x:.1f},{y:.1f}"
            measured = {} if group.values is None else {group.what.partition(";")[0]: float(group.values[number])}
            yield {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, name)),  # the same whenever it is made
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "objectType": "tile",
                    "classification": {"name": group.label, "color": group.colour},
                    "measurements": measured,
                },
            }


def layer_picture(thumbnail: RgbImage, record: SlideRecord, layer: Layer) -> RgbImage:
    """The thumbnail under the layer, with its legend below: (height, width, 3) uint8 RGB."""
    left, top, width, height = record.pictured_part
    scale = np.array([thumbnail.shape[1] / width, thumbnail.shape[0] / height])
    flat, covered = thumbnail.copy(), np.zeros(thumbnail.shape[:2], np.uint8)
    for group in layer.groups:
        starts = np.rint((group.boxes[:, :2] - (left, top)) * scale).astype(int)
        stops = np.rint((group.boxes[:, :2] + group.boxes[:, 2:] - (left, top)) * scale).astype(int) - 1
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            cv2.rectangle(flat, start, stop, group.colour, cv2.FILLED)
            cv2.rectangle(covered, start, stop, 255, cv2.FILLED)
    blended = cv2.addWeighted(thumbnail, 1 - MASK_ALPHA, flat, MASK_ALPHA, 0)
    picture = np.where(covered[..., None] > 0, blended, thumbnail).astype(np.uint8)
    entries = [(f"{group.label} ({len(group.boxes):,})", group.colour) for group in layer.groups]
    return with_legend(picture, f"{record.slide_id}   {layer.title}", entries)


def with_legend(picture: RgbImage, title: str, entries: Sequence[tuple[str, Colour]]) -> RgbImage:
    """The picture over a white band with a title and coloured entries."""
    line_px, column_px = 24, 260
    width = max(picture.shape[1], 480)
    columns = max(1, width // column_px)
    band: RgbImage = np.full((line_px * (1 + math.ceil(len(entries) / columns)) + 12, width, 3), 255, np.uint8)
    cv2.putText(band, title, (10, 20), FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    for number, (label, colour) in enumerate(entries):
        x, y = 10 + number % columns * column_px, line_px * (1 + number // columns) + 4
        cv2.rectangle(band, (x, y), (x + 16, y + 16), colour, cv2.FILLED)
        cv2.rectangle(band, (x, y), (x + 16, y + 16), (90, 90, 90), 1)
        cv2.putText(band, label, (x + 24, y + 13), FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    wide = np.full((picture.shape[0], width, 3), 255, np.uint8)
    wide[:, : picture.shape[1]] = picture
    return np.concatenate([wide, band])
