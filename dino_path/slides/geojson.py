"""GeoJSON of slides, as QuPath, TRIDENT and others write it: classes and polygons in level-0 pixels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.errors import DataError

SHIFT = 8  # fixed-point bits of cv2.fillPoly coordinates
# Coordinates far outside the raster are clipped: cv2 computes in 32-bit integers. The factor keeps slopes near it.
MAX_RASTER_COORDINATE = 2**20

Ring = NDArray[np.float64]  # (V, 2) x, y in level-0 pixels


@dataclass(frozen=True)
class Polygon:
    """One outline and its holes; bounds are (x_min, y_min, x_max, y_max). All in level-0 pixels."""

    rings: tuple[Ring, ...]
    bounds: tuple[float, float, float, float]


@dataclass(frozen=True)
class MarkedObject:
    """One feature of a file.

    Attributes:
        class_name: None where the file gives no class.
        polygons: empty for points and lines.
    """

    class_name: str | None
    polygons: tuple[Polygon, ...]


def read_objects(file: Path, *, qupath_origin: tuple[int, int]) -> list[MarkedObject]:
    """All features of a GeoJSON file: a FeatureCollection, a bare list of features, or one feature.

    Args:
        qupath_origin: `Slide.bounds_origin`: QuPath counts from there, other tools from the corner of level 0. QuPath's
            features are told by their `objectType`.

    Raises:
        DataError: the file cannot be read, or is not GeoJSON.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        return [
            MarkedObject(
                _class_name(feature),
                tuple(_polygons(feature["geometry"], qupath_origin if _is_from_qupath(feature) else (0, 0))),
            )
            for feature in _features(content)
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise DataError(
            str(file),
            f"is not GeoJSON as QuPath exports it ({type(error).__name__}: {' '.join(str(error).split())[:150]}).",
            "A FeatureCollection of polygons is needed, classes in properties.classification.name.",
            "Export the annotations again (File, Export objects as GeoJSON).",
        ) from None


def paint_polygons(
    polygons: Iterable[Polygon],
    corner_level0: tuple[float, float],
    px_level0: tuple[float, float],
    shape: tuple[int, int],
) -> NDArray[np.uint8]:
    """A raster that is 255 in at least one polygon and outside its holes, else 0.

    cv2 fills the pixels on an outline too, which makes a polygon wider by half a raster pixel on each side.

    Args:
        corner_level0: (x, y) of the raster's top-left corner, in level-0 px.
        px_level0: (x, y) size of a raster pixel, in level-0 px.
        shape: (H, W) of the raster.
    """
    raster = np.zeros(shape, np.uint8)
    near_x, near_y = corner_level0
    far_x, far_y = near_x + shape[1] * px_level0[0], near_y + shape[0] * px_level0[1]
    for polygon in polygons:
        left, top, right, bottom = polygon.bounds
        if left >= far_x or right <= near_x or top >= far_y or bottom <= near_y:
            continue
        # One call fills by the even-odd rule, which leaves holes as they are; a further polygon is painted over.
        outlines = [_raster_points(ring, corner_level0, px_level0) for ring in polygon.rings if len(ring) > 2]
        cv2.fillPoly(raster, outlines, 255, shift=SHIFT)
    return raster


def _raster_points(ring: Ring, corner_level0: tuple[float, float], px_level0: tuple[float, float]) -> NDArray[np.int32]:
    # A pixel's centre is a whole number for cv2: the raster's left edge lies at -0.5.
    points = (ring - corner_level0) / px_level0 - 0.5
    limit = MAX_RASTER_COORDINATE
    fixed: NDArray[np.int32] = np.rint(np.clip(points, -limit, limit) * 2**SHIFT).astype(np.int32)
    return fixed


def _features(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, list):
        return content
    if content["type"] == "FeatureCollection":
        features: list[dict[str, Any]] = content["features"]
        return features
    if content["type"] == "Feature":
        return [content]
    raise ValueError(f"type is {content['type']!r}")


def _class_name(feature: dict[str, Any]) -> str | None:
    """`properties.classification.name`; QuPath 0.4 and later write `names` for derived classes, GrandQC a string."""
    classification = (feature.get("properties") or {}).get("classification") or {}
    if isinstance(classification, str):
        return classification
    name = classification.get("name") or ": ".join(classification.get("names", ()))
    return name or None


def _is_from_qupath(feature: dict[str, Any]) -> bool:
    return "objectType" in (feature.get("properties") or {})


def _polygons(geometry: dict[str, Any], origin: tuple[int, int]) -> Iterator[Polygon]:
    """The polygons of a geometry; points and lines have none."""
    match geometry["type"]:
        case "Polygon":
            yield _polygon(geometry["coordinates"], origin)
        case "MultiPolygon":
            for coordinates in geometry["coordinates"]:
                yield _polygon(coordinates, origin)
        case "GeometryCollection":
            for part in geometry["geometries"]:
                yield from _polygons(part, origin)


def _polygon(coordinates: list[Any], origin: tuple[int, int]) -> Polygon:
    rings = tuple(np.array([point[:2] for point in ring], np.float64).reshape(-1, 2) + origin for ring in coordinates)
    if not all(np.isfinite(ring).all() for ring in rings):
        raise ValueError("a coordinate is not finite")
    (left, top), (right, bottom) = rings[0].min(axis=0), rings[0].max(axis=0)
    return Polygon(rings, (float(left), float(top), float(right), float(bottom)))
