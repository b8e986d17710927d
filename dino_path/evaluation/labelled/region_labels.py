"""Which class each tile has: from outlines, or from a picture of class numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dino_path.slides.annotations.outlines import Polygon
from dino_path.slides.annotations.painting import paint_polygons

# Edge of the raster on which a tile's coverage is counted. Regions come out wider by half a pixel on each side: 0.4 %
# of a tile at most.
RASTER_PX = 256

Regions = Mapping[str, Sequence[Polygon]]  # by class


def label_tiles(
    squares: NDArray[np.integer], regions: Regions, min_fraction: float
) -> tuple[list[str | None], Counter[tuple[str, ...]]]:
    """The class of each tile: the one whose regions cover at least `min_fraction` of it; the innermost of several.

    A region lies inside another when that covers at least `min_fraction` of it. Where regions only cross, or are drawn
    twice with two classes, nothing says which is meant.

    Args:
        squares: (N, 3) x and y of the top-left corner, and edge, in level-0 pixels.

    Returns:
        N classes, None where there is none or no innermost one; and how many tiles lie in which classes without one.
    """
    labels: list[str | None] = []
    undecided: Counter[tuple[str, ...]] = Counter()
    nesting = _Nesting(min_fraction)
    for x, y, size in squares.tolist():
        names = [name for name, polygons in regions.items() if covered_share(x, y, size, polygons) >= min_fraction]
        label = names[0] if len(names) == 1 else None
        if len(names) > 1:
            label = nesting.innermost({name: _region_at(x, y, size, regions[name], min_fraction) for name in names})
            undecided.update([tuple(sorted(names))] if label is None else [])
        labels.append(label)
    return labels, undecided


class _Nesting:
    """Which regions lie inside which; cached, because many tiles need the same pair."""

    def __init__(self, min_fraction: float) -> None:
        self._min_fraction = min_fraction
        self._known: dict[tuple[tuple[Polygon, ...], tuple[Polygon, ...]], bool] = {}

    def innermost(self, regions: Mapping[str, tuple[Polygon, ...]]) -> str | None:
        """The class whose region lies inside all others, none of which lies inside it."""
        for name, region in regions.items():
            others = [other for key, other in regions.items() if key != name]
            if all(self._is_inside(region, other) and not self._is_inside(other, region) for other in others):
                return name
        return None

    def _is_inside(self, inner: tuple[Polygon, ...], outer: tuple[Polygon, ...]) -> bool:
        if (inner, outer) not in self._known:
            self._known[inner, outer] = _share_inside(inner, outer) >= self._min_fraction
        return self._known[inner, outer]


def _region_at(
    x: float, y: float, size: float, polygons: Sequence[Polygon], min_fraction: float
) -> tuple[Polygon, ...]:
    """The smallest polygon that covers the tile by itself; all that touch it, where it takes several."""
    touching = [
        one
        for one in polygons
        if one.bounds[0] < x + size and one.bounds[2] > x and one.bounds[1] < y + size and one.bounds[3] > y
    ]
    alone = [one for one in touching if not one.is_cut_out and covered_share(x, y, size, [one]) >= min_fraction]
    return (min(alone, key=lambda one: one.area),) if alone else tuple(touching)


def _share_inside(inner: Sequence[Polygon], outer: Sequence[Polygon]) -> float:
    """Share of the inner region's area that the outer one covers; to about 0.01."""
    bounds = np.array([one.bounds for one in inner])
    corner, end = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
    px_level0 = (end - corner) / RASTER_PX
    where = (float(corner[0]), float(corner[1])), (float(px_level0[0]), float(px_level0[1])), (RASTER_PX, RASTER_PX)
    painted = paint_polygons(inner, *where) > 0
    return float((paint_polygons(outer, *where)[painted] > 0).mean()) if painted.any() else 0.0


def label_tiles_by_mask(
    squares: NDArray[np.integer],
    mask_HW: NDArray[np.integer],
    size_level0: tuple[int, int],
    classes: Mapping[str, int],
    min_fraction: float,
) -> list[str | None]:
    """The class whose number has at least `min_fraction` of each tile's mask pixels; None where there is none.

    A mask pixel belongs to the tile that holds its centre. A tile smaller than a mask pixel has the class of the pixel
    under its own centre.

    Args:
        squares: (N, 3) as for `label_tiles`.
        mask_HW: class numbers over the whole slide, 0 where there is none.
        size_level0: the slide's width and height.
        classes: numbers by class name; other numbers mean no class. Empty: every number but 0 is a class, named by it.
    """
    height, width = mask_HW.shape
    names = {number: name for name, number in classes.items()}
    per_px = np.array([width / size_level0[0], height / size_level0[1]])
    labels: list[str | None] = []
    for x, y, size in squares.tolist():
        first, last = np.ceil(np.array([[x, y], [x + size, y + size]]) * per_px - 0.5).astype(int)
        if (last <= first).any():
            first = np.floor(np.array([x + size / 2, y + size / 2]) * per_px).astype(int)
            last = first + 1
        numbers, counts = np.unique(mask_HW[first[1] : last[1], first[0] : last[0]], return_counts=True)
        shares = {
            names.get(number, None if names or number == 0 else str(number)): count / counts.sum()
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        }
        labels.append(next((name for name, share in shares.items() if name and share >= min_fraction), None))
    return labels


def covered_share(x_level0: float, y_level0: float, size_level0: float, polygons: Sequence[Polygon]) -> float:
    """Share of a square tile that lies in at least one polygon and outside its holes; to about 0.01."""
    px_level0 = size_level0 / RASTER_PX
    raster = paint_polygons(polygons, (x_level0, y_level0), (px_level0, px_level0), (RASTER_PX, RASTER_PX))
    return float(raster.mean()) / 255
