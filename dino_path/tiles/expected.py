"""The slides that a store must hold. A job array may lose a task, and later stages must not use an incomplete store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dino_path.atomic import one_at_a_time
from dino_path.errors import TileStoreError
from dino_path.records.store import read_expected, write_expected
from dino_path.slides.find import SlideRow
from dino_path.tiles.layout import StoreFolder

MOST_NAMED = 5


def note_expected(folder: StoreFolder, rows: Sequence[SlideRow]) -> None:
    """Note the slides of a call of `tile`, of all its shards, in `STORE/expected.json`.

    Slides of calls before stay in it while they have no record, unless their file has gone since; nobody can tell of
    slides under pseudonyms.
    """
    with one_at_a_time(folder.path / ".expected.lock"):
        before = read_expected(folder.expected_file)
        left = {
            slide_id: path
            for slide_id, path in before.items()
            if not folder.record_file(slide_id).exists() and (not Path(path).is_absolute() or Path(path).exists())
        }
        expected = left | {row.slide_id: row.recorded_path for row in rows}
        if expected != before:
            write_expected(folder.expected_file, expected)


def refuse_unfinished(store: Path) -> None:
    """Check that tiling has ended, well or not, for every slide that `tile` was called with.

    Raises:
        TileStoreError: some have no record: a task of a job array died, never ran, or still runs.
    """
    folder = StoreFolder(store)
    missing = [name for name in read_expected(folder.expected_file) if not folder.record_file(name).exists()]
    if missing:
        others = f" and {len(missing) - MOST_NAMED:,} more" if len(missing) > MOST_NAMED else ""
        raise TileStoreError(
            str(store),
            f"tiling has not ended for {len(missing):,} slide(s): {', '.join(missing[:MOST_NAMED])}{others}.",
            "Every slide that `dino-path tile` was called with must be done, empty or failed, so that none is"
            " missing unnoticed.",
            "Call `dino-path tile` again with the same slides (finished ones are not repeated), or wait for its jobs."
            f" To go on without them, delete {folder.expected_file.name} in the store.",
        )
