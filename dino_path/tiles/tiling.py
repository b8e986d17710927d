"""Slides -> tile store. One slide is one unit of work: tissue, grid, tiles, files, and its record last."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dino_path.config import TilesConfig
from dino_path.errors import SlideError, TileStoreError
from dino_path.progress import meter
from dino_path.run import atomic_write
from dino_path.slides.find import SlideRow
from dino_path.slides.overview import MOST_UNREADABLE
from dino_path.slides.quality import TileQuality, measure_quality
from dino_path.slides.resolution import FROM_OBJECTIVE
from dino_path.slides.slide import Slide
from dino_path.slides.tissue import TissueMask, tissue_mask
from dino_path.tiles.geometry import Corners, TileSpec, covered_fractions, tile_grid, tile_spec
from dino_path.tiles.layout import SlideRecord, StoreFolder, read_record, write_record
from dino_path.tiles.pictures import overlay_picture, write_contours, write_overlay
from dino_path.tiles.reading import TileReader
from dino_path.tiles.workers import work_in_processes
from dino_path.tiles.writing import TileWriter, write_table

logger = logging.getLogger(__name__)

NEAR_0_PERCENT, NEAR_100_PERCENT = 0.5, 95.0  # of the slide's area: a mask beyond these is worth a look


@dataclass(frozen=True)
class TilingSummary:
    """What became of the slides of one call.

    Attributes:
        records: of all slides of this call, those that were there already too, in the order of the rows.
        skipped: ids of the slides that were done (or empty) before, and needed no work.
        num_done, num_empty, num_failed: slides that were tiled now.
        num_tiles: in the store, of all these slides.
    """

    records: list[SlideRecord]
    skipped: frozenset[str]

    @property
    def num_skipped(self) -> int:
        return len(self.skipped)

    @property
    def num_done(self) -> int:
        return self._count("done")

    @property
    def num_empty(self) -> int:
        return self._count("empty")

    @property
    def num_failed(self) -> int:
        return self._count("failed")

    @property
    def num_tiles(self) -> int:
        return sum(record.num_tiles for record in self.records)

    def _count(self, status: str) -> int:
        return sum(record.status == status and record.slide_id not in self.skipped for record in self.records)


@dataclass(frozen=True)
class _Work:
    """One slide to be tiled, as a worker process gets it."""

    row: SlideRow
    config: TilesConfig
    folder: StoreFolder


@dataclass
class _Outcome:
    """What became of the candidate tiles of one slide."""

    kept: list[int] = field(default_factory=list)
    reader: str = ""
    num_passed_through: int = 0
    num_pen: int = 0
    num_black: int = 0
    num_blurred: int = 0
    unreadable: list[SlideError] = field(default_factory=list)


def tile_slides(
    rows: Sequence[SlideRow], config: TilesConfig, store: Path, *, shard: tuple[int, int] = (0, 1), num_workers: int
) -> TilingSummary:
    """Tile slides into `store`. Called again, it does what is missing and tries failed slides once more.

    Args:
        shard: (i, n): of the rows only i, i + n, i + 2 n, ... (i from 0), for job arrays.
        num_workers: processes; 0 or 1: none but this one. The files are the same whatever it is.

    Raises:
        TileStoreError: the store has another config, knows a slide by another id or an id by another slide, or its
            disk is full.
    """
    folder = StoreFolder(store)
    folder.prepare(config)
    _refuse_second_ids(folder, rows)
    mine = list(rows)[shard[0] :: shard[1]]
    before = {row.slide_id: _finished_record(folder, row) for row in mine}
    records = {slide_id: record for slide_id, record in before.items() if record is not None}
    skipped = frozenset(records)
    todo = [_Work(row, config, folder) for row in mine if row.slide_id not in records]
    folder.remove_leftovers({work.row.slide_id for work in todo})
    num_tiles = 0
    with meter("tiling", len(todo), "slides") as counter:
        for work, answer in work_in_processes(_tile_slide, todo, num_workers=num_workers):
            record = answer if isinstance(answer, SlideRecord) else _failed(work, answer)
            records[record.slide_id] = record
            num_tiles += record.num_tiles
            if record.status == "failed":
                logger.warning("%s failed: %s", record.slide_id, record.reason)
            counter.advance(note=f"{num_tiles:,} tiles")
    return TilingSummary([records[row.slide_id] for row in mine], skipped)


def _refuse_second_ids(folder: StoreFolder, rows: Sequence[SlideRow]) -> None:
    """A slide must not come in twice: ids follow from the common root of the inputs, and that may have moved."""
    ids, paths = {row.slide_id for row in rows}, {str(row.path): row.slide_id for row in rows}
    for file in folder.record_files():
        if file.stem in ids:
            continue
        record = read_record(file)
        if record.path in paths:
            raise TileStoreError(
                str(folder.path),
                f"has {record.path} under the id {record.slide_id!r}; now its id would be {paths[record.path]!r}.",
                "Within a store a slide has one id, or its tiles would count twice.",
                "Name the same inputs as before, or give ids in a CSV (columns path,slide_id).",
            )


def _finished_record(folder: StoreFolder, row: SlideRow) -> SlideRecord | None:
    """The record of a slide that needs no work; patient and split are brought up to date with the row."""
    file = folder.record_file(row.slide_id)
    if not file.exists():
        return None
    record = read_record(file)
    if record.path != str(row.path) and record.file_bytes != _file_bytes(row.path):
        raise TileStoreError(
            str(folder.path),
            f"slide id {row.slide_id!r} stands for {record.path} there, and for {row.path} now.",
            "Within a store an id stands for one slide.",
            "Give ids in a CSV (columns path,slide_id), or use another --out.",
        )
    if record.status == "failed" or (row.mpp is not None and row.mpp != record.mpp):
        return None
    files = (folder.tar_file(row.slide_id), folder.table_file(row.slide_id))
    if record.status == "done" and not all(file.exists() for file in files):
        return None
    updated = replace(record, patient_id=row.patient_id, split=row.split)
    if updated != record:
        write_record(folder, updated)
    return updated


def _failed(work: _Work, reason: str) -> SlideRecord:
    """Note that a slide could not be read, or took its worker process down; nothing of it stays in the store."""
    work.folder.remove_outputs(work.row.slide_id)
    record = SlideRecord(
        work.row.slide_id,
        str(work.row.path),
        "failed",
        reason,
        patient_id=work.row.patient_id,
        split=work.row.split,
        file_bytes=_file_bytes(work.row.path),
    )
    write_record(work.folder, record)
    return record


def _tile_slide(work: _Work) -> SlideRecord:
    """Tile one slide and write its record; a slide that cannot be read is a record with its reason."""
    start_s = time.perf_counter()
    row = work.row
    work.folder.record_file(row.slide_id).unlink(missing_ok=True)  # from here on, its files may be half new
    try:
        with Slide.open(row.path, mpp=row.mpp) as slide:
            record = _write_slide(slide, work)
    except SlideError as error:
        record = _failed(work, " ".join(str(error).split()))
    except OSError as error:  # reading a slide raises SlideError: this is the store's disk
        raise TileStoreError(
            str(work.folder.path),
            f"cannot be written ({error.strerror or error}).",
            f"Space and permission for the tiles of {row.slide_id} are needed.",
            "Make room, then call again: finished slides stay as they are.",
        ) from None
    record = replace(
        record,
        patient_id=row.patient_id,
        split=row.split,
        file_bytes=_file_bytes(row.path),
        seconds=round(time.perf_counter() - start_s, 3),
    )
    write_record(work.folder, record)
    return record


def _write_slide(slide: Slide, work: _Work) -> SlideRecord:
    """Write all files of one slide but its record."""
    config, folder, slide_id = work.config, work.folder, work.row.slide_id
    spec = tile_spec(
        slide.levels,
        name=slide.name,
        mpp=config.mpp,
        size_px=config.size_px,
        stride_px=config.stride_px or config.size_px,
        tolerance=config.mpp_tolerance,
    )
    mask = tissue_mask(slide, config)
    grid = tile_grid(spec, width_level0=slide.width_level0, height_level0=slide.height_level0)
    fractions = covered_fractions(mask.tissue, mask.overview.px_level0, grid, spec.size_level0)
    candidates = np.flatnonzero(fractions >= config.min_tissue_fraction)
    outcome = _write_tiles(slide, spec, grid[candidates], fractions[candidates], work)
    is_kept = np.zeros(len(candidates), dtype=np.bool_)
    is_kept[outcome.kept] = True
    kept, refused = grid[candidates[is_kept]], grid[candidates[~is_kept]]
    caption = (
        f"{slide_id}   {len(kept):,} of {len(candidates):,} tiles kept   {config.size_px} px at {config.mpp:g} um/px"
        f"   tissue {mask.tissue_percent:.1f} %"
    )
    write_overlay(folder.overlay_file(slide_id), overlay_picture(slide, mask, kept, refused, spec.size_level0, caption))
    write_contours(folder.contour_file(slide_id), slide_id, mask)
    return SlideRecord(
        slide_id,
        str(work.row.path),
        "done" if len(kept) else "empty",
        "" if len(kept) else _why_empty(mask, len(grid), len(candidates), outcome),
        mpp=slide.mpp,
        mpp_source=slide.mpp_source,
        tile_mpp=spec.tile_mpp,
        width_level0=slide.width_level0,
        height_level0=slide.height_level0,
        reader=outcome.reader,
        num_tiles=len(kept),
        num_passed_through=outcome.num_passed_through,
        num_candidates=len(candidates),
        num_pen=outcome.num_pen,
        num_black=outcome.num_black,
        num_blurred=outcome.num_blurred,
        num_unreadable=len(outcome.unreadable),
        tissue_percent=round(mask.tissue_percent, 2),
        flags=_flags(slide, mask, outcome),
    )


def _write_tiles(
    slide: Slide, spec: TileSpec, corners: Corners, fractions: np.ndarray[tuple[int], np.dtype[np.float32]], work: _Work
) -> _Outcome:
    """Read the candidates, judge them, and write those that are kept; no files when there are none."""
    folder, slide_id, config = work.folder, work.row.slide_id, work.config
    tar_file, table_file = folder.tar_file(slide_id), folder.table_file(slide_id)
    if len(corners) == 0:
        for file in (tar_file, table_file):
            file.unlink(missing_ok=True)
        return _Outcome()
    reader = TileReader.choose(slide, spec, corners, config)
    outcome = _Outcome(reader=reader.reader)
    with closing(reader), atomic_write(tar_file, "wb") as stream:
        writer = TileWriter(stream, slide_id, spec.size_level0, config.jpeg_quality)
        for number, tile in enumerate(reader.read_all(corners)):
            if isinstance(tile, SlideError):
                outcome.unreadable.append(tile)
                _refuse_damaged(slide, outcome, len(corners))
                continue
            quality = measure_quality(tile.pixels, spec.tile_mpp)
            if not _passes(quality, config, outcome):
                continue
            x, y = corners[number].tolist()
            tissue_fraction = float(fractions[number])
            writer.add(
                tile.pixels, (x, y), tissue_fraction=tissue_fraction, sharpness=quality.sharpness, jpeg=tile.jpeg
            )
            outcome.num_passed_through += tile.jpeg is not None
            outcome.kept.append(number)
        writer.close()
    if outcome.kept:
        write_table(table_file, writer.rows)
    else:
        tar_file.unlink(missing_ok=True)
        table_file.unlink(missing_ok=True)
    return outcome


def _passes(quality: TileQuality, config: TilesConfig, outcome: _Outcome) -> bool:
    """Whether a tile is good enough; the first reason against it is counted."""
    if quality.black_fraction > config.max_black_fraction:
        outcome.num_black += 1
    elif quality.pen_fraction > config.max_pen_fraction:
        outcome.num_pen += 1
    elif quality.sharpness < config.min_sharpness:
        outcome.num_blurred += 1
    else:
        return True
    return False


def _refuse_damaged(slide: Slide, outcome: _Outcome, num_candidates: int) -> None:
    if len(outcome.unreadable) > max(1, MOST_UNREADABLE * num_candidates):
        raise SlideError(
            str(slide.path),
            f"{len(outcome.unreadable)} of its {num_candidates} tiles cannot be read: {outcome.unreadable[0].found}",
            f"At most {MOST_UNREADABLE:.0%} unreadable tiles are passed over.",
            "Fetch the file again; if it stays so, list the slide under slides.exclude.",
        )


def _why_empty(mask: TissueMask, num_grid: int, num_candidates: int, outcome: _Outcome) -> str:
    if num_grid == 0:
        return "the slide is smaller than one tile"
    if num_candidates == 0:
        return (
            f"no tile has enough tissue (tissue is {mask.tissue_percent:.2f} % of the slide, "
            f"at a saturation above {mask.threshold:.3f})"
        )
    return (
        f"none of {num_candidates} tiles with tissue passed the quality limits: {outcome.num_pen} pen, "
        f"{outcome.num_black} black, {outcome.num_blurred} blurred, {len(outcome.unreadable)} unreadable"
    )


def _flags(slide: Slide, mask: TissueMask, outcome: _Outcome) -> tuple[str, ...]:
    flags = []
    if mask.tissue_percent < NEAR_0_PERCENT:
        flags.append("tissue near 0 %")
    if mask.tissue_percent > NEAR_100_PERCENT:
        flags.append("tissue near 100 %")
    if slide.mpp_source == FROM_OBJECTIVE:
        flags.append("mpp from objective power")
    if mask.overview.unreadable:
        flags.append("unreadable areas")
    if outcome.unreadable:
        flags.append("unreadable tiles")
    return tuple(flags)


def _file_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
