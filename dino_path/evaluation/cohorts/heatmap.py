"""Maps of attention: tiles as GeoJSON that QuPath opens, and a picture.

Shape suffixes: N tiles of a slide.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.atomic import atomic_write
from dino_path.evaluation.measures.confusion import Floats
from dino_path.features.bags import Rectangles
from dino_path.slides.overview import read_overview
from dino_path.slides.slide import Slide

Rgb = NDArray[np.uint8]

LONGEST_PX = 1600  # of a picture
LARGEST_TILE_PX = 32  # in a picture without its slide
MARGIN_PX, LEGEND_PX = 8, 56
COLOURS = cv2.COLORMAP_VIRIDIS  # dark violet to yellow: neither is a colour of H&E
OPACITY = 0.45  # of the colours over a slide


@dataclass(frozen=True)
class AttentionMap:
    """The networks' attention in one slide.

    Attributes:
        attention: (N,) as multiples of even attention: 1 is what each tile would get if all were alike.
        caption: one line below the picture.
    """

    rectangles: Rectangles
    attention: Floats
    caption: str

    @property
    def ranks(self) -> Floats:
        """Share (N,) of the tiles with less attention, 0 to 1. Colours show it, because few tiles get most."""
        ordered = np.sort(self.attention)
        low, high = (np.searchsorted(ordered, self.attention, side) for side in ("left", "right"))
        return (low + high - 1) / 2 / max(len(ordered) - 1, 1)

    def colours(self) -> Rgb:
        """RGB (N, 3) of the ranks."""
        grey_N1 = np.rint(255 * self.ranks).astype(np.uint8)[:, None]
        colours_N13: Rgb = cv2.applyColorMap(grey_N1, COLOURS)[..., ::-1].astype(np.uint8)
        return colours_N13[:, 0]


def half_of_attention(attention_N: Floats) -> float:
    """The smallest share of tiles with half of the attention; 0.5 if it is uniform."""
    descending = np.sort(attention_N)[::-1].cumsum()
    return float((np.searchsorted(descending, descending[-1] / 2) + 1) / len(descending))


def write_geojson(file: Path, drawn: AttentionMap, origin_level0: tuple[int, int] = (0, 0)) -> None:
    """The tiles as QuPath's tile objects, with `attention` and `attention rank` as measurements and in their colour.

    Args:
        origin_level0: what QuPath counts from, level-0 px: the corner of the scanned part in slides that have one.
    """
    edge = drawn.rectangles.edge_level0
    columns = drawn.rectangles.corners - origin_level0, drawn.attention, drawn.ranks, drawn.colours()
    features = [
        _feature(corner, edge, float(value), float(rank), colour.tolist())
        for corner, value, rank, colour in zip(*columns, strict=True)
    ]
    with atomic_write(file) as stream:
        json.dump({"type": "FeatureCollection", "features": features}, stream, separators=(",", ":"))


def write_picture(file: Path, drawn: AttentionMap, slide: Slide | None) -> None:
    """A PNG: the coloured tiles, over the slide if given, with a legend below.

    Raises:
        SlideError: the slide cannot be read.
    """
    picture = _with_legend(_tiles(drawn, slide), drawn)
    encoded = cv2.imencode(".png", picture[..., ::-1])[1]
    with atomic_write(file, "wb") as stream:
        stream.write(encoded.tobytes())


def _feature(corner: Floats, edge: float, attention: float, rank: float, colour: list[int]) -> dict[str, Any]:
    (left, top), (right, bottom) = corner.tolist(), (corner + edge).tolist()
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "tile",
            "color": colour,
            "measurements": {"attention": round(attention, 4), "attention rank": round(rank, 4)},
        },
    }


def _tiles(drawn: AttentionMap, slide: Slide | None) -> Rgb:
    """The part of the slide that has tiles, each in its colour."""
    corners_N2, edge = drawn.rectangles.corners, drawn.rectangles.edge_level0
    first, last = corners_N2.min(axis=0), corners_N2.max(axis=0) + edge
    width, height = last - first
    if slide is None:
        scale = min(LONGEST_PX / max(width, height), LARGEST_TILE_PX / edge)
        picture: Rgb = np.full((max(1, round(height * scale)), max(1, round(width * scale)), 3), 255, np.uint8)
        alpha = 1.0
    else:
        left, top = max(0, int(first[0])), max(0, int(first[1]))
        right, bottom = min(slide.width_level0, int(last[0])), min(slide.height_level0, int(last[1]))
        mpp = max(slide.mpp, slide.mpp * max(right - left, bottom - top) / LONGEST_PX)
        picture = read_overview(slide, mpp=mpp, part=(left, top, right - left, bottom - top)).rgb.copy()
        first, scale, alpha = np.array([left, top], np.float64), picture.shape[1] / (right - left), OPACITY
    for corner, colour in zip(corners_N2, drawn.colours(), strict=True):
        (x0, y0), (x1, y1) = np.rint((corner - first) * scale), np.rint((corner - first + edge) * scale)
        cell = picture[max(0, int(y0)) : max(int(y1), int(y0) + 1), max(0, int(x0)) : max(int(x1), int(x0) + 1)]
        cell[:] = np.rint(cell * (1 - alpha) + colour * alpha)
    return picture


def _with_legend(tiles: Rgb, drawn: AttentionMap) -> Rgb:
    """A margin around, and below the scale of colours and the caption."""
    height, width = tiles.shape[:2]
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.42
    (caption_px, _), _ = cv2.getTextSize(drawn.caption, font, size, 1)
    whole: Rgb = np.full(
        (height + 2 * MARGIN_PX + LEGEND_PX, max(width, caption_px, 330) + 2 * MARGIN_PX, 3), 255, np.uint8
    )
    whole[MARGIN_PX : MARGIN_PX + height, MARGIN_PX : MARGIN_PX + width] = tiles
    top = height + 2 * MARGIN_PX
    bar = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None].repeat(12, axis=0), COLOURS)[..., ::-1]
    words = "attention: lowest", "highest"
    (lead_px, _), _ = cv2.getTextSize(words[0], font, size, 1)
    start = MARGIN_PX + lead_px + 6
    whole = np.ascontiguousarray(
        np.pad(whole, ((0, 0), (0, max(0, start + 330 - whole.shape[1])), (0, 0)), constant_values=255)
    )
    whole[top + 4 : top + 16, start : start + 256] = bar
    for text, x, y in (
        (words[0], MARGIN_PX, top + 14),
        (words[1], start + 262, top + 14),
        (drawn.caption, MARGIN_PX, top + 38),
    ):
        cv2.putText(whole, text, (x, y), font, size, (0, 0, 0), 1, cv2.LINE_AA)
    return whole
