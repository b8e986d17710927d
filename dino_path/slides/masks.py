"""Tissue masks that other tools made: PNG pictures of the whole slide, or GeoJSON polygons in level-0 px."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.errors import DataError, SlideError
from dino_path.slides.geojson import Polygon, paint_polygons, read_objects
from dino_path.slides.overview import Overview
from dino_path.slides.slide import Slide

# Where a mask may lie in `slides.masks`: {name} is the slide's id, or its file name with or without extension.
PLACES = (
    "{name}.png",
    "{name}.geojson",  # QuPath; TRIDENT's contours_geojson
    "contours_geojson/{name}.geojson",
    "{name}_contours.geojson",  # the HEST data's tissue_seg
    "{name}_MASK.png",  # GrandQC's tis_det_mask
    "tis_det_mask/{name}_MASK.png",
    "{name}_mask.png",  # GrandQC's mask_qc
    "mask_qc/{name}_mask.png",
    "{name}_mask_use.png",
    "{name}/{name}_mask_use.png",  # HistoQC
)
GRANDQC_ARTEFACTS = {"Fold", "Darkspot & Foreign Object", "PenMarking", "Edge & Air Bubble", "OOF"}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_GREY = 0  # colour type; all others are decoded to four channels at most
LARGEST_MASK_BYTES = 2**30  # decoded; a slide of 80 x 80 mm has 100 million pixels at 8 um/px
ASPECT_TOLERANCE = 0.02
SUPERSAMPLING = 4  # polygons are painted at this multiple of the overview: right to a sixth of its pixels
STRIP_PX = 2**26  # of the supersampled raster, 64 MB, are in memory at a time


def find_mask(folder: Path, slide_id: str, slide_path: Path) -> Path | None:
    """The slide's mask in a folder of masks; None when there is none.

    Names are the slide's id or file name with .png or .geojson, and what GrandQC, HistoQC, TRIDENT and HEST write.

    Raises:
        SlideError: several files could be meant.
    """
    names = {slide_id, slide_path.name, slide_path.stem, slide_path.stem.removesuffix(".ome")}
    files = [folder / place.format(name=name) for name in sorted(names) for place in PLACES]
    # By inode: where upper and lower case are one, a file has two of these names.
    found = {file.stat().st_ino: file for file in files if file.is_file()}
    if len(found) > 1:
        raise SlideError(
            slide_path.name,
            f"{len(found)} masks could be meant: {', '.join(sorted(map(str, found.values())))}.",
            "Each slide may have one mask.",
            "Set slides.masks to the folder that holds the right ones alone.",
        )
    return next(iter(found.values()), None)


def mask_digest(file: Path) -> str:
    """The first 16 hex digits of the file's SHA-256.

    Raises:
        SlideError: the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise _unreadable(file, error) from None


def read_mask(
    file: Path, slide: Slide, overview: Overview, *, values: tuple[int, ...] | None, classes: tuple[str, ...] | None
) -> NDArray[np.bool_]:
    """Tissue as the file says, where the scanner recorded something.

    Args:
        values: of a PNG's pixels that mean tissue; None: all but 0. Pictures of 1, 2 or 4 bits count from 0 to 255.
        classes: of a GeoJSON's objects that mean tissue; None: all polygons, with a class or without.

    Returns:
        (H, W) bool, the grid of `overview`; a pixel is tissue when at least half of it is.

    Raises:
        SlideError: the file cannot be read, is of another type or not of this slide, or has none of `classes`.
    """
    match file.suffix.lower():
        case ".png":
            tissue = _read_png(file, slide, overview, values)
        case ".geojson" | ".json":
            tissue = _read_geojson(file, slide, overview, classes)
        case other:
            raise SlideError(
                str(file),
                f"{other or 'a file without extension'} is no format of masks.",
                "A .png that covers the whole slide, or a .geojson in level-0 pixels is needed.",
                "Convert the mask.",
            )
    return tissue & overview.covered


def _read_png(file: Path, slide: Slide, overview: Overview, values: tuple[int, ...] | None) -> NDArray[np.bool_]:
    _refuse_png(file, slide.name, (slide.width_level0, slide.height_level0))
    if values is None and file.name.lower() == f"{slide.name}_mask.png".lower():
        raise SlideError(
            str(file),
            "is named as GrandQC names its masks, in which 'all but 0' is not the tissue.",
            "In its tis_det_mask 0 is tissue and 1 is not; in its mask_qc 1 is clean tissue, 2 to 6 are artefacts,"
            " 0 and 7 are background.",
            "Set tiles.mask_values to [0] for tis_det_mask, or to [1] for mask_qc.",
        )
    picture = _decode(file)
    opaque = picture[..., 3] > 0 if picture.ndim == 3 and picture.shape[2] == 4 else None
    if picture.ndim == 3:
        picture = _one_channel(file, picture[..., :3], values)
    is_tissue = np.zeros(np.iinfo(picture.dtype).max + 1, dtype=np.uint8)
    is_tissue[1:] = 255 if values is None else 0
    is_tissue[[value for value in values or () if 0 <= value < len(is_tissue)]] = 255
    tissue = is_tissue[picture]
    if opaque is not None:
        tissue *= opaque
    return _at_least_half(tissue, overview.covered.shape)


def read_labels(file: Path, name: str, size_level0: tuple[int, int]) -> NDArray[Any]:
    """(H, W) class numbers of a grey PNG that covers the whole slide `name` of `size_level0` (width, height) px.

    Raises:
        SlideError: no such PNG, another shape than the slide, or a colour picture.
    """
    _refuse_png(file, name, size_level0)
    picture = _decode(file)
    if picture.ndim == 3:
        raise SlideError(
            str(file),
            "is a colour picture.",
            "Class numbers are read from grey pictures.",
            "Save it as a grey picture of labels, 0 where there is none.",
        )
    return picture


def _decode(file: Path) -> NDArray[Any]:
    try:
        picture: NDArray[Any] | None = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _unreadable(file, error) from None
    if picture is None:
        raise _unreadable(file, ValueError("the PNG is damaged"))
    return picture


def _one_channel(file: Path, colours: NDArray[Any], values: tuple[int, ...] | None) -> NDArray[Any]:
    """Any channel of a picture that is grey; the brightest where every colour but black is tissue."""
    if values is None:
        return np.asarray(colours.max(axis=2))
    if not (np.array_equal(colours[..., 0], colours[..., 1]) and np.array_equal(colours[..., 1], colours[..., 2])):
        raise SlideError(
            str(file),
            f"is a colour picture, in which tiles.mask_values={list(values)} means nothing.",
            "Values are looked for in grey pictures.",
            "Save the mask as a grey picture of labels; or leave tiles.mask_values out: all but black is tissue then.",
        )
    return colours[..., 0]


def _refuse_png(file: Path, name: str, size_level0: tuple[int, int]) -> None:
    """Refuse by the header what is no PNG, has another shape than the slide, or would not fit in memory."""
    try:
        with file.open("rb") as stream:
            header = stream.read(26)
    except OSError as error:
        raise _unreadable(file, error) from None
    if len(header) < 26 or not header.startswith(PNG_SIGNATURE):
        raise _unreadable(file, ValueError("it is no PNG"))
    width, height, bits, colour_type = struct.unpack(">IIBB", header[16:])
    if width * height * (1 if colour_type == PNG_GREY else 4) * (2 if bits == 16 else 1) > LARGEST_MASK_BYTES:
        raise SlideError(
            str(file),
            f"the mask has {width} x {height} pixels.",
            f"It must fit into {LARGEST_MASK_BYTES:,} bytes.",
            "Save it smaller (8 um/px is enough), as a grey picture with 8 bits.",
        )
    # Both are equal when the shapes agree; a pixel more or less in either edge moves them by an edge of the slide.
    width_level0, height_level0 = size_level0
    wide, high = width * height_level0, height * width_level0
    slack = ASPECT_TOLERANCE * max(wide, high) + max(size_level0)
    if abs(wide - high) > slack:
        raise SlideError(
            str(file),
            f"the mask ({width} x {height} pixels) has another shape than {name} ({width_level0} x {height_level0}).",
            "A mask must cover the whole slide, as OpenSlide opens it, and nothing else.",
            "Check that it belongs to this slide, and that the tool did not crop, turn or pad it.",
        )


def _read_geojson(file: Path, slide: Slide, overview: Overview, classes: tuple[str, ...] | None) -> NDArray[np.bool_]:
    try:
        objects = read_objects(file, qupath_origin=slide.bounds_origin)
    except DataError as error:
        raise SlideError(error.thing, error.found, error.needed, error.remedy) from None
    names = {one.class_name for one in objects}
    if classes is None and names and names <= GRANDQC_ARTEFACTS:
        raise SlideError(
            str(file),
            "is GrandQC's list of artefacts, not of tissue.",
            f"It names {', '.join(sorted(name for name in names if name))}.",
            "Use GrandQC's tis_det_mask (with tiles.mask_values=[0]) or its mask_qc (with [1]).",
        )
    polygons = [polygon for one in objects if classes is None or one.class_name in classes for polygon in one.polygons]
    if objects and not polygons:  # a file without any object says that there is no tissue
        raise SlideError(
            str(file),
            f"none of its {len(objects)} objects is a polygon"
            + ("." if classes is None else f" of the classes {', '.join(classes)}."),
            f"Its classes are: {', '.join(sorted(name or '(none)' for name in names))}.",
            "Set tiles.mask_classes to those that mean tissue.",
        )
    if polygons and not any(_is_on(slide, polygon) for polygon in polygons):
        raise SlideError(
            str(file),
            f"none of its polygons lies on {slide.name} ({slide.width_level0} x {slide.height_level0} pixels).",
            "Coordinates in pixels of level 0 are needed, (0, 0) at its top-left corner.",
            "Check that the file belongs to this slide, and the tool's unit.",
        )
    return _rasterise(polygons, overview)


def _is_on(slide: Slide, polygon: Polygon) -> bool:
    left, top, right, bottom = polygon.bounds
    return left < slide.width_level0 and top < slide.height_level0 and right > 0 and bottom > 0


def _rasterise(polygons: list[Polygon], overview: Overview) -> NDArray[np.bool_]:
    """The polygons' union on the overview's grid, holes open, in strips so that the fine raster fits in memory."""
    height, width = overview.covered.shape
    x_px, y_px = overview.px_level0
    tissue = np.empty((height, width), dtype=np.bool_)
    num_rows = max(1, STRIP_PX // (width * SUPERSAMPLING**2))
    for top in range(0, height, num_rows):
        strip = tissue[top : top + num_rows]
        shape = (strip.shape[0] * SUPERSAMPLING, width * SUPERSAMPLING)
        fine = paint_polygons(polygons, (0.0, top * y_px), (x_px / SUPERSAMPLING, y_px / SUPERSAMPLING), shape)
        strip[:] = _at_least_half(fine, strip.shape)
    return tissue


def _at_least_half(tissue: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Area-averaged to (H, W) `shape`, then cut at one half; `tissue` is 0 or 255."""
    mean = cv2.resize(tissue, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(mean >= 128, dtype=np.bool_)


def _unreadable(file: Path, error: Exception) -> SlideError:
    return SlideError(
        str(file),
        f"the mask cannot be read ({' '.join(str(error).split())[:150]}).",
        "A whole PNG or GeoJSON file is needed.",
        "Make the mask anew, or check the path and that its disk is mounted.",
    )
