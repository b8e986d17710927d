"""What a person looks at: an overlay picture per slide, and the tissue contours for QuPath."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.run import atomic_write
from dino_path.slides.overview import Overview, read_overview
from dino_path.slides.slide import RgbImage, Slide
from dino_path.slides.tissue import TissueMask
from dino_path.tiles.geometry import Corners
from dino_path.tiles.writing import encode_jpeg

LONG_EDGE_PX = 1600  # of an overlay
CONTOUR_COLOUR, KEPT_COLOUR, REFUSED_COLOUR = (0, 110, 60), (40, 120, 255), (255, 140, 0)
TISSUE_COLOUR = [0, 160, 90]
CAPTION_PX = 44  # height of the white band below the picture
FONT = cv2.FONT_HERSHEY_SIMPLEX


def overlay_picture(
    slide: Slide, mask: TissueMask, kept: Corners, refused: Corners, size_level0: int, caption: str
) -> RgbImage:
    """The slide with its tissue contour (green), kept tiles (blue) and tiles refused for quality (orange)."""
    overview = _overview_for_overlay(slide, mask.overview)
    picture = overview.rgb.copy()
    scale = (1 / overview.px_level0[0], 1 / overview.px_level0[1])
    for corners, colour in ((kept, KEPT_COLOUR), (refused, REFUSED_COLOUR)):
        _shade_tiles(picture, corners, size_level0, scale, colour)
    height, width = picture.shape[:2]
    tissue = cv2.resize(mask.tissue.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(tissue, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(picture, contours, -1, CONTOUR_COLOUR, 2 if max(height, width) > 1200 else 1, cv2.LINE_AA)
    return _with_caption(picture, caption, um_per_px=slide.mpp * overview.px_level0[0])


def write_overlay(path: Path, picture: RgbImage) -> None:
    """Write an overlay as JPEG."""
    with atomic_write(path, "wb") as stream:
        stream.write(encode_jpeg(picture, 88))


def write_contours(path: Path, slide_id: str, mask: TissueMask) -> None:
    """Write the tissue as GeoJSON that QuPath opens: one polygon with holes per piece, in level-0 px."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(tissue_geojson(slide_id, mask)) + "\n")


def tissue_geojson(slide_id: str, mask: TissueMask) -> dict[str, object]:
    """A FeatureCollection of annotation Polygons, full-resolution px, origin at the slide's top-left corner."""
    features = [
        {
            "type": "Feature",
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{slide_id}/tissue/{number}")),  # the same whenever it is made
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": "Tissue", "color": TISSUE_COLOUR},
                "isLocked": False,
            },
        }
        for number, rings in enumerate(tissue_polygons(mask))
    ]
    return {"type": "FeatureCollection", "features": features}


def tissue_polygons(mask: TissueMask) -> list[list[list[list[float]]]]:
    """Per piece of tissue its closed rings in level-0 px, the outer one first, then its holes."""
    # Contours run through pixel centres; at twice the size they lie within a quarter of a mask pixel of the edge, and
    # a piece of one pixel still has an area.
    double = np.repeat(np.repeat(mask.tissue.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.asarray(mask.overview.px_level0)
    polygons: dict[int, list[list[list[float]]]] = {}
    for number, contour in enumerate(contours):
        simple = cv2.approxPolyDP(contour, 1.0, closed=True)
        ring = ((simple[:, 0, :] + 0.5) / 2 * scale).round(1)
        if len(ring) < 3:
            continue
        closed = [*ring.tolist(), ring[0].tolist()]
        parent = int(hierarchy[0][number][3])
        if parent < 0:
            polygons.setdefault(number, []).insert(0, closed)
        else:
            polygons.setdefault(parent, []).append(closed)
    return list(polygons.values())


def _overview_for_overlay(slide: Slide, overview: Overview) -> Overview:
    """The mask's own picture where it is large enough, else a finer one; at most LONG_EDGE_PX."""
    long_edge = max(overview.rgb.shape[:2])
    longest_level0 = max(slide.width_level0, slide.height_level0)
    if long_edge < 0.75 * min(LONG_EDGE_PX, longest_level0):
        return read_overview(slide, mpp=slide.mpp * longest_level0 / LONG_EDGE_PX)
    if long_edge <= LONG_EDGE_PX:
        return overview
    height, width = (max(1, round(edge * LONG_EDGE_PX / long_edge)) for edge in overview.rgb.shape[:2])
    small = np.asarray(cv2.resize(overview.rgb, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    px_level0 = (slide.width_level0 / width, slide.height_level0 / height)
    return Overview(small, np.ones((height, width), dtype=np.bool_), px_level0)


def _shade_tiles(
    picture: RgbImage, corners: Corners, size_level0: int, scale: tuple[float, float], colour: tuple[int, int, int]
) -> None:
    """Tint the tiles lightly and outline them, in place."""
    factor = np.asarray(scale)
    starts = np.rint(corners * factor).astype(int)
    stops = np.rint((corners + size_level0) * factor).astype(int) - 1
    shaded = np.zeros(picture.shape[:2], dtype=np.uint8)
    lines = np.zeros_like(shaded)
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        cv2.rectangle(shaded, start, stop, 255, cv2.FILLED)
        cv2.rectangle(lines, start, stop, 255, 1)
    line_weight = 0.4 if size_level0 * scale[0] >= 24 else 0.2  # small tiles would be all line
    flat = np.full_like(picture, colour)
    for where, weight in ((shaded, 0.1), (lines, line_weight)):
        cv2.copyTo(cv2.addWeighted(picture, 1 - weight, flat, weight, 0), where, picture)


def _with_caption(picture: RgbImage, caption: str, *, um_per_px: float) -> RgbImage:
    """A white band below, with the caption and a scale bar."""
    width = max(picture.shape[1], 480)
    band: NDArray[np.uint8] = np.full((CAPTION_PX, width, 3), 255, dtype=np.uint8)
    bar_um = _round_length_um(um_per_px * width * 0.2)
    bar_px = round(bar_um / um_per_px)
    label = f"{bar_um / 1000:g} mm" if bar_um >= 1000 else f"{bar_um:g} um"
    cv2.rectangle(band, (width - 12 - bar_px, 12), (width - 12, 16), (0, 0, 0), cv2.FILLED)
    cv2.putText(band, label, (width - 12 - bar_px, 34), FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    font_scale = min(0.55, 0.55 * (width - 36 - bar_px) / max(1, cv2.getTextSize(caption, FONT, 0.55, 1)[0][0]))
    cv2.putText(band, caption, (10, 28), FONT, font_scale, (0, 0, 0), 1, cv2.LINE_AA)
    wide = cv2.copyMakeBorder(picture, 0, 0, 0, width - picture.shape[1], cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return np.concatenate([np.asarray(wide, dtype=np.uint8), band])


def _round_length_um(at_most_um: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is at most so long."""
    power = 10.0 ** np.floor(np.log10(at_most_um))
    return float(max(step * power for step in (1, 2, 5) if step * power <= at_most_um))
