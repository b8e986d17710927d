"""GeoJSON of slides, as QuPath, TRIDENT and others write it: classes and polygons in level-0 pixels."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dino_path.errors import DataError
from dino_path.slides.annotations.outlines import Kind, MarkedObject, Polygon, polygon_of

Feature = dict[str, Any]

DETECTIONS = {"detection", "cell", "tile"}  # QuPath's object types for what a program found
QUPATH_02_ID = re.compile(r"(?:Path)?(Annotation|Detection|Cell|Tile|TMACore|Root)Object")
FLAT_KINDS: dict[str, Kind] = {"Point": "point", "MultiPoint": "point", "LineString": "line", "MultiLineString": "line"}


def read_geojson(file: Path) -> list[MarkedObject]:
    """All features of a GeoJSON file: a FeatureCollection, a list of features, one feature, or a geometry alone.

    A feature without geometry, or with an empty one, is valid and has no polygons.

    Raises:
        DataError: the file cannot be read, or is not GeoJSON.
    """
    try:
        content = file.read_bytes()
        if file.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        return [_marked_object(feature) for feature in _features(json.loads(content.decode("utf-8-sig")))]
    except (
        OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError,
        OverflowError,  # an integer larger than any float
    ) as error:  # fmt: skip
        raise DataError(
            str(file),
            f"is not GeoJSON as QuPath exports it ({type(error).__name__}: {' '.join(str(error).split())[:150]}).",
            "A FeatureCollection of polygons is needed, classes in properties.classification.name.",
            "Export the annotations again (File, Export objects as GeoJSON).",
        ) from None


def _features(content: Any) -> list[Feature]:
    if isinstance(content, list):
        return content
    match content["type"]:
        case "FeatureCollection":
            features: list[Feature] = content["features"]
            return features
        case "Feature":
            return [content]
        case "Polygon" | "MultiPolygon" | "GeometryCollection":
            return [{"geometry": content}]
    raise ValueError(f"type is {content['type']!r}")


def _marked_object(feature: Feature) -> MarkedObject:
    geometry, object_type = feature["geometry"], _qupath_type(feature)
    polygons = tuple(_polygons(geometry))
    kind: Kind = "area"
    if not polygons:
        kind = _kind_without_area(geometry)
    elif object_type in DETECTIONS:
        kind = "detection"
    elif (feature.get("properties") or {}).get("isMissing") is True:
        kind = "missing core"
    is_from_qupath = object_type is not None
    return MarkedObject(_class_name(feature), polygons if kind == "area" else (), kind, is_from_qupath)


def _class_name(feature: Feature) -> str | None:
    """`properties.classification.name`; QuPath 0.4 and later write `names` for derived classes, GrandQC a string."""
    classification = (feature.get("properties") or {}).get("classification") or {}
    if isinstance(classification, str):
        return classification
    name = classification.get("name") or ": ".join(classification.get("names") or ())
    if not isinstance(name, str):
        raise ValueError(f"the class name {str(name)[:40]} is not text")
    return name or None


def _qupath_type(feature: Feature) -> str | None:
    """QuPath's name of the object's type, such as `annotation` or `cell`; None for what other tools wrote.

    QuPath 0.4 and later write `objectType`, 0.3 `object_type`, and 0.2 the name of its Java class as the id.
    """
    properties = feature.get("properties") or {}
    if named := properties.get("objectType") or properties.get("object_type"):
        return str(named).lower()
    match = QUPATH_02_ID.fullmatch(str(feature.get("id")))
    return match[1].lower() if match else None


def _kind_without_area(geometry: Feature | None) -> Kind:
    if geometry is None:
        return "object without geometry"
    parts = geometry.get("geometries") or [geometry]
    return next((FLAT_KINDS[part["type"]] for part in parts if part["type"] in FLAT_KINDS), "object without geometry")


def _polygons(geometry: Feature | None) -> Iterator[Polygon]:
    """The polygons of a geometry; points, lines and empty geometries have none."""
    if geometry is None:
        return
    match geometry["type"]:
        case "Polygon":
            yield from _polygon(geometry["coordinates"])
        case "MultiPolygon":
            for coordinates in geometry["coordinates"]:
                yield from _polygon(coordinates)
        case "GeometryCollection":
            for part in geometry["geometries"]:
                yield from _polygons(part)
        case other if other not in FLAT_KINDS:
            raise ValueError(f"{other!r} is not a geometry")


def _polygon(coordinates: list[Any]) -> Iterator[Polygon]:
    """One polygon; none where its outer ring is empty."""
    if coordinates and coordinates[0]:
        rings = [np.array([point[:2] for point in ring], np.float64).reshape(-1, 2) for ring in coordinates if ring]
        yield polygon_of(rings)
