"""One slide -> its files in the store: tissue, grid, tiles, table, pictures, and its record last."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino_path.atomic import atomic_write
from dino_path.config import TilesConfig
from dino_path.errors import SlideError, TileStoreError
from dino_path.identity import Identity
from dino_path.records.slide import SlideRecord
from dino_path.slides.find import SlideRow
from dino_path.slides.masks import mask_digest
from dino_path.slides.overview import MOST_UNREADABLE
from dino_path.slides.pseudonyms import without_names
from dino_path.slides.quality import measure_quality
from dino_path.slides.resolution import FROM_OBJECTIVE
from dino_path.slides.slide import Slide
from dino_path.slides.tissue import TissueMask, tissue_mask
from dino_path.tiles.geometry import Corners, TileSpec, covered_fractions, refuse_endless_grid, tile_grid
from dino_path.tiles.layout import StoreFolder, damaged_slide, write_record
from dino_path.tiles.pictures import scanned_part, write_contours, write_overlay, write_thumbnail
from dino_path.tiles.reading import TileReader, spec_of
from dino_path.tiles.slide_identity import file_bytes, slide_identity
from dino_path.tiles.tile_table import TileRow, TileTable, judge, limits_of, read_tile_table, write_tile_table
from dino_path.tiles.writing import Subsampling, TileWriter

logger = logging.getLogger(__name__)

NEAR_0_PERCENT, NEAR_100_PERCENT = 0.5, 95.0  # of the scanned area: a mask beyond these is worth a look
MUCH_INK_PERCENT = 50.0  # of what is not glass: rather a stain that looks like ink
IF_STAINED = "if this is a {colour} stain, set tiles.max_pen_fraction=1"


@dataclass(frozen=True)
class SlideWork:
    """One slide to be tiled, as a worker process gets it.

    Attributes:
        config: with this slide's own settings.
        overrides: what the slides CSV set for this slide alone, as text.
        before: the record of a slide whose quality limits alone have changed: its tiles stay as they are.
    """

    row: SlideRow
    config: TilesConfig
    overrides: dict[str, str]
    folder: StoreFolder
    before: SlideRecord | None = None

    @property
    def mask_file(self) -> Path | None:
        """The tissue mask from another tool, if given."""
        return Path(self.overrides["mask"]) if self.overrides.get("mask") else None


@dataclass
class _Reading:
    """The result of reading the candidate tiles of one slide."""

    rows: list[TileRow] = field(default_factory=list)
    reader: str = ""
    shrink: int = 1
    subsampling: str = ""
    num_passed_through: int = 0
    unreadable: list[SlideError] = field(default_factory=list)


def tile_one_slide(work: SlideWork) -> SlideRecord:
    """Tile one slide, or judge its tiles again, and write its record; an unreadable slide is a record with its reason.

    Raises:
        TileStoreError: the store cannot be written. Whatever else is raised is about this slide alone.
    """
    start_s = time.perf_counter()
    row = work.row
    work.folder.record_file(row.slide_id).unlink(missing_ok=True)  # from here on, its files may be half new
    try:
        record = _judged_again(work)
        if record is None:
            with Slide.open(row.path, mpp=row.mpp) as slide:
                record = _write_slide(slide, work)
            record = replace(record, seconds=round(time.perf_counter() - start_s, 3))
    except SlideError as error:
        return failed_slide(work, " ".join(str(error).split()))
    except OSError as error:
        if not _is_about_store(error, work.folder):
            raise
        raise _cannot_write(work, error) from None
    record = replace(record, patient_id=row.patient_id, split=row.split, centre=row.centre, scanner=row.scanner)
    _finish(work, record)
    return record


def failed_slide(work: SlideWork, reason: str) -> SlideRecord:
    """Note that a slide could not be read, or took its worker process down; nothing of it stays in the store.

    Raises:
        TileStoreError: the store cannot be written.
    """
    try:
        identity = slide_identity(work.row.path)
    except SlideError:  # it cannot be read at all, and `reason` says so
        identity = Identity()
    record = SlideRecord(
        work.row.slide_id,
        work.row.recorded_path,
        "failed",
        without_names(work.row, reason),
        patient_id=work.row.patient_id,
        split=work.row.split,
        centre=work.row.centre,
        scanner=work.row.scanner,
        file_bytes=file_bytes(work.row.path),
        content_digest=identity.digest,
        stamp=identity.stamp,
        overrides=work.row.recorded_overrides(work.overrides),
    )
    _finish(work, record)
    return record


def _finish(work: SlideWork, record: SlideRecord) -> None:
    try:
        if record.status == "failed":
            work.folder.remove_outputs(record.slide_id)
        write_record(work.folder, record)
    except OSError as error:
        raise _cannot_write(work, error) from None


def _is_about_store(error: OSError, folder: StoreFolder) -> bool:
    """Whether the store's disk is to blame, so that every slide would fail; else it is the file that was read."""
    is_below = isinstance(error.filename, str) and Path(error.filename).is_relative_to(folder.path)
    return is_below or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _cannot_write(work: SlideWork, error: OSError) -> TileStoreError:
    return TileStoreError(
        str(work.folder.path),
        f"cannot be written ({error.strerror or error}).",
        f"Space and permission for the tiles of {work.row.slide_id} are needed.",
        "Free some space, then call again: finished slides are kept.",
    )


def _write_slide(slide: Slide, work: SlideWork) -> SlideRecord:
    """Write all files of one slide but its record."""
    config, folder, slide_id = work.config, work.folder, work.row.slide_id
    identity = slide_identity(work.row.path)  # before it is read: what changes meanwhile shows next time
    spec = spec_of(slide, config)
    refuse_endless_grid(spec, name=slide.name, width_level0=slide.width_level0, height_level0=slide.height_level0)
    mask = tissue_mask(slide, config, work.mask_file)
    grid = tile_grid(spec, width_level0=slide.width_level0, height_level0=slide.height_level0, edge=config.edge)
    fractions = covered_fractions(mask.tissue, mask.overview.px_level0, grid, spec.size_level0)
    is_candidate = fractions >= config.min_tissue_fraction
    reading = _write_tiles(slide, spec, grid[is_candidate], fractions[is_candidate], work)
    pictured = scanned_part(slide, mask.overview)
    write_thumbnail(folder.thumbnail_file(slide_id), slide, mask.overview, pictured)
    write_contours(folder.contour_file(slide_id), slide_id, mask, slide.bounds_origin)
    level, overrides = slide.levels[spec.level], work.row.recorded_overrides(work.overrides)
    record = SlideRecord(
        slide_id,
        work.row.recorded_path,
        "empty",
        _why_no_candidates(slide, mask, len(grid), config),
        file_bytes=file_bytes(work.row.path),
        content_digest=identity.digest,
        stamp=identity.stamp,
        mpp=slide.mpp,
        mpp_source=slide.mpp_source,
        tile_mpp=spec.tile_mpp,
        width_level0=slide.width_level0,
        height_level0=slide.height_level0,
        bounds_origin=slide.bounds_origin,
        pictured=pictured,
        level=spec.level,
        level_width=level.width,
        level_height=level.height,
        read_px=spec.read_px,
        shrink=reading.shrink,
        reader=without_names(work.row, reading.reader),
        jpeg_subsampling=reading.subsampling,
        mask=overrides["mask"] if work.mask_file else mask.source,
        mask_digest=mask_digest(work.mask_file) if work.mask_file else "",
        overrides=overrides,
        num_passed_through=reading.num_passed_through,
        num_candidates=int(is_candidate.sum()),
        num_unreadable=len(reading.unreadable),
        tissue_percent=round(mask.tissue_percent, 2),
        ink_percent=_ink_percent(mask),
        flags=_flags(slide, mask, reading, config),
    )
    return _judged(record, TileTable.from_rows(reading.rows), work)


def _write_tiles(
    slide: Slide, spec: TileSpec, corners: Corners, fractions: NDArray[np.float32], work: SlideWork
) -> _Reading:
    """Read and measure the candidates, and store them all; no tar when there are none, or in a store of coordinates.

    Raises:
        SlideError: too many of them cannot be read.
    """
    config = work.config
    if len(corners) == 0:
        work.folder.tar_file(work.row.slide_id).unlink(missing_ok=True)
        return _Reading()
    reader = TileReader.choose(slide, spec, corners, config)
    reading = _Reading(reader=reader.reader, shrink=reader.shrink)
    reading.subsampling = "" if config.coordinates_only else reader.subsampling(config)
    with closing(reader), _open_tar(work, reader.subsampling(config)) as writer:
        for number, tile in enumerate(reader.read_all(corners)):
            if isinstance(tile, SlideError):
                reading.unreadable.append(tile)
                _refuse_damaged(slide, reading, len(corners))
                continue
            x, y = corners[number].tolist()
            quality = measure_quality(tile.pixels, spec.tile_mpp, sharpness_mpp=config.sharpness_mpp)
            place = writer.add(tile.pixels, (x, y), tile.jpeg) if writer else (0, 0, 0)
            reading.num_passed_through += writer is not None and tile.jpeg is not None
            reading.rows.append(
                TileRow(
                    x,
                    y,
                    spec.size_level0,
                    float(fractions[number]),
                    quality.sharpness,
                    quality.pen_fraction,
                    quality.black_fraction,
                    quality.dark_fraction,
                    *place,
                )
            )
    return reading


@contextmanager
def _open_tar(work: SlideWork, subsampling: Subsampling) -> Iterator[TileWriter | None]:
    """The writer of the slide's tar, which appears when all is written; None in a store of coordinates."""
    if work.config.coordinates_only:
        yield None
        return
    with atomic_write(work.folder.tar_file(work.row.slide_id), "wb") as stream:
        writer = TileWriter(stream, work.row.slide_id, work.config.jpeg_quality, subsampling)
        yield writer
        writer.close()


def _judged_again(work: SlideWork) -> SlideRecord | None:
    """The record under other quality limits: from the numbers in the table, without the slide.

    None where the slide has to be read: more than its limits changed, or a file of it is damaged.
    """
    if work.before is None:
        return None
    file = work.folder.table_file(work.before.slide_id)
    try:
        try:
            table = read_tile_table(file) if work.before.num_candidates else TileTable.from_rows([])
        except (OSError, ValueError, KeyError) as error:
            raise damaged_slide(file, str(error)) from None
        return _judged(work.before, table, work)
    except TileStoreError as error:
        logger.warning("%s is tiled again: %s", work.before.slide_id, error)
        return None


def _judged(record: SlideRecord, table: TileTable, work: SlideWork) -> SlideRecord:
    """Decide which tiles are kept; write the table and the overlay that shows it."""
    limits = limits_of(work.config)
    table, counts = judge(table, limits)
    num_kept = int(table.kept.sum())
    record = replace(
        record,
        limits=limits,
        overrides=work.row.recorded_overrides(work.overrides),
        num_tiles=num_kept,
        num_black=counts["black"],
        num_pen=counts["pen"],
        num_dark=counts["dark"],
        num_blurred=counts["blurred"],
    )
    if record.num_candidates:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        empty_reason = (
            f"none of {record.num_candidates} tiles with tissue passed the quality limits: {reasons}, "
            f"{record.num_unreadable} unreadable"
        )
        if counts["pen"] > record.num_candidates / 2:
            empty_reason += f"; {IF_STAINED.format(colour='blue or green')}"
        record = replace(record, status="done" if num_kept else "empty", reason="" if num_kept else empty_reason)
        write_tile_table(work.folder.table_file(record.slide_id), table)
    else:
        work.folder.table_file(record.slide_id).unlink(missing_ok=True)
    write_overlay(work.folder, record, table, work.config)
    return record


def _refuse_damaged(slide: Slide, reading: _Reading, num_candidates: int) -> None:
    if len(reading.unreadable) > max(1, MOST_UNREADABLE * num_candidates):
        raise SlideError(
            str(slide.path),
            f"{len(reading.unreadable)} of its {num_candidates} tiles cannot be read: {reading.unreadable[0].found}",
            f"At most {MOST_UNREADABLE:.0%} unreadable tiles are passed over.",
            "Copy the file again; if that does not help, list the slide under slides.exclude.",
        )


def _why_no_candidates(slide: Slide, mask: TissueMask, num_grid: int, config: TilesConfig) -> str:
    if num_grid == 0:
        return "the slide is smaller than one tile"
    if "grey" in slide.flags and mask.threshold is not None:
        return "the slide is grey, and tissue detection needs colour: give masks from another tool (slides.masks)"
    how = f"at a saturation above {mask.threshold:.3f}" if mask.threshold is not None else f"says {mask.source}"
    reason = f"no tile has enough tissue (tissue is {mask.tissue_percent:.2f} % of the scanned area, {how})"
    if mask.ink is not None and _has_much_ink(mask, config):
        looks = f"{mask.ink.share:.0%} of the area that is not glass looks like {mask.ink.colour} pen"
        reason += f"; {looks}: {IF_STAINED.format(colour=mask.ink.colour)}"
    return reason


def _ink_percent(mask: TissueMask) -> float:
    return max(0.01, round(100 * mask.ink.share, 2)) if mask.ink is not None else 0.0


def _has_much_ink(mask: TissueMask, config: TilesConfig) -> bool:
    return config.max_pen_fraction < 1 and _ink_percent(mask) > MUCH_INK_PERCENT


def _flags(slide: Slide, mask: TissueMask, reading: _Reading, config: TilesConfig) -> tuple[str, ...]:
    flags = list(slide.flags)
    if mask.tissue_percent < NEAR_0_PERCENT:
        flags.append("tissue near 0 %")
    if mask.tissue_percent > NEAR_100_PERCENT:
        flags.append("tissue near 100 %")
    if _has_much_ink(mask, config):
        flags.append("more ink than tissue")
    if slide.mpp_source == FROM_OBJECTIVE:
        flags.append("mpp from objective power")
    if mask.overview.unreadable:
        flags.append("unreadable areas")
    if reading.unreadable:
        flags.append("unreadable tiles")
    return tuple(flags)
