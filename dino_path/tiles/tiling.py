"""Slides -> tile store: which slides need work, and the work shared out to processes. One slide is in `one_slide`."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dino_path.config import TilesConfig
from dino_path.errors import SlideError, TileStoreError
from dino_path.progress import meter
from dino_path.records.slide import SlideRecord, find_slide_record
from dino_path.settings import as_plain
from dino_path.slides.find import SlideRow
from dino_path.slides.masks import mask_digest
from dino_path.slides.pseudonyms import without_names
from dino_path.tiles.expected import note_expected
from dino_path.tiles.key_note import note_key
from dino_path.tiles.layout import StoreFolder, slide_config, write_record
from dino_path.tiles.one_slide import SlideWork, failed_slide, tile_one_slide
from dino_path.tiles.slide_identity import is_slide_of, slide_identity
from dino_path.tiles.summary import write_summary
from dino_path.tiles.tile_table import limits_of
from dino_path.tiles.workers import NO_LIMITS, Failure, Limits, work_in_processes

logger = logging.getLogger(__name__)

NUMBER = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True)
class TilingSummary:
    """The results for the slides of one call.

    Attributes:
        records: of all slides of this call, those that were there already too, in the order of the rows.
        skipped: ids of the slides that were done (or empty) before, and needed no work.
        num_done, num_empty, num_failed: slides that were tiled now.
        num_judged_again: slides whose quality limits alone had changed; counted among the above by their status.
        num_tiles: in the store, of all these slides.
    """

    records: list[SlideRecord]
    skipped: frozenset[str]
    num_judged_again: int = 0

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

    @property
    def commonest_reason(self) -> str:
        """The most frequent reason for slides without tiles, with their number; numbers within reasons are ignored."""
        alike: dict[str, list[str]] = {}
        for record in self.records:
            if record.status != "done":
                alike.setdefault(NUMBER.sub("#", record.reason), []).append(record.reason)
        most = max(alike.values(), key=len)
        return f"{len(most)} because {most[0]}"

    def _count(self, status: str) -> int:
        return sum(record.status == status and record.slide_id not in self.skipped for record in self.records)


def tile_slides(
    rows: Sequence[SlideRow],
    config: TilesConfig,
    store: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    num_workers: int,
    key_check: str | None = None,
    limits: Limits = NO_LIMITS,
) -> TilingSummary:
    """Tile slides into `store`. Called again, it processes missing slides and retries failed ones.

    Other quality limits than the store was made with are applied to all slides of the call from the stored numbers.

    Args:
        shard: (i, n): of the rows only i, i + n, i + 2 n, ... (i from 0), for job arrays.
        num_workers: processes that read slides; 0: none but this one, which a crash in a C library then ends. The
            files are the same whatever it is.
        key_check: of the key that gave the slides their pseudonyms; None: they have none.
        limits: of each slide; what exceeds them fails alone. There are none without other processes.

    Raises:
        ConfigError: a setting that a CSV gives for one slide is unknown or impossible.
        TileStoreError: the store has another config, knows a slide by another id or an id by another slide, or its
            disk is full.
    """
    folder = StoreFolder(store)
    for row in rows:
        slide_config(config, row.overrides or {}, row.slide_id)  # faults come before any work
    config = folder.prepare(config)
    note_key(folder, key_check)
    _refuse_second_ids(folder, rows)
    note_expected(folder, rows)
    mine = list(rows)[shard[0] :: shard[1]]
    todo: list[SlideWork] = []
    records: dict[str, SlideRecord] = {}
    for row in mine:
        found = _look_up(folder, row, config)
        if isinstance(found, SlideWork):
            todo.append(found)
        else:
            records[row.slide_id] = found
    skipped = frozenset(records)
    folder.remove_leftovers()
    num_tiles = num_failed = 0
    with meter("tiling", len(todo), "slides") as counter:
        for work, answer in work_in_processes(tile_one_slide, todo, num_workers=num_workers, limits=limits):
            record = failed_slide(work, answer.reason) if isinstance(answer, Failure) else answer
            records[record.slide_id] = record
            num_tiles += record.num_tiles
            num_failed += record.status == "failed"  # the command lists them at its end
            counter.advance(note=f"{num_tiles:,} tiles" + (f", {num_failed} failed" if num_failed else ""))
    write_summary(folder)
    num_judged_again = sum(work.before is not None for work in todo)
    return TilingSummary([records[row.slide_id] for row in mine], skipped, num_judged_again)


def _refuse_second_ids(folder: StoreFolder, rows: Sequence[SlideRow]) -> None:
    """A slide must not come in twice: ids follow from the common root of the inputs, and that may have moved."""
    ids, paths = {row.slide_id for row in rows}, {row.recorded_path: row.slide_id for row in rows}
    for file in folder.record_files():
        if file.stem in ids:
            continue
        record = find_slide_record(file)
        if record is not None and record.path in paths:
            raise TileStoreError(
                str(folder.path),
                f"has {record.path} under the id {record.slide_id!r}; now its id would be {paths[record.path]!r}.",
                "A slide has one id within a store; otherwise its tiles would count twice.",
                "Give the same inputs as before, or ids in a CSV (columns path,slide_id).",
            )


def _look_up(folder: StoreFolder, row: SlideRow, config: TilesConfig) -> SlideRecord | SlideWork:
    """The record of a slide that needs no work (patient and split brought up to date), or the work that it needs."""
    file = folder.record_file(row.slide_id)
    before = _record_or_none(file)
    record = before if before is None or before.status == "failed" else _brought_up_to_date(folder, before, row)
    # A row that says nothing of its own settings (a file, a folder) leaves those that the slide was tiled with.
    stated = row.overrides if row.overrides is not None else record.overrides if record is not None else {}
    if row.overrides is None and row.shown_path and "mask" in stated:
        raise TileStoreError(
            str(folder.path),
            f"{row.slide_id} was tiled with a mask, and none is given now.",
            "A store with pseudonyms does not know where the mask lies.",
            "Give the same masks as before (slides.masks, or the column `mask` of a CSV).",
        )
    work = SlideWork(row, slide_config(config, stated, row.slide_id), stated, folder)
    if record is None or not _is_whole(folder, record, config) or not _is_tiled_as(record, work, config):
        return work
    if record.limits != limits_of(work.config):
        return replace(work, before=record)
    updated = replace(
        record,
        patient_id=row.patient_id,
        split=row.split,
        centre=row.centre,
        scanner=row.scanner,
        overrides=row.recorded_overrides(stated),
    )
    if updated != before:
        write_record(folder, updated)
    return updated


def _brought_up_to_date(folder: StoreFolder, record: SlideRecord, row: SlideRow) -> SlideRecord | None:
    """The record with the present path and stamp of its slide; None if another slide now has its name.

    What was made of the other slide is deleted at once: nobody shall read it while this call is under way.
    """
    try:
        now = slide_identity(row.path, record.identity)
    except SlideError as error:
        logger.warning("%s: its tiles are kept unchanged. %s", row.slide_id, without_names(row, str(error)))
        return record
    if now == record.identity and record.path == row.recorded_path:
        return record
    if is_slide_of(record, row.path, now):
        return replace(record, path=row.recorded_path, content_digest=now.digest, stamp=now.stamp)
    if record.path != row.recorded_path:
        raise TileStoreError(
            str(folder.path),
            f"slide id {row.slide_id!r} stands for {record.path} there, and for {row.recorded_path} now.",
            "Within a store an id stands for one slide.",
            "Give ids in a CSV (columns path,slide_id), or use another --out.",
        )
    logger.warning(
        "%s: the slide was replaced by another; its old tiles are deleted, and it is tiled again", row.slide_id
    )
    folder.record_file(row.slide_id).unlink(missing_ok=True)
    folder.remove_outputs(row.slide_id)
    return None


def _record_or_none(file: Path) -> SlideRecord | None:
    """The record of a slide; None if it is missing or unreadable, so that the slide is tiled again."""
    try:
        return find_slide_record(file)
    except TileStoreError as error:
        logger.warning("%s is tiled again: %s", file.stem, error)
        return None


def _is_whole(folder: StoreFolder, record: SlideRecord, config: TilesConfig) -> bool:
    """Whether the slide was tiled, and the files are there that its record speaks of."""
    if record.status == "failed":
        return False
    files = [folder.thumbnail_file(record.slide_id), folder.contour_file(record.slide_id)]
    if record.num_candidates:
        files.append(folder.table_file(record.slide_id))
        if not config.coordinates_only:
            files.append(folder.tar_file(record.slide_id))
    return all(file.exists() for file in files)


def _ink_is_tissue(limits: dict[str, float]) -> bool:
    """Of the quality limits, this one has a part in the tissue mask: with 1, ink is looked at as tissue is."""
    return limits.get("max_pen_fraction", 0) >= 1


def _is_tiled_as(record: SlideRecord, work: SlideWork, config: TilesConfig) -> bool:
    """Whether mpp, mask and settings are those that the slide was tiled with; its quality limits may differ."""
    if work.row.mpp is not None and work.row.mpp != record.mpp:
        return False
    then = slide_config(config, record.overrides, record.slide_id)
    if as_plain(then) | limits_of(work.config) != as_plain(work.config):
        return False
    if _ink_is_tissue(record.limits) != _ink_is_tissue(limits_of(work.config)) and record.ink_percent != 0:
        return False
    if work.mask_file is None:
        return not record.mask_digest
    try:
        return record.mask_digest == mask_digest(work.mask_file)
    except SlideError:  # it is missing or cannot be read: tiling the slide says so
        return False
