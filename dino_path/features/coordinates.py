"""Coordinates of tiles, as TRIDENT and CLAM read them. `patch` is their word for tile.

TRIDENT (mahmoodlab/TRIDENT a91fa84): `coords` are top-left corners in level-0 px, and attributes on that data set say
how large a tile is. Its reader takes only the ratio of the two magnifications, so 10 / mpp as floats gives the exact
footprint where its own rounding to 40x, 20x, 10x would not.
CLAM (mahmoodlab/CLAM 53e2409): the same corners, but `patch_size` is the edge in px of the level `patch_level`.

Shape suffixes: N tiles.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from dino_path.atomic import atomic_write
from dino_path.config import TilesConfig
from dino_path.features.layouts import (
    Attributes,
    ClamLayout,
    FeatureLayout,
    LayoutName,
    layouts_of,
    refuse_shared_names,
)
from dino_path.records.slide import SlideRecord
from dino_path.tiles.layout import StoreFolder
from dino_path.tiles.store import TileStore

Coordinates = NDArray[np.int64]  # (N, 2): x, y of top-left corners, level-0 px

ROWS_PER_CHUNK = 256
LARGEST_MISREAD = 1.01  # rounding to whole px of a level stays below it


@dataclass(frozen=True)
class CoordinateSummary:
    """What became of the slides of a store.

    Attributes:
        written, kept: ids of slides of which a file is new or changed; whose files were right already.
        empty: ids of slides without tiles. TRIDENT gets a file without rows; CLAM, which stops at one, gets none.
        failed: (slide id, reason) of slides that could not be tiled, so that they have no file.
        misread: (slide id, factor) of slides whose tiles TRIDENT's reader takes too large by that factor.
        notes: what a person should know before TRIDENT or CLAM reads the files.
        folders: where the files lie, one per layout.
    """

    written: tuple[str, ...]
    kept: tuple[str, ...]
    empty: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    misread: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]
    num_tiles: int
    folders: tuple[Path, ...]

    def text(self) -> str:
        """For people: failed slides and why, what to know about the files, the counts, and where the files are."""
        counts = [f"coordinates of {len(self.written)} slides written", f"{len(self.kept)} already there"]
        counts += [f"{len(self.empty)} without tiles", f"{len(self.failed)} failed"]
        lines = [f"failed   {slide_id}: {reason}" for slide_id, reason in self.failed]
        lines += [f"note     {note}" for note in self.notes]
        lines.append(f"{', '.join(counts)}; {self.num_tiles:,} tiles")
        return "\n".join(lines + [f"coordinates: {folder}" for folder in self.folders])


def write_coordinate_files(store: Path, layouts: Sequence[LayoutName], out: Path) -> CoordinateSummary:
    """Corners of the kept tiles of a store, one file per slide and layout, below `out`.

    trident: `out/trident/<mag>x_<px>px_<overlap>px_overlap/patches/<name>_patches.h5`;
    clam: `out/clam/patches/<name>.h5`, and `out/clam/process_list_autogen.csv`, the list of slides with tiles.
    `name` is that of the slide file (`name_for_reader`). A second call writes what changed, and deletes the files of
    slides that have failed since.

    Raises:
        SlideError: two slides have one name. Nothing is written.
        TileStoreError: no store, or a damaged one.
    """
    config = StoreFolder(store).read_config()
    records = StoreFolder(store).records()
    refuse_shared_names(
        ((record.path, None) for record in records), layouts
    )  # failed ones too: they would be given tiles
    done = [record for record in records if record.status == "done"]
    written: list[str] = []
    kept: list[str] = []
    misread: list[tuple[str, float]] = []
    num_tiles = 0
    chosen = layouts_of(layouts, config)
    for record, coords_N2, size_level0 in _slides(store, config, records):
        is_new = [
            write_coordinates(
                layout.coordinate_file(out, record), coords_N2, layout.attributes(record, size_level0=size_level0)
            )
            for layout in chosen
            if layout.has_coordinate_file(record)
        ]
        if is_new:
            (written if any(is_new) else kept).append(record.slide_id)
        factor = max(layout.misread_factor(record, size_level0) for layout in chosen)
        if len(coords_N2) and factor > LARGEST_MISREAD:
            misread.append((record.slide_id, factor))
        num_tiles += len(coords_N2)
    for layout in chosen:
        for record in records:
            if not layout.has_coordinate_file(record):
                layout.coordinate_file(out, record).unlink(missing_ok=True)
        if isinstance(layout, ClamLayout):
            _write_process_list(layout.coordinate_folder(out) / "process_list_autogen.csv", done)
    return CoordinateSummary(
        written=tuple(written),
        kept=tuple(kept),
        empty=tuple(record.slide_id for record in records if record.status == "empty"),
        failed=tuple((record.slide_id, record.reason) for record in records if record.status == "failed"),
        misread=tuple(misread),
        notes=tuple(_notes(done, chosen, dict(misread))),
        num_tiles=num_tiles,
        folders=tuple(layout.coordinate_folder(out) for layout in chosen),
    )


def write_coordinates(file: Path, coords_N2: Coordinates, attributes: Attributes) -> bool:
    """Write a file with only `coords`. Returns False if it already existed with the same bytes."""
    content = io.BytesIO()
    with h5py.File(content, "w") as h5:
        add_coordinates(h5, coords_N2, attributes)
    return _replace(file, content.getvalue())


def add_coordinates(h5: h5py.File, coords_N2: Coordinates, attributes: Attributes) -> None:
    """Add `coords` and its attributes to a file that is being written."""
    rows = len(coords_N2)
    stored = h5.create_dataset(
        "coords",
        data=coords_N2.astype(np.int64, copy=False).reshape(rows, 2),
        chunks=(min(max(rows, 1), ROWS_PER_CHUNK), 2),
        maxshape=(None, 2),
        fletcher32=True,
        track_times=False,  # the same tiles give the same bytes
    )
    stored.attrs.update(attributes)


def _slides(
    store: Path, config: TilesConfig, records: Sequence[SlideRecord]
) -> Iterator[tuple[SlideRecord, Coordinates, int]]:
    """Slides that could be tiled: record, corners, and edge of a tile in level-0 px."""
    if any(record.status == "done" for record in records):
        tiles = TileStore.open(store)
        for number, record in enumerate(tiles.slides):
            first, last = tiles.starts[number : number + 2]
            corners = [tiles.x_level0[first:last], tiles.y_level0[first:last]]
            yield record, np.stack(corners, axis=1).astype(np.int64), int(tiles.size_level0[first])
    for record in records:
        if record.status == "empty":
            assert record.mpp is not None
            assert record.tile_mpp is not None
            yield record, np.empty((0, 2), np.int64), round(config.size_px * record.tile_mpp / record.mpp)


def _write_process_list(file: Path, done: Sequence[SlideRecord]) -> None:
    """CLAM's list of slides. extract_features_fp.py takes every row, whatever its `process` says.

    `slide_id` is the file name with its extension, as CLAM lists a folder; pandas reads a bare `0123` as a number.
    CLAM's other columns hold settings of its tissue mask; create_patches_fp.py adds them where they are missing.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["slide_id", "process", "status"])
    writer.writerows([Path(record.path).name, 0, "processed"] for record in done)
    _replace(file, table.getvalue().encode())


def _replace(file: Path, content: bytes) -> bool:
    if file.is_file() and file.read_bytes() == content:
        return False
    with atomic_write(file, "wb") as stream:
        stream.write(content)
    return True


def _notes(
    done: Sequence[SlideRecord], layouts: Sequence[FeatureLayout], misread: Mapping[str, float]
) -> Iterator[str]:
    renamed = [record for record in done if record.slide_id != layouts[0].name_for_reader(record.path)]
    if renamed:
        first = renamed[0]
        yield (
            f"files of {len(renamed)} slides are named after their slide file, where TRIDENT and CLAM look for them,"
            f" not after their id ({layouts[0].name_for_reader(first.path)}, not {first.slide_id})"
        )
    if misread:
        slide_id, factor = max(misread.items(), key=lambda item: item[1])
        yield (
            f"TRIDENT will read the tiles of {len(misread)} slides too large, at worst {factor:.2f} times ({slide_id}):"
            " it rounds the downsample of their level down to an integer; CLAM and `dino-path embed` do not"
        )
    extensions = sorted({Path(record.path).suffix for record in done})
    num_folders = len({Path(record.path).parent for record in done})
    has_clam = any(isinstance(layout, ClamLayout) for layout in layouts)
    if has_clam and len(extensions) > 1:
        yield (
            f"CLAM reads slides of one --slide_ext per run, but these have {', '.join(extensions)}: "
            "give it the lines of process_list_autogen.csv with one extension at a time"
        )
    if has_clam and num_folders > 1:
        yield f"CLAM looks for slides in one folder, but these are in {num_folders}: link them into one"
