"""ASAP's XML, in which CAMELYON and others are published. Classes are its groups; coordinates are level-0 pixels."""

from __future__ import annotations

from xml.etree.ElementTree import Element

import numpy as np

from dino_path.slides.annotations.outlines import Kind, MarkedObject, Ring, polygon_of

FLAT_KINDS: dict[str, Kind] = {"Dot": "point", "PointSet": "point", "Measurement": "line"}


def asap_objects(root: Element) -> list[MarkedObject]:
    """The objects of an <ASAP_Annotations> tree.

    Raises:
        ValueError, KeyError: a coordinate is missing or no number.
    """
    return [_marked_object(annotation) for annotation in root.iter("Annotation")]


def _marked_object(annotation: Element) -> MarkedObject:
    group = annotation.get("PartOfGroup", "None")
    class_name = None if group in ("", "None") else group
    points = _points(annotation)
    kind = FLAT_KINDS.get(annotation.get("Type", "Polygon"), "area")
    if kind == "area" and len(points) < 3:
        kind = "object without geometry"
    return MarkedObject(class_name, (polygon_of([points]),) if kind == "area" else (), kind)


def _points(annotation: Element) -> Ring:
    """(V, 2) in the order given by the file's `Order`, which may differ from their order in the file."""
    coordinates = sorted(annotation.iter("Coordinate"), key=lambda one: int(one.get("Order", "0")))
    return np.array([[_number(one.attrib["X"]), _number(one.attrib["Y"])] for one in coordinates]).reshape(-1, 2)


def _number(text: str) -> float:
    """ASAP writes numbers as the machine's language does: 543,02 on a Dutch or German one."""
    return float(text.replace(",", "."))
