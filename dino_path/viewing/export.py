"""The viewer's overlays as files: GeoJSON for QuPath, and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.atomic import atomic_write
from dino_path.progress import Meter, meter
from dino_path.records.slide import SlideRecord
from dino_path.slides.slide import RgbImage
from dino_path.tiles.images import decode_tile
from dino_path.tiles.tile_table import TileTable
from dino_path.viewing.layers import layer_geojson, layer_picture, with_legend
from dino_path.viewing.pngs import png
from dino_path.viewing.viewer import Viewer

PATCH_ALPHA = 0.75  # of the colours of patches


def export_overlays(viewer: Viewer, numbers: list[int], out: Path) -> list[Path]:
    """Write all layers of these slides, `out/<slide_id>_<layer>.geojson` and `.png`.

    With a model there are two pictures more: `_patch_pca.png`, the colours of the patch tokens of all kept tiles, and
    `_attention.png`, what [CLS] attends to within each (mean of the heads, in multiples of even attention). Every tile
    goes through the model once more for each. Files of an earlier call are replaced.

    Raises:
        TileStoreError: a file of the store, or a tile, cannot be read.
    """
    files = []
    for number in numbers:
        record = viewer.records[number]
        thumbnail = decode_tile(viewer.thumbnail(number)[0], f"thumbnail of {record.slide_id}")
        for layer in viewer.layers(number):
            file = out / f"{record.slide_id}_{layer.name}.geojson"
            with atomic_write(file) as stream:
                json.dump(layer_geojson(layer, record), stream)
            picture = _write_png(file.with_suffix(".png"), layer_picture(thumbnail, record, layer))
            files += [file, picture]
        files += _patch_pictures(viewer, number, thumbnail, out)
    return files


def _patch_pictures(viewer: Viewer, number: int, thumbnail: RgbImage, out: Path) -> Iterator[Path]:
    model, record, table = viewer.model, viewer.records[number], viewer.table(number)
    if model is None or not record.num_tiles:
        return
    tiles, maps = viewer.tiles_of(number).tolist(), model.maps
    what = f"{record.slide_id}: "
    if not maps.no_tokens:
        with meter(f"{what}patch tokens", len(tiles), "tiles") as counter:
            picture = _mosaic(thumbnail, record, table, tiles, maps.colours_of, counter)
        shares = ", ".join(f"{share:.0%}" for share in maps.colours.variance)
        title = f"{what}patch tokens; red, green, blue: principal components with {shares} of the variance"
        yield _write_png(out / f"{record.slide_id}_patch_pca.png", with_legend(picture, title, []))
    if not maps.no_attention:
        with meter(f"{what}attention", len(tiles), "tiles") as counter:
            picture = _mosaic(thumbnail, record, table, tiles, maps.attention_of, counter)
        title = f"{what}attention of [CLS] within each tile, above uniform attention; each tile has its own scale"
        yield _write_png(out / f"{record.slide_id}_attention.png", with_legend(picture, title, []))


def _mosaic(
    thumbnail: RgbImage,
    record: SlideRecord,
    table: TileTable,
    tiles: list[int],
    colours_of: Callable[[int], NDArray[np.uint8]],
    counter: Meter,
) -> RgbImage:
    """The thumbnail under the colours of all kept tiles, (rows, columns, 3 or 4) each."""
    left, top, width, height = record.pictured_part
    scale = np.array([thumbnail.shape[1] / width, thumbnail.shape[0] / height])
    size = float(table.size_level0[0])
    picture: RgbImage = thumbnail.copy()
    for tile, corner in zip(tiles, table.corners[table.kept], strict=True):
        start = np.clip(np.rint((corner - (left, top)) * scale).astype(int), 0, None)
        stop = np.clip(np.rint((corner + size - (left, top)) * scale).astype(int), start + 1, picture.shape[1::-1])
        under = picture[start[1] : stop[1], start[0] : stop[0]]
        colours = colours_of(tile)
        counter.advance()
        if under.size == 0:
            continue
        grown = stop[0] - start[0] > colours.shape[1]
        interpolation = cv2.INTER_NEAREST if grown else cv2.INTER_AREA
        small = cv2.resize(colours, under.shape[1::-1], interpolation=interpolation).astype(np.float32)
        alpha = small[..., 3:] / 255 if small.shape[2] == 4 else PATCH_ALPHA
        under[:] = np.rint(under * (1 - alpha) + small[..., :3] * alpha)
    return picture


def _write_png(file: Path, picture: RgbImage) -> Path:
    with atomic_write(file, "wb") as stream:
        stream.write(png(picture))
    return file
