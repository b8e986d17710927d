"""Tiles that could not be read during training and were replaced by others: listed, counted, limited."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dino_path.errors import TileStoreError
from dino_path.run import RunFolder
from dino_path.tiles.image_list import (
    images_as_begun,
    most_unreadable,
    note_unreadable,
    unreadable_names,
    write_image_list,
)
from dino_path.tiles.images import ImageFiles
from dino_path.tiles.source import TileSource
from dino_path.views.batches import ViewBatch

logger = logging.getLogger(__name__)


class UnreadableTiles:
    """Unreadable tiles of this rank since this start.

    Attributes:
        found: numbers of the tiles.
        num_replaced: places of batches that others took; reset by whoever reports it.
    """

    def __init__(self, run: RunFolder, source: TileSource, folder: Path) -> None:
        self._run, self._source, self._folder = run, source, folder
        self.found: set[int] = set()
        self.num_replaced = 0

    def note(self, step: int, micro_batches: Sequence[ViewBatch]) -> None:
        """List the new unreadable tiles of these batches in the log and in `unreadable.jsonl`.

        Raises:
            TileStoreError: too many tiles are unreadable.
        """
        for tile, error in (one for batch in micro_batches for one in batch.unreadable):
            self.num_replaced += 1
            if tile in self.found:
                continue
            self.found.add(tile)
            logger.error("step %d: another tile replaces %s: %s", step, error.thing, error.found)
            note_unreadable(self._run.unreadable_file, self._name(tile), error.found, step=step)
            num_tiles = len(self._source)
            if len(self.found) > most_unreadable(num_tiles):
                raise TileStoreError(
                    error.thing,
                    f"number {len(self.found)} of {num_tiles} tiles that cannot be read: {error.found}",
                    f"At most {most_unreadable(num_tiles)} unreadable tiles (1 %) are skipped;"
                    f" {self._run.unreadable_file} names them.",
                    "Restore or tile them again, then start the same command: it continues from the last checkpoint.",
                )

    def _name(self, tile: int) -> str:
        if isinstance(self._source, ImageFiles):
            return self._source.paths[tile].relative_to(self._folder).as_posix()
        return self._source.name(tile)


def tiles_as_begun(run: RunFolder, found: TileSource, folder: Path) -> TileSource:
    """The tiles that a run with checkpoints began with: see `images_as_begun`; a tile store as it is."""
    if not isinstance(found, ImageFiles) or not run.images_file.exists() or not run.checkpoint_files():
        return found
    return images_as_begun(run.images_file, found, folder, unreadable_names(run.unreadable_file))


def keep_image_list(run: RunFolder, tiles: TileSource, folder: Path, *, start: int) -> None:
    """Keep the list of a run's images from its first step on; a run of an older version gets it when it resumes."""
    if isinstance(tiles, ImageFiles) and (start == 0 or not run.images_file.exists()):
        write_image_list(run.images_file, tiles, folder)
