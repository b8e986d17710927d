"""The common form of all annotation formats: classified polygons in level-0 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]  # (V, 2) x, y in level-0 pixels
# What an object is. Only an area can be tissue or a region. `detection`: what a program found, cells above all;
# `missing core`: a tissue microarray's place without tissue.
Kind = Literal["area", "line", "point", "detection", "missing core", "object without geometry"]
ELLIPSE_CORNERS = 64


@dataclass(frozen=True, eq=False)
class Polygon:
    """One outline and its holes; bounds are (x_min, y_min, x_max, y_max). All in level-0 pixels.

    Compared and hashed by identity, because arrays have no hash.

    Attributes:
        is_cut_out: to be excluded. It is cut out of larger polygons; a smaller polygon may lie inside it.
    """

    rings: tuple[Ring, ...]
    bounds: tuple[float, float, float, float]
    is_cut_out: bool = False

    @property
    def area(self) -> float:
        """Level-0 pixels inside the outline and outside its holes."""
        outer, *holes = (_area(ring) for ring in self.rings)
        return outer - sum(holes)


@dataclass(frozen=True)
class MarkedObject:
    """One object of a file.

    Attributes:
        class_name: None where the file gives no class.
        polygons: empty where `kind` says that it is no area.
        counts_from_bounds: its (0, 0) is the corner of the part that was scanned, not that of level 0.
    """

    class_name: str | None
    polygons: tuple[Polygon, ...]
    kind: Kind = "area"
    counts_from_bounds: bool = False


def polygon_of(rings: Sequence[Ring], *, is_cut_out: bool = False) -> Polygon:
    """The polygon of an outer ring and its holes.

    Raises:
        ValueError: a coordinate is not finite.
    """
    if not all(np.isfinite(ring).all() for ring in rings):
        raise ValueError("a coordinate is not finite")
    (left, top), (right, bottom) = rings[0].min(axis=0), rings[0].max(axis=0)
    return Polygon(tuple(rings), (float(left), float(top), float(right), float(bottom)), is_cut_out)


def moved(polygon: Polygon, by: tuple[int, int]) -> Polygon:
    """The polygon `by` (x, y) level-0 pixels further."""
    (x, y), (left, top, right, bottom) = by, polygon.bounds
    rings = tuple(ring + by for ring in polygon.rings)
    return replace(polygon, rings=rings, bounds=(left + x, top + y, right + x, bottom + y))


def rectangle(corners: Ring) -> Ring:
    """(4, 2): the upright rectangle around some points."""
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def ellipse(corners: Ring) -> Ring:
    """(ELLIPSE_CORNERS, 2): the upright ellipse that fills the rectangle around some points."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)
    return np.asarray((low + high) / 2 + (high - low) / 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1))


def _area(ring: Ring) -> float:
    x, y = ring.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
