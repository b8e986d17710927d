"""Labels for the tiles of a tile store: from regions that were drawn, or from masks of class numbers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.labelled.layouts import SPLIT_NAMES, SPLITS, GroupKind, Listing
from dino_path.evaluation.labelled.region_labels import label_tiles, label_tiles_by_mask
from dino_path.progress import progress
from dino_path.slides.annotations.files import (
    OUTLINE_ENDINGS,
    find_annotation,
    has_outlines,
    read_objects,
    what_lies_there,
)
from dino_path.slides.annotations.outlines import Polygon
from dino_path.slides.label_pictures import PICTURE_ENDINGS, read_labels
from dino_path.slides.masks import IGNORED
from dino_path.tiles.expected import refuse_unfinished
from dino_path.tiles.source import Subset
from dino_path.tiles.store import SlideRecord, TileStore

logger = logging.getLogger(__name__)

PLACES = tuple(f"{{name}}{ending}" for ending in (*OUTLINE_ENDINGS, *PICTURE_ENDINGS))
MOST_NAMED = 5  # classes, slides or pairs in one sentence


@dataclass
class _Labelling:
    """The labelling result for the tiles of a store."""

    tiles: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    slides: list[SlideRecord] = field(default_factory=list)
    undecided: Counter[tuple[str, ...]] = field(default_factory=Counter)
    classes: set[str] = field(default_factory=set)
    slides_without: list[str] = field(default_factory=list)


def read_store(path: Path, config: EvaluationConfig) -> Listing:
    """The tiles of all slides of a finished store that have a label. Raises as `label_store` does."""
    _regions_folder(path, config)
    refuse_unfinished(path)
    return label_store(TileStore.open(path), config)


def label_store(store: TileStore, config: EvaluationConfig) -> Listing:
    """The tiles of a store that a region of one class covers by at least `min_region_fraction`.

    Regions are outlines or pictures of class numbers in `config.regions`, named after the slide. Of nested regions the
    innermost counts. Other tiles are left out and counted. Groups are patients where every labelled slide names one,
    else slides; the split is the slides', where every one has it.

    Raises:
        DataError: no regions, malformed ones, or none that covers a tile.
        TileStoreError: the store is missing or damaged.
    """
    path = store.path
    regions = _regions_folder(path, config)
    found = _Labelling()
    for number, slide in enumerate(progress(store.slides, "labelling tiles", total=len(store.slides), unit="slides")):
        file = find_annotation(regions, PLACES, slide.slide_id, Path(slide.path), setting="evaluation.regions")
        if file is None:
            found.slides_without.append(slide.slide_id)
        else:
            _label_slide(found, store, number, file, config)
    if not found.tiles:
        raise _nothing_labelled(path, store, regions, config, found)
    groups, kind = _groups(found.slides)
    makers = {name: _makers(found.slides, name) for name in ("centre", "scanner")}
    return Listing(
        name=path.resolve().name,
        source=Subset(store, np.array(found.tiles)),
        labels=tuple(found.labels),
        groups=groups,
        group_kind=kind,
        split=_split(f"store:{path}", found.slides),
        notes=(*_notes(found, len(store)), *(note for _, note in makers.values() if note)),
        centres=makers["centre"][0],
        scanners=makers["scanner"][0],
    )


def _regions_folder(path: Path, config: EvaluationConfig) -> Path:
    """The folder of regions; refused where it is not given, or none."""
    if config.regions is None or not config.regions.is_dir():
        raise DataError(
            f"store:{path}",
            "evaluation.regions is not set."
            if config.regions is None
            else f"evaluation.regions={config.regions} is not a folder.",
            "Tiles get their labels from regions: one file per slide, named <slide_id>, with outlines"
            f" ({', '.join(OUTLINE_ENDINGS)}) or class numbers ({', '.join(PICTURE_ENDINGS)}).",
            "Give evaluation.regions=FOLDER; for images with labels give a folder of class folders or a table.",
        )
    return config.regions


def _label_slide(found: _Labelling, store: TileStore, number: int, file: Path, config: EvaluationConfig) -> None:
    """Add the tiles of one slide that have a class."""
    slide = store.slides[number]
    tiles = np.arange(*store.starts[number : number + 2])
    squares = np.stack([store.x_level0[tiles], store.y_level0[tiles], store.size_level0[tiles]], axis=1)
    if has_outlines(file):
        regions = read_regions(file, slide.bounds_origin)
        found.classes.update(regions)
        wanted = {name: one for name, one in regions.items() if _is_wanted(name, config)}
        labels, undecided = label_tiles(squares, wanted, config.min_region_fraction)
        found.undecided += undecided
    else:
        size_level0 = (slide.width_level0, slide.height_level0)
        mask = read_labels(file, slide.slide_id, size_level0)
        labels = label_tiles_by_mask(squares, mask, size_level0, config.region_classes, config.min_region_fraction)
    for tile, label in zip(tiles.tolist(), labels, strict=True):
        if label is not None and not label.startswith(IGNORED):
            found.tiles.append(tile)
            found.labels.append(label)
            found.slides.append(slide)


def _is_wanted(class_name: str, config: EvaluationConfig) -> bool:
    """Whether outlines of a class play a part; those to be ignored take their area from the others."""
    return not config.region_classes or class_name in config.region_classes or class_name.startswith(IGNORED)


def _notes(found: _Labelling, num_tiles: int) -> list[str]:
    num_undecided = found.undecided.total()
    num_outside = num_tiles - len(found.tiles) - num_undecided
    notes = [f"{num_outside} of {num_tiles} tiles lie in no region and are left out"]
    if found.undecided:
        notes.append(
            f"{num_undecided} of {num_tiles} tiles lie in several regions, none inside all others"
            f" ({_pairs(found.undecided)}), and are left out: list the classes to use in evaluation.region_classes"
        )
    if without := found.slides_without:
        notes.append(f"{len(without)} slides without regions left out")  # without their ids: notes reach model cards
        logger.info("slides without regions, left out: %s", ", ".join(without))
    return notes


def _pairs(undecided: Counter[tuple[str, ...]]) -> str:
    return ", ".join(" + ".join(names) for names, _ in undecided.most_common(MOST_NAMED))


def _nothing_labelled(
    path: Path, store: TileStore, folder: Path, config: EvaluationConfig, found: _Labelling
) -> DataError:
    example = store.slides[0].slide_id
    causes = [f"{len(found.slides_without)} of {len(store.slides)} slides have no regions file"]
    if found.classes:
        causes.append(f"classes drawn: {', '.join(sorted(found.classes)[:MOST_NAMED])}")
    if found.undecided:
        causes.append(f"{found.undecided.total()} tiles lie in several ({_pairs(found.undecided)})")
    looked_for = f" {what_lies_there(folder, example)}" if found.slides_without else ""
    return DataError(
        f"store:{path}",
        f"no tile lies in a region ({'; '.join(causes)}).{looked_for}",
        f"Regions with a class that cover {config.min_region_fraction:.0%} of a tile are needed, in files named after"
        f" the slide ids (such as {example}.geojson), in level-0 pixels.",
        "Check evaluation.regions and evaluation.region_classes, or lower evaluation.min_region_fraction.",
    )


def read_regions(file: Path, qupath_origin: tuple[int, int]) -> dict[str, list[Polygon]]:
    """Polygons per class of a file of outlines, in level-0 pixels; objects without class or area are left out.

    Raises:
        DataError: the file cannot be read, or is not what its name says.
    """
    regions: dict[str, list[Polygon]] = {}
    ignored: Counter[str] = Counter()
    for one in read_objects(file, qupath_origin=qupath_origin):
        if one.kind != "area":
            ignored[one.kind] += 1
        elif one.class_name is None:
            ignored["area without a class"] += 1
        else:
            regions.setdefault(one.class_name, []).extend(one.polygons)
    if ignored:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in ignored.items())
        logger.info("%s: left out: %s", file.name, kinds)
    return regions


def _groups(slides: Sequence[SlideRecord]) -> tuple[tuple[str, ...], GroupKind]:
    """Patients where every slide names one, else slides (a mixture would hide that some patients are unknown)."""
    patients = [slide.patient_id for slide in slides if slide.patient_id]
    if len(patients) == len(slides):
        return tuple(patients), "patient"
    return tuple(slide.slide_id for slide in slides), "slide"


def _makers(slides: Sequence[SlideRecord], name: str) -> tuple[tuple[str, ...] | None, str | None]:
    """The `centre` or `scanner` of each tile's slide where all slides name one, else None; a note where some do."""
    values = tuple(getattr(slide, name) or "" for slide in slides)
    if all(values):
        return values, None
    lacking = {slide.slide_id for slide, value in zip(slides, values, strict=True) if not value}
    return None, f"{len(lacking)} labelled slides have no {name}: it is treated as unknown" if any(values) else None


def _split(what: str, slides: Sequence[SlideRecord]) -> tuple[str, ...] | None:
    """The slides' split where all have one that we know; None where none has."""
    given = {slide.slide_id: slide.split for slide in slides}
    if not any(given.values()):
        return None
    unknown = [slide_id for slide_id, split in given.items() if (split or "").lower() not in SPLIT_NAMES]
    if unknown:
        raise DataError(
            what,
            f"{len(unknown)} of {len(given)} labelled slides have no known split, first {unknown[0]} "
            f"({given[unknown[0]]!r}).",
            f"Either every labelled slide has a split ({', '.join(SPLITS)}), or none has.",
            "Correct the column `split` of the slides CSV and tile again.",
        )
    return tuple(SPLIT_NAMES[(slide.split or "").lower()] for slide in slides)
