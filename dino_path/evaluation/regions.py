"""Labels for the tiles of a tile store: from regions drawn in QuPath, or from masks of class numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.layouts import SPLIT_NAMES, SPLITS, GroupKind, Listing
from dino_path.progress import progress
from dino_path.slides.geojson import Polygon, paint_polygons, read_objects
from dino_path.slides.masks import read_labels
from dino_path.tiles.expected import refuse_unfinished
from dino_path.tiles.source import Subset
from dino_path.tiles.store import SlideRecord, TileStore

logger = logging.getLogger(__name__)

# Edge of the raster on which a tile's coverage is counted. Regions come out wider by half a pixel on each side: 0.4 %
# of a tile at most.
RASTER_PX = 256


def read_store(path: Path, config: EvaluationConfig) -> Listing:
    """The tiles of a store that a region of one class covers by at least `min_region_fraction`.

    Regions are `<slide_id>.geojson` or `<slide_id>.png` in `config.regions`. Other tiles are left out and counted.
    Groups are patients where every labelled slide names one, else slides; the split is the slides', where every one
    has it.

    Raises:
        DataError: no regions, malformed ones, or none that covers a tile.
        TileStoreError: the store is missing or damaged.
    """
    if config.regions is None or not config.regions.is_dir():
        raise DataError(
            f"store:{path}",
            "evaluation.regions is not set."
            if config.regions is None
            else f"evaluation.regions={config.regions} is no folder.",
            "Tiles get their labels from regions: one <slide_id>.geojson per slide, as QuPath exports them, or one"
            " <slide_id>.png with class numbers.",
            "Give evaluation.regions=FOLDER; for images with labels give a folder of class folders or a table.",
        )
    refuse_unfinished(path)
    store = TileStore.open(path)
    chosen: list[int] = []
    labels: list[str] = []
    slides_of_tiles: list[SlideRecord] = []
    without: list[str] = []
    for number, slide in enumerate(progress(store.slides, "labelling tiles", total=len(store.slides), unit="slides")):
        drawn, painted = (config.regions / f"{slide.slide_id}.{kind}" for kind in ("geojson", "png"))
        if not drawn.is_file() and not painted.is_file():
            without.append(slide.slide_id)
            continue
        tiles = np.arange(*store.starts[number : number + 2])
        squares = np.stack([store.x_level0[tiles], store.y_level0[tiles], store.size_level0[tiles]], axis=1)
        if drawn.is_file():
            found = label_tiles(squares, read_regions(drawn, slide.bounds_origin), config.min_region_fraction)
        else:
            size_level0 = (slide.width_level0, slide.height_level0)
            mask = read_labels(painted, slide.slide_id, size_level0)
            found = label_tiles_by_mask(squares, mask, size_level0, config.region_classes, config.min_region_fraction)
        for tile, label in zip(tiles, found, strict=True):
            if label is not None:
                chosen.append(int(tile))
                labels.append(label)
                slides_of_tiles.append(slide)
    if not chosen:
        raise DataError(
            f"store:{path}",
            f"no tile lies in a region ({len(without)} of {len(store.slides)} slides have no regions file).",
            f"Regions with a class in QuPath that cover {config.min_region_fraction:.0%} of a tile are needed, in "
            f"files named after the slide ids (such as {store.slides[0].slide_id}.geojson), in level-0 pixels.",
            "Check evaluation.regions, or lower evaluation.min_region_fraction.",
        )
    groups, kind = _groups(slides_of_tiles)
    notes = [f"{len(store) - len(chosen)} of {len(store)} tiles lie in no region and are left out"]
    if without:
        notes.append(f"{len(without)} slides without regions left out: {', '.join(without[:5])}")
    return Listing(
        name=path.resolve().name,
        source=Subset(store, np.array(chosen)),
        labels=tuple(labels),
        groups=groups,
        group_kind=kind,
        split=_split(f"store:{path}", slides_of_tiles),
        notes=tuple(notes),
    )


def label_tiles(
    squares: NDArray[np.integer], regions: dict[str, list[Polygon]], min_fraction: float
) -> list[str | None]:
    """The class whose regions cover at least `min_fraction` of each tile; None where there is none, or several.

    Args:
        squares: (N, 3) x and y of the top-left corner, and edge, in level-0 pixels.
    """
    labels: list[str | None] = []
    for x, y, size in squares.tolist():
        names = [name for name, polygons in regions.items() if covered_share(x, y, size, polygons) >= min_fraction]
        labels.append(names[0] if len(names) == 1 else None)
    return labels


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


def read_regions(file: Path, qupath_origin: tuple[int, int]) -> dict[str, list[Polygon]]:
    """Polygons per class of a QuPath GeoJSON file, in level-0 pixels; what has no class or no area is left out.

    Raises:
        DataError: the file is not GeoJSON.
    """
    regions: dict[str, list[Polygon]] = {}
    num_ignored = 0
    for one in read_objects(file, qupath_origin=qupath_origin):
        if one.class_name is None or not one.polygons:
            num_ignored += 1
        else:
            regions.setdefault(one.class_name, []).extend(one.polygons)
    if num_ignored:
        logger.info("%s: %d objects without class or area ignored", file.name, num_ignored)
    return regions


def _groups(slides: Sequence[SlideRecord]) -> tuple[tuple[str, ...], GroupKind]:
    """Patients where every slide names one, else slides (a mixture would hide that some patients are unknown)."""
    patients = [slide.patient_id for slide in slides if slide.patient_id]
    if len(patients) == len(slides):
        return tuple(patients), "patient"
    return tuple(slide.slide_id for slide in slides), "slide"


def _split(what: str, slides: Sequence[SlideRecord]) -> tuple[str, ...] | None:
    """The slides' split where all have one that we know; None where none has."""
    given = {slide.slide_id: slide.split for slide in slides}
    if not any(given.values()):
        return None
    unknown = [slide_id for slide_id, split in given.items() if (split or "").lower() not in SPLIT_NAMES]
    if unknown:
        raise DataError(
            what,
            f"{len(unknown)} of {len(given)} labelled slides have no split of ours, first {unknown[0]} "
            f"({given[unknown[0]]!r}).",
            f"Either every labelled slide has a split ({', '.join(SPLITS)}), or none has.",
            "Mend the column `split` of the slides CSV and tile again.",
        )
    return tuple(SPLIT_NAMES[(slide.split or "").lower()] for slide in slides)
