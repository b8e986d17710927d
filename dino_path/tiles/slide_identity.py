"""Whether the slide of a record is the file that is there now: by content, or by size for records without a digest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dino_path.errors import SlideError, TileStoreError
from dino_path.identity import Identity, identity_of, is_same_content
from dino_path.records.slide import SlideRecord, find_slide_record
from dino_path.slides.find import SlideRow
from dino_path.tiles.layout import StoreFolder


def slide_identity(path: Path, known: Identity | None = None) -> Identity:
    """Which content a slide has now; read only where its stamp is not that of `known`.

    Raises:
        SlideError: it, or a file that belongs to it, is missing or cannot be read.
    """
    try:
        return identity_of(path, known)
    except OSError as error:
        raise SlideError(
            str(path),
            f"cannot be read ({error.strerror or error}: {error.filename or path}).",
            "The slide, and all files that belong to it, are needed.",
            "Check that its disk is mounted and that you may read the files.",
        ) from None


def is_slide_of(record: SlideRecord, path: Path, now: Identity) -> bool:
    """Whether the file at `path`, whose identity is `now`, is the slide that the record was made from."""
    if record.content_digest:
        return is_same_content(record.content_digest, now.digest)
    return record.file_bytes == file_bytes(path)


def refuse_known_contents(store: Path, rows: Sequence[SlideRow]) -> None:
    """Check that no new slide is one that the store has under another id: a copy, or the slide renamed.

    Only slides of the size of one that this call does not name are read.

    Raises:
        TileStoreError: one is.
    """
    folder, ids = StoreFolder(store), {row.slide_id for row in rows}
    by_size: dict[int, list[SlideRecord]] = {}
    for file in folder.record_files():
        if file.stem not in ids and (record := find_slide_record(file)) is not None and record.content_digest:
            by_size.setdefault(record.file_bytes, []).append(record)
    for row in rows if by_size else ():
        candidates = by_size.get(file_bytes(row.path), [])
        if candidates and not folder.record_file(row.slide_id).exists():
            _refuse_known_content(store, row, candidates)


def _refuse_known_content(store: Path, row: SlideRow, candidates: Sequence[SlideRecord]) -> None:
    try:
        now = slide_identity(row.path)
    except SlideError:
        return  # tiling it says why
    for record in candidates:
        if is_slide_of(record, row.path, now):
            raise TileStoreError(
                row.recorded_path,
                f"its content is that of {record.path}, which {store} has under the id {record.slide_id!r}.",
                "A slide has one id within a store; otherwise its tiles would count twice.",
                f"If it was renamed, give it this id in a CSV (columns path,slide_id); if it is a copy, add it to"
                f" slides.exclude ({Path(row.recorded_path).name}).",
            )


def file_bytes(path: Path) -> int:
    """Size of a slide's file; 0 if it is gone."""
    return path.stat().st_size if path.is_file() else 0
