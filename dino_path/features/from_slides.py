"""Slides that nobody has tiled -> the corners of their tiles: pixels are read again when they are embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dino_path.config import TilesConfig
from dino_path.distributed import World
from dino_path.features.layouts import TridentLayout, has_given_id, job_folder_name
from dino_path.slides.find import SlideRow, refuse_collisions, safe_id
from dino_path.tiles.store import TileStore
from dino_path.tiles.tiling import tile_slides
from dino_path.tiles.workers import Limits


def find_tiles(
    rows: Sequence[SlideRow],
    config: TilesConfig,
    out: Path,
    *,
    world: World,
    num_workers: int,
    limits: Limits,
    key_check: str | None = None,
) -> TileStore:
    """The tiles of slides as a store of coordinates below `out`; called again, slides that are there are not read.

    No tile is written, but overlays, contours and tables are: `out/<mag>x_<px>px_<overlap>px_overlap/store`.

    Args:
        config: with `coordinates_only`.
        world: each of its processes takes some slides.
        num_workers: processes that tile, of each process of the world.
        key_check: as for `tile_slides`.
        limits: of each slide, while it is tiled.

    Raises:
        SlideError: two slides have one name.
        TileStoreError: `out` holds slides with other settings, or under names of another kind or key, or no slide has
            tiles.
    """
    assert config.coordinates_only
    # Features are named by the slide's file where the user gave no id. Ids of the same kind do not depend on what else
    # is named in a call.
    named = [
        row
        if has_given_id(row.recorded_path, row.slide_id)
        else replace(row, slide_id=safe_id(TridentLayout.name_for_reader(row.recorded_path)))
        for row in rows
    ]
    refuse_collisions(named)
    store = out / job_folder_name(config) / "store"
    tile_slides(
        named,
        config,
        store,
        shard=(world.rank, world.size),
        num_workers=num_workers,
        limits=limits,
        key_check=key_check,
    )
    world.barrier()
    return TileStore.open(store, rows=None if key_check is None else {row.slide_id: row for row in named})
