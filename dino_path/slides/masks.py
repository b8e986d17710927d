"""Tissue masks from other tools: pictures of the whole slide, or outlines in level-0 px."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.errors import DataError, SlideError
from dino_path.slides.annotations.files import (
    OUTLINE_ENDINGS,
    find_annotation,
    has_outlines,
    names_of,
    read_objects,
    what_lies_there,
)
from dino_path.slides.annotations.outlines import MarkedObject, Polygon
from dino_path.slides.annotations.painting import paint_polygons
from dino_path.slides.label_pictures import (
    LARGEST_BYTES,
    PICTURE_ENDINGS,
    Picture,
    labels_of_colours,
    read_picture,
    unreadable_mask,
)
from dino_path.slides.overview import Overview
from dino_path.slides.slide import Slide

# Where a mask may lie in `slides.masks`: {name} is the slide's id, or its file name with or without extension.
PLACES = (
    *(f"{{name}}{ending}" for ending in (*PICTURE_ENDINGS, *OUTLINE_ENDINGS)),  # .geojson: QuPath, TRIDENT's contours
    "contours_geojson/{name}.geojson",
    "{name}_contours.geojson",  # the HEST data's tissue_seg
    "{name}_MASK.png",  # GrandQC's tis_det_mask
    "tis_det_mask/{name}_MASK.png",
    "{name}_mask.png",  # GrandQC's mask_qc
    "mask_qc/{name}_mask.png",
    "{name}_mask_use.png",
    "{name}/{name}_mask_use.png",  # HistoQC
    "{name}_mask.tif",
    "{name}_mask.tiff",  # PANDA
    "{name}_Mask.tif",  # CAMELYON16
)
GRANDQC_ARTEFACTS = {"Fold", "Darkspot & Foreign Object", "PenMarking", "Edge & Air Bubble", "OOF"}
IGNORED = "Ignore*"  # QuPath's class for what is to be left out, and the start of the classes derived from it
SUPERSAMPLING = 4  # polygons are painted at this multiple of the overview: right to a sixth of its pixels
STRIP_PX = 2**26  # of the supersampled raster, 64 MB, are in memory at a time


def find_mask(folder: Path, slide_id: str, slide_path: Path) -> Path | None:
    """The slide's mask in a folder of masks; None if there is none.

    Names are the slide's id or file name with an ending of a mask, and what GrandQC, HistoQC, TRIDENT and HEST write.

    Raises:
        SlideError: several files could be meant.
    """
    return find_annotation(folder, PLACES, slide_id, slide_path, setting="slides.masks")


def mask_digest(file: Path) -> str:
    """The first 16 hex digits of the file's SHA-256.

    Raises:
        SlideError: the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise unreadable_mask(file, error) from None


def read_mask(
    file: Path, slide: Slide, overview: Overview, *, values: tuple[int, ...] | None, classes: tuple[str, ...] | None
) -> NDArray[np.bool_]:
    """Tissue according to the file, within the scanned area.

    Args:
        values: of a picture's pixels that mean tissue; None: all but 0. PNGs of 1, 2 or 4 bits count from 0 to 255.
        classes: of outlines that mean tissue; None: all areas, with a class or without, but QuPath's `Ignore*`.

    Returns:
        (H, W) bool, the grid of `overview`; a pixel is tissue when at least half of it is.

    Raises:
        SlideError: the file cannot be read, is of another type or not of this slide, or has none of `classes`.
    """
    if not file.is_file():
        raise _no_mask(file, slide)
    if has_outlines(file):
        tissue = _read_outlines(file, slide, overview, classes)
    elif file.suffix.lower() in PICTURE_ENDINGS:
        tissue = _read_picture(file, slide, overview, values)
    else:
        raise SlideError(
            str(file),
            f"{file.suffix or 'a file without extension'} is not a mask format.",
            f"Outlines ({', '.join(OUTLINE_ENDINGS)}) in level-0 pixels, or a picture ({', '.join(PICTURE_ENDINGS)})"
            " that covers the whole slide, are needed.",
            "Convert the mask.",
        )
    return tissue & overview.covered


def _no_mask(file: Path, slide: Slide) -> SlideError:
    names = [name for name in names_of(file.stem, slide.path) if name]
    return SlideError(
        str(file),
        f"the mask does not exist. {what_lies_there(file.parent, file.name)}",
        f"The mask of {slide.name} must be named {' or '.join(names)}, with one of the endings"
        f" {', '.join((*PICTURE_ENDINGS, *OUTLINE_ENDINGS))}, or as GrandQC, HistoQC, TRIDENT and HEST name theirs.",
        "Rename the mask, give it in a CSV (columns path,mask), or leave the slide out (slides.exclude).",
    )


def _read_picture(file: Path, slide: Slide, overview: Overview, values: tuple[int, ...] | None) -> NDArray[np.bool_]:
    if values is None and file.name.lower() == f"{slide.name}_mask.png".lower():
        raise SlideError(
            str(file),
            "is named as GrandQC names its masks, in which 'all but 0' is not the tissue.",
            "In its tis_det_mask 0 is tissue and 1 is not; in its mask_qc 1 is clean tissue, 2 to 6 are artefacts,"
            " 0 and 7 are background.",
            "Set tiles.mask_values to [0] for tis_det_mask, or to [1] for mask_qc.",
        )
    height, width = overview.covered.shape
    factor = SUPERSAMPLING if width * height * SUPERSAMPLING**2 <= LARGEST_BYTES // 4 else 1
    enough_px = (width * factor, height * factor)
    picture = read_picture(file, slide.name, (slide.width_level0, slide.height_level0), enough_px=enough_px)
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


def _one_channel(file: Path, colours: Picture, values: tuple[int, ...] | None) -> Picture:
    """The numbers of a picture in colour; the brightest channel where every colour but black is tissue."""
    if values is None:
        return np.asarray(colours.max(axis=2))
    labels = labels_of_colours(colours)
    if labels is None:
        raise SlideError(
            str(file),
            f"is a colour picture, for which tiles.mask_values={list(values)} has no meaning.",
            "Values are read from grey pictures.",
            "Save the mask as a grey picture of class numbers; or leave tiles.mask_values out: then all but black is"
            " tissue.",
        )
    return labels


def _read_outlines(file: Path, slide: Slide, overview: Overview, classes: tuple[str, ...] | None) -> NDArray[np.bool_]:
    try:
        objects = read_objects(file, qupath_origin=slide.bounds_origin)
    except DataError as error:
        raise SlideError(error.thing, error.found, error.needed, error.remedy) from None
    polygons = _tissue_polygons(file, objects, classes)
    if polygons and not any(_is_on(slide, polygon) for polygon in polygons):
        raise SlideError(
            str(file),
            f"none of its polygons lies on {slide.name} ({slide.width_level0} x {slide.height_level0} pixels).",
            "Coordinates in pixels of level 0 are needed, (0, 0) at its top-left corner.",
            "Check that the file belongs to this slide, and which unit the tool uses.",
        )
    return _rasterise(polygons, overview)


def _tissue_polygons(file: Path, objects: Sequence[MarkedObject], classes: tuple[str, ...] | None) -> list[Polygon]:
    """The areas that mean tissue, and those that are cut out of them."""
    areas = [one for one in objects if one.kind == "area"]
    names = {one.class_name for one in areas}
    if objects and not areas:  # a file without any object says that there is no tissue
        kinds = Counter(one.kind for one in objects)
        raise SlideError(
            str(file),
            f"it has no areas, only {', '.join(f'{count} x {kind}' for kind, count in kinds.items())}.",
            "A mask needs closed outlines: polygons, rectangles, ellipses.",
            "Draw the tissue as areas; a file without any objects means that the slide has no tissue.",
        )
    if classes is None and names and names <= GRANDQC_ARTEFACTS:
        raise SlideError(
            str(file),
            "is GrandQC's list of artefacts, not of tissue.",
            f"It names {', '.join(sorted(name for name in names if name))}.",
            "Use GrandQC's tis_det_mask (with tiles.mask_values=[0]) or its mask_qc (with [1]).",
        )
    polygons: list[Polygon] = []
    for one in areas:
        if one.class_name in classes if classes is not None else not _is_ignored(one):
            polygons += one.polygons
        elif _is_ignored(one):
            polygons += [replace(polygon, is_cut_out=True) for polygon in one.polygons]
    if areas and all(polygon.is_cut_out for polygon in polygons):
        raise SlideError(
            str(file),
            f"none of its {len(areas)} areas "
            + ("means tissue." if classes is None else f"is of the classes {', '.join(classes)}."),
            f"Its classes are: {', '.join(sorted(name or '(none)' for name in names))}.",
            "Set tiles.mask_classes to those that mean tissue.",
        )
    return polygons


def _is_ignored(one: MarkedObject) -> bool:
    return one.class_name is not None and one.class_name.startswith(IGNORED)


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
