"""The XML of Aperio ImageScope, and HALO's .annotations, which is the same tree with other words in it.

<Annotations><Annotation Name="a layer"><Regions><Region Type=...><Vertices><Vertex X= Y=/> (HALO: <V X= Y=/>).
Coordinates are level-0 pixels. A region with NegativeROA="1" is cut out of its layer.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

import numpy as np

from dino_path.slides.annotations.outlines import Kind, MarkedObject, Ring, ellipse, polygon_of, rectangle

# Numbers are ImageScope's, words HALO's. Other types are outlines, ImageScope's 1 too: it is a rectangle by its name,
# and slides of TCGA have it on outlines of a thousand vertices.
FLAT_KINDS: dict[str, Kind] = {"3": "line", "4": "line", "Ruler": "line", "Arrow": "line", "Pin": "point"}
ELLIPSES = ("2", "Ellipse")


def imagescope_objects(root: Element) -> list[MarkedObject]:
    """The objects of an <Annotations> tree: one for each region, its layer's name as class.

    Raises:
        ValueError, KeyError: a coordinate is missing or no number.
    """
    return [
        _marked_object(region, _layer_name(layer))
        for layer in root.iter("Annotation")
        for region in layer.iterfind("Regions/Region")
    ]


def _layer_name(layer: Element) -> str | None:
    """The layer's name, else what its first attribute says (ImageScope's own is `Description`, with a value)."""
    attribute = layer.find("Attributes/Attribute")
    named = [layer.get("Name")]
    if attribute is not None:
        own_name = attribute.get("Name")
        named += [attribute.get("Value"), own_name if own_name != "Description" else None]
    return next((name for name in named if name), None)


def _marked_object(region: Element, layer_name: str | None) -> MarkedObject:
    class_name = layer_name or region.get("Text") or None
    vertices = [one for one in region.iterfind("Vertices/*") if one.tag in ("Vertex", "V")]
    points = np.array([[float(one.attrib["X"]), float(one.attrib["Y"])] for one in vertices]).reshape(-1, 2)
    kind = FLAT_KINDS.get(region.get("Type", "0"), "area")
    if kind == "area" and len(points) < 2:
        kind = "object without geometry"
    if kind != "area":
        return MarkedObject(class_name, (), kind)
    is_cut_out = region.get("NegativeROA", "0").lower() in ("1", "true")
    ring = _outline(points, region.get("Type", "0"))
    return MarkedObject(class_name, (polygon_of([ring], is_cut_out=is_cut_out),))


def _outline(points: Ring, shape: str) -> Ring:
    """Rectangles and ellipses are given by two corners, or by all four."""
    if shape in ELLIPSES and len(points) <= 4:
        return ellipse(points)
    return rectangle(points) if len(points) == 2 else points
