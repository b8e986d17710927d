"""Pictures for people: thumbnail and overlay of a slide, and the tissue contours for QuPath."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.atomic import atomic_write
from dino_path.config import TilesConfig
from dino_path.disk import parse_json
from dino_path.records.slide import SlideRecord
from dino_path.slides.overview import Overview, Part, read_overview
from dino_path.slides.slide import RgbImage, Slide
from dino_path.slides.tissue import TissueMask
from dino_path.tiles.geometry import Corners
from dino_path.tiles.images import decode_tile
from dino_path.tiles.layout import StoreFolder, damaged_slide
from dino_path.tiles.tile_table import TileTable, why_refused
from dino_path.tiles.writing import encode_jpeg

LONG_EDGE_PX = 1600  # of a thumbnail
SAMPLE_PX, SAMPLE_GAP_PX = 128, 6  # of the tiles below an overlay
FIXED_POINT = 8  # fractions of a pixel in which contours are drawn
MOST_LEVEL0_PX = 1e9  # of a coordinate
CONTOUR_COLOUR, KEPT_COLOUR, REFUSED_COLOUR = (0, 110, 60), (40, 120, 255), (255, 140, 0)
TISSUE_COLOUR = [0, 160, 90]
CAPTION_PX = 44  # height of the white band below the picture
FONT = cv2.FONT_HERSHEY_SIMPLEX


def scanned_part(slide: Slide, overview: Overview) -> Part:
    """The rectangle that the scanner recorded: MIRAX slides leave most of theirs empty. Left, top, width, height."""
    rows, columns = overview.scanned
    if overview.rgb[rows, columns].shape == overview.rgb.shape:
        return 0, 0, slide.width_level0, slide.height_level0
    x_px, y_px = overview.px_level0
    left, top = round(columns.start * x_px), round(rows.start * y_px)
    return left, top, max(1, round(columns.stop * x_px) - left), max(1, round(rows.stop * y_px) - top)


def write_thumbnail(path: Path, slide: Slide, overview: Overview, part: Part) -> None:
    """Write what was scanned of the slide as a small JPEG, its edges those of `part`."""
    with atomic_write(path, "wb") as stream:
        stream.write(encode_jpeg(_picture_of(slide, overview, part), 88, "420"))


def write_overlay(folder: StoreFolder, record: SlideRecord, table: TileTable, config: TilesConfig) -> None:
    """Write the overlay of a slide from its files in the store: thumbnail, contours, table and tar."""
    picture = marked_thumbnail(folder, record, table)
    caption = (
        f"{record.slide_id}   {record.num_tiles:,} of {record.num_candidates:,} tiles kept   {config.size_px} px at "
        f"{config.mpp:g} um/px   tissue {record.tissue_percent:.1f} %"
    )
    assert record.mpp is not None
    whole = _with_caption(picture, caption, um_per_px=record.mpp * record.pictured_part[2] / picture.shape[1])
    if len(table) and not config.coordinates_only:
        whole = np.concatenate([whole, _some_tiles(folder.tar_file(record.slide_id), table, record, whole.shape[1])])
    with atomic_write(folder.overlay_file(record.slide_id), "wb") as stream:
        stream.write(encode_jpeg(whole, 88, "420"))


def marked_thumbnail(folder: StoreFolder, record: SlideRecord, table: TileTable) -> RgbImage:
    """The scanned area with its tissue contour (green), kept tiles (blue) and tiles refused for quality (orange)."""
    thumbnail = folder.thumbnail_file(record.slide_id)
    picture = decode_tile(thumbnail.read_bytes(), str(thumbnail))
    height, width = picture.shape[:2]
    left, top, width_level0, height_level0 = record.pictured_part
    scale = (width / width_level0, height / height_level0)
    for corners, colour in ((table.corners[table.kept], KEPT_COLOUR), (table.corners[~table.kept], REFUSED_COLOUR)):
        _shade_tiles(picture, corners - (left, top), int(table.size_level0[0]) if len(table) else 1, scale, colour)
    rings = [
        np.rint((np.asarray(ring) + record.bounds_origin - (left, top)) * scale * FIXED_POINT).astype(np.int32)
        for ring in read_contours(folder.contour_file(record.slide_id))
    ]
    thickness = 2 if max(height, width) > 1200 else 1
    cv2.polylines(picture, rings, True, CONTOUR_COLOUR, thickness, cv2.LINE_AA, shift=FIXED_POINT.bit_length() - 1)
    return picture


def read_contours(file: Path) -> list[list[list[float]]]:
    """Closed rings around tissue, and around holes in it, in level-0 px, as `write_contours` wrote them.

    Raises:
        TileStoreError: the file is missing or damaged.
    """
    try:
        collection = parse_json(file.read_text(encoding="utf-8"))
        rings = [
            [[float(x), float(y)] for x, y in ring]
            for feature in collection["features"]
            for ring in feature["geometry"]["coordinates"]
        ]
        if not all(-MOST_LEVEL0_PX < number < MOST_LEVEL0_PX for ring in rings for point in ring for number in point):
            raise ValueError("a coordinate is on no slide")
        return rings
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise damaged_slide(file, f"{type(error).__name__}: {error}") from None


def _some_tiles(tar: Path, table: TileTable, record: SlideRecord, width: int) -> RgbImage:
    """A strip of tiles from all over the slide: kept ones, and after them refused ones with the reason."""
    places = width // (SAMPLE_PX + SAMPLE_GAP_PX)
    kept, refused = np.flatnonzero(table.kept), np.flatnonzero(~table.kept)
    num_refused = min(len(refused), max(places // 4, places - len(kept)))
    chosen = [*_spread(kept, places - num_refused), *_spread(refused, num_refused)]
    strip: RgbImage = np.full((SAMPLE_PX + CAPTION_PX // 2, width, 3), 255, dtype=np.uint8)
    with tar.open("rb") as stream:
        for place, number in enumerate(chosen):
            stream.seek(int(table.offset[number]))
            tile = decode_tile(stream.read(int(table.length[number])), f"tile {number} of {tar}")
            left = place * (SAMPLE_PX + SAMPLE_GAP_PX)
            small = cv2.resize(tile, (SAMPLE_PX, SAMPLE_PX), interpolation=cv2.INTER_AREA)
            strip[:SAMPLE_PX, left : left + SAMPLE_PX] = small
            if not table.kept[number]:
                right = left + SAMPLE_PX - 1
                cv2.rectangle(strip, (left, 0), (right, SAMPLE_PX - 1), REFUSED_COLOUR, 3)
                reason = why_refused(table, number, record.limits)
                cv2.putText(strip, reason, (left, SAMPLE_PX + 15), FONT, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def _spread(numbers: NDArray[np.int64], count: int) -> list[int]:
    """At most `count` of the numbers, evenly spread over them."""
    if count <= 0 or len(numbers) == 0:
        return []
    places = np.linspace(0, len(numbers) - 1, min(count, len(numbers)) + 2)[1:-1]
    return [int(numbers[round(place)]) for place in places] if len(numbers) > count else numbers.tolist()


def write_contours(path: Path, slide_id: str, mask: TissueMask, bounds_origin: tuple[int, int]) -> None:
    """Write the tissue as GeoJSON that QuPath opens: one polygon with holes per piece, in level-0 px."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(tissue_geojson(slide_id, mask, bounds_origin)) + "\n")


def tissue_geojson(slide_id: str, mask: TissueMask, bounds_origin: tuple[int, int]) -> dict[str, object]:
    """A FeatureCollection of annotation Polygons, full-resolution px, counted from `bounds_origin` as QuPath does."""
    features = [
        {
            "type": "Feature",
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{slide_id}/tissue/{number}")),  # the same whenever it is made
            "geometry": {"type": "Polygon", "coordinates": [_shifted(ring, bounds_origin) for ring in rings]},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": "Tissue", "color": TISSUE_COLOUR},
                "isLocked": False,
            },
        }
        for number, rings in enumerate(tissue_polygons(mask))
    ]
    return {"type": "FeatureCollection", "features": features}


def _shifted(ring: list[list[float]], origin: tuple[int, int]) -> list[list[float]]:
    return [[round(x - origin[0], 1), round(y - origin[1], 1)] for x, y in ring]


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


def _picture_of(slide: Slide, overview: Overview, part: Part) -> RgbImage:
    """The mask's own picture where it is large enough, else a finer one; at most LONG_EDGE_PX."""
    rgb = overview.rgb[overview.scanned]
    long_edge = max(rgb.shape[:2])
    longest_level0 = max(part[2:])
    if long_edge < 0.75 * min(LONG_EDGE_PX, longest_level0):
        return read_overview(slide, mpp=slide.mpp * longest_level0 / LONG_EDGE_PX, part=part).rgb
    if long_edge <= LONG_EDGE_PX:
        return rgb
    height, width = (max(1, round(edge * LONG_EDGE_PX / long_edge)) for edge in rgb.shape[:2])
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


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
