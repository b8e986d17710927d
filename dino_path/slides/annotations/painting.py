"""Polygons -> raster."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.slides.annotations.outlines import Polygon, Ring

SHIFT = 8  # fixed-point bits of cv2.fillPoly coordinates
# Coordinates far outside the raster are clipped: cv2 computes in 32-bit integers. The factor keeps slopes near it.
MAX_RASTER_COORDINATE = 2**20


def paint_polygons(
    polygons: Iterable[Polygon],
    corner_level0: tuple[float, float],
    px_level0: tuple[float, float],
    shape: tuple[int, int],
) -> NDArray[np.uint8]:
    """A raster that is 255 in at least one polygon and outside its holes, else 0.

    Areas to be excluded are 0, except where a smaller polygon lies inside. cv2 fills the pixels on an outline too,
    which makes a polygon wider by half a raster pixel on each side.

    Args:
        corner_level0: (x, y) of the raster's top-left corner, in level-0 px.
        px_level0: (x, y) size of a raster pixel, in level-0 px.
        shape: (H, W) of the raster.
    """
    raster = np.zeros(shape, np.uint8)
    near_x, near_y = corner_level0
    far_x, far_y = near_x + shape[1] * px_level0[0], near_y + shape[0] * px_level0[1]
    in_order = list(polygons)
    if any(polygon.is_cut_out for polygon in in_order):
        in_order.sort(key=lambda polygon: polygon.area, reverse=True)
    for polygon in in_order:
        left, top, right, bottom = polygon.bounds
        if left >= far_x or right <= near_x or top >= far_y or bottom <= near_y:
            continue
        # One call fills by the even-odd rule, which leaves holes as they are; a further polygon is painted over.
        outlines = [_raster_points(ring, corner_level0, px_level0) for ring in polygon.rings if len(ring) > 2]
        cv2.fillPoly(raster, outlines, 0 if polygon.is_cut_out else 255, shift=SHIFT)
    return raster


def _raster_points(ring: Ring, corner_level0: tuple[float, float], px_level0: tuple[float, float]) -> NDArray[np.int32]:
    # A pixel's centre is a whole number for cv2: the raster's left edge lies at -0.5.
    points = (ring - corner_level0) / px_level0 - 0.5
    limit = MAX_RASTER_COORDINATE
    fixed: NDArray[np.int32] = np.rint(np.clip(points, -limit, limit) * 2**SHIFT).astype(np.int32)
    return fixed
