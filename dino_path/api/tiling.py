"""`dino_path.tile`: slides -> tile store."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pyarrow as pa

from dino_path.api.settings import ConfigLike, PathLike, Settings, settled
from dino_path.api.tables import Listed, text_table
from dino_path.disk import refuse_unwritable
from dino_path.errors import ConfigError, SlideError
from dino_path.tiles.tiling import TilingSummary
from dino_path.walk import Unreadable

if TYPE_CHECKING:
    from dino_path.api.tile_store import TileStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Tiling(Listed):
    """The results for the slides of one call.

    Attributes:
        store: the tile store.
        summary: the records of its slides, and the counts.
        num_slides: how many slides were found, including those of other shards.
        unreadable: folders, and links to folders, that could not be read.
        coordinates: where the coordinate files of `layout` are, as a sentence; None: there are none.
        has_pseudonyms: whether the slides have pseudonyms; then no message names their files.
    """

    store: Path
    summary: TilingSummary
    num_slides: int
    unreadable: tuple[Unreadable, ...] = ()
    coordinates: str | None = None
    has_pseudonyms: bool = False

    @property
    def num_tiles(self) -> int:
        """Tiles in the store, of all slides of the call."""
        return self.summary.num_tiles

    @property
    def some_failed(self) -> bool:
        """Whether a slide failed, a folder could not be read, or no slide has a tile."""
        has_none = bool(self.summary.records) and not self.num_tiles
        return bool(self.summary.num_failed or self.unreadable or has_none)

    def tiles(self) -> TileStore:
        """The opened tile store. It may also hold slides of earlier calls."""
        from dino_path.api.tile_store import TileStore

        return TileStore(self.store)

    def rows(self) -> list[dict[str, Any]]:
        """One record per slide, as plain values."""
        names = ("slide_id", "path", "status", "reason", "flags", "num_tiles", "seconds")
        return [
            {name: getattr(record, name) for name in names}
            | {"was_there_before": record.slide_id in self.summary.skipped}
            for record in self.summary.records
        ]

    def to_arrow(self) -> pa.Table:
        """One row per slide: slide_id, path, status, reason, flags, num_tiles, seconds, was_there_before."""
        return pa.Table.from_pylist([{**row, "flags": list(row["flags"])} for row in self.rows()])

    def counts(self) -> str:
        """How many slides were tiled, already there, empty or failed, as a sentence."""
        summary = self.summary
        text = (
            f"{summary.num_done} done, {summary.num_skipped} already there, {summary.num_empty} empty,"
            f" {summary.num_failed} failed: {summary.num_tiles:,} tiles in {self.store}"
        )
        if self.unreadable:
            text += f"; {len(self.unreadable)} folder(s) could not be read"
        if summary.num_judged_again:
            text += f" ({summary.num_judged_again} judged again by new quality limits, without reading them)"
        return text

    def _caption(self) -> str:
        return self.counts()

    def __str__(self) -> str:
        lost = [f"failed  {one}" for one in self.unreadable]
        return "\n".join([text_table(*slide_cells(self)), *lost, self.counts()])


def slide_cells(tiling: Tiling, *, only_failed: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table for people, one row per slide."""
    header = ["status", "slide", "tiles", "s", "notes"]
    return header, [
        [
            record.status, record.slide_id, f"{record.num_tiles:,}", f"{record.seconds:.1f}",
            "; ".join(filter(None, ["" if record.status == "done" else record.reason, *record.flags])),
        ]
        for record in tiling.summary.records if not only_failed or record.status == "failed"
    ]  # fmt: skip


def refuse_nothing(tiling: Tiling, slides: Sequence[PathLike], *, says_why: bool) -> None:
    """Check that a slide of the call could be tiled.

    Args:
        slides: of the call, for the message.
        says_why: the message gives the most frequent reason; False: the reasons were already printed.

    Raises:
        SlideError: every slide failed.
    """
    if tiling.summary.num_failed < tiling.num_slides:
        return
    raise SlideError(
        str(slides[0]) if len(slides) == 1 and not tiling.has_pseudonyms else f"{len(slides)} input(s)",
        f"none of {tiling.num_slides} slide(s) could be tiled"
        + (f", {tiling.summary.commonest_reason}." if says_why else "."),
        "At least one readable slide whose microns per pixel are known is needed.",
        f"Every reason is in {tiling.store / 'slides.csv'}; a CSV with the columns path,mpp gives mpp where the"
        " file does not.",
    )


def tile(
    slides: PathLike | Sequence[PathLike],
    /,
    out: PathLike,
    *,
    config: ConfigLike = None,
    shard: str = "1/1",
    layout: str | None = None,
    pseudonymise: PathLike | None = None,
    key: PathLike | None = None,
    workers: int = 2,
    **settings: Unpack[Settings],
) -> Tiling:
    """Cut slides into tiles. Called again, it continues.

    `tiles={"mpp": ...}` is required: microns per pixel of the tiles.

    Args:
        slides: slide files, folders, or CSV files with the columns
            `path[,slide_id,patient_id,centre,scanner,mpp,split,mask,tiles.<setting>]`.
        out: the tile store.
        config: YAML file with the sections `tiles` and `slides`.
        shard: `I/N`: only every N-th slide, from the I-th (1 to N).
        layout: also write coordinate files: `trident`, `clam`, or both, separated by a comma.
        pseudonymise: give slides and patients pseudonyms. This CSV, outside `out` and readable only by its owner,
            maps them to ids.
        key: file of the secret key of the pseudonyms; None: the mapping's name with `.key` appended.
        workers: processes that read slides, at least 1: a crash in a decoder costs only one slide.

    Returns:
        What became of each slide. Slides that failed are listed there, and are tried again by the next call.

    Raises:
        ConfigError: a setting is unknown, missing or impossible.
        SlideError: there are no slides, two have one id, or every one of them failed.
        TileStoreError: `out` is another store, or no store.
    """
    inputs = [slides] if isinstance(slides, str | os.PathLike) else list(slides)
    tiling = tile_what_can_be(
        inputs, out, config=config, shard=shard, layout=layout, pseudonymise=pseudonymise, key=key, workers=workers,
        **settings,
    )  # fmt: skip
    refuse_nothing(tiling, inputs, says_why=True)
    return tiling


def tile_what_can_be(
    slides: Sequence[PathLike],
    /,
    out: PathLike,
    *,
    config: ConfigLike,
    shard: str,
    layout: str | None,
    pseudonymise: PathLike | None,
    key: PathLike | None,
    workers: int,
    **settings: Unpack[Settings],
) -> Tiling:
    """As `tile`, but returns a result even if all slides failed; `refuse_nothing` refuses it."""
    from dino_path.api.named_slides import pseudonym_files, search_named
    from dino_path.features.layouts import LAYOUTS, read_layouts, refuse_shared_names
    from dino_path.tiles.layout import StoreFolder
    from dino_path.tiles.slide_identity import refuse_known_contents
    from dino_path.tiles.tiling import tile_slides
    from dino_path.tiles.workers import Limits

    resolved, store = settled(config, settings, needs=("tiles",)), Path(out)
    assert resolved.tiles is not None
    refuse_unwritable(store)
    # Existing coordinate files of the store are updated with its tiles.
    layouts = read_layouts(layout) if layout else [known for known in LAYOUTS if (store / known).is_dir()]
    names = pseudonym_files(
        None if pseudonymise is None else Path(pseudonymise), None if key is None else Path(key), store
    )
    if names is not None and resolved.tiles.coordinates_only:
        raise ConfigError(
            "tiles.coordinates_only=true",
            "cannot go with --pseudonymise.",
            "A store of coordinates reads its slides by the paths in its records, and pseudonyms take those out.",
            "Leave one out; `dino-path embed MODEL SLIDES --pseudonymise MAPPING` writes no tiles either.",
        )
    search, key_check = search_named([str(one) for one in slides], resolved.slides, names, StoreFolder(store))
    refuse_shared_names([(row.recorded_path, None) for row in search.rows], layouts)
    refuse_known_contents(store, search.rows)
    limits = Limits(resolved.slides.max_seconds, resolved.slides.max_memory_gb)
    summary = tile_slides(
        search.rows, resolved.tiles, store, shard=_shard(shard), num_workers=max(workers, 1), limits=limits,
        key_check=key_check,
    )  # fmt: skip
    coordinates = None
    if layouts:
        from dino_path.features.coordinates import write_coordinate_files

        coordinates = write_coordinate_files(store, layouts, store).text()
    return Tiling(store, summary, len(search.rows), tuple(search.unreadable), coordinates, names is not None)


def _shard(text: str) -> tuple[int, int]:
    """`2/8` -> (1, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(
            f"--shard {text}", "not of the form I/N.", "1 <= I <= N is needed, such as 3/8.", "Correct --shard."
        )
    return int(match[1]) - 1, int(match[2])
