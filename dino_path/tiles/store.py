"""Reading a tile store: random access to any tile by one read of the disk. The format is in `layout`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino_path.errors import TileStoreError
from dino_path.settings import digest
from dino_path.slides.slide import RgbImage
from dino_path.tiles.handles import FileHandles
from dino_path.tiles.images import decode_tile
from dino_path.tiles.layout import SlideRecord, StoreFolder, read_record, slide_config
from dino_path.tiles.slide_tiles import SlideTiles
from dino_path.tiles.tile_table import COLUMNS, limits_of, read_tile_table

__all__ = ["SlideRecord", "TileStore"]

PLACES = ("x_level0", "y_level0", "size_level0", "offset", "length")  # the columns that are held in memory


class TileStore:
    """The kept tiles of finished slides, in the order of slide ids, each slide's row by row.

    Attributes:
        slides: records of the slides that have tiles.
        slide_index: (N,) place of each tile's slide in `slides`.
        x_level0, y_level0, size_level0: (N,) top-left corner and edge, level-0 px of the tile's slide.
        offset, length: (N,) where the JPEG lies in its slide's tar; 0 in a store of coordinates.
        size_px, mpp: edge of the tiles, and the microns per pixel that were asked for.
        digest: changes when the tiles do.
    """

    slide_index: NDArray[np.int32]
    x_level0: NDArray[np.int32]
    y_level0: NDArray[np.int32]
    size_level0: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]

    def __init__(self, path: Path, slides: Sequence[SlideRecord]) -> None:
        """The tiles of these slides. Use `open`."""
        self.path, self.slides = path, tuple(slides)
        self._folder, self._handles = StoreFolder(path), FileHandles()
        self._config = self._folder.read_config()
        self.size_px, self.mpp = self._config.size_px, self._config.mpp
        self._slide_tiles = SlideTiles(self._config) if self._config.coordinates_only else None
        counts = np.asarray([record.num_tiles for record in self.slides])
        self.slide_index = np.repeat(np.arange(len(self.slides), dtype=np.int32), counts)
        for name in PLACES:
            setattr(self, name, np.empty(int(counts.sum()), dtype=COLUMNS[name]))
        content = hashlib.sha256(digest(self._config).encode())
        start = 0
        for record in self.slides:
            self._refuse_other_limits(record)
            num_bytes = self._read_places(record, start)
            start += record.num_tiles
            content.update(f"{record.slide_id}/{record.num_tiles}/{num_bytes};".encode())
        self.digest = content.hexdigest()[:16]

    @classmethod
    def open(cls, path: Path, *, split: str | None = None, exclude: Sequence[str] = ()) -> TileStore:
        """Open a store.

        Args:
            split: only slides whose record has this split; None: all.
            exclude: slide ids or file names to leave out.

        Raises:
            TileStoreError: missing, damaged, or without tiles.
        """
        folder = StoreFolder(path)
        folder.read_config()
        records = [read_record(file) for file in folder.record_files()]
        done = [record for record in records if record.status == "done"]
        chosen = [
            record
            for record in done
            if (split is None or record.split == split)
            and not {record.slide_id, Path(record.path).name}.intersection(exclude)
        ]
        if not chosen:
            raise _no_tiles(path, records, done, split)
        return cls(path, chosen)

    def __len__(self) -> int:
        return len(self.slide_index)

    def read_image(self, index: int) -> RgbImage:
        """One tile: (size_px, size_px, 3) uint8 RGB.

        Raises:
            TileStoreError: it cannot be read.
        """
        if self._slide_tiles is None:
            return decode_tile(self.read_bytes(index), self.name(index))
        corner = int(self.x_level0[index]), int(self.y_level0[index])
        return self._slide_tiles.read(self.slides[int(self.slide_index[index])], corner)

    def read_bytes(self, index: int) -> bytes:
        """The JPEG of one tile; in a store of coordinates its raw pixels.

        Raises:
            TileStoreError: the tar is missing or cut short, or the slide cannot be read.
        """
        if self._slide_tiles is not None:
            return self.read_image(index).tobytes()
        tar, length = self._folder.tar_file(self.slide_id(index)), int(self.length[index])
        try:
            encoded = self._handles.read(tar, int(self.offset[index]), length)
        except OSError as error:
            raise _damaged_tar(tar, str(error)) from None
        if len(encoded) != length:
            raise _damaged_tar(tar, f"it ends before {self.name(index)}")
        return encoded

    def slide_id(self, index: int) -> str:
        """The slide that a tile was read from."""
        return self.slides[int(self.slide_index[index])].slide_id

    def name(self, index: int) -> str:
        """A tile's name for messages."""
        return f"{self.slide_id(index)} x={self.x_level0[index]} y={self.y_level0[index]}"

    def measured(self, name: str) -> NDArray[np.float32]:
        """(N,) one of the numbers that were measured when tiled, such as `sharpness`; read from the disk each time."""
        tables = [read_tile_table(self._folder.table_file(record.slide_id)) for record in self.slides]
        return np.concatenate([getattr(table, name)[table.kept] for table in tables]).astype(np.float32)

    def _read_places(self, record: SlideRecord, start: int) -> int:
        """Fill one slide's part of the columns; returns the size of its tar (or slide) in bytes."""
        file, tar = self._folder.table_file(record.slide_id), self._folder.tar_file(record.slide_id)
        try:
            table = read_tile_table(file)
            num_bytes = tar.stat().st_size if self._slide_tiles is None else record.file_bytes
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
            raise _damaged_tar(file, str(error)) from None
        stop, num_kept = start + record.num_tiles, int(table.kept.sum())
        if num_kept != record.num_tiles or num_kept == 0:
            raise _damaged_tar(file, f"{num_kept} tiles are kept, but {record.num_tiles} in the slide's record")
        for name in PLACES:
            getattr(self, name)[start:stop] = getattr(table, name)[table.kept]
        if int((self.offset[start:stop] + self.length[start:stop]).max()) > num_bytes:
            raise _damaged_tar(tar, f"{num_bytes} bytes, fewer than its table says")
        return num_bytes

    def _refuse_other_limits(self, record: SlideRecord) -> None:
        limits = limits_of(slide_config(self._config, record.overrides, record.slide_id))
        if record.limits != limits:
            raise TileStoreError(
                str(self.path),
                f"{record.slide_id} was judged by other quality limits ({record.limits}) than the store's ({limits}).",
                "All slides of a store must be judged alike.",
                "Run `dino-path tile` on all its slides again: it takes seconds, no slide is read.",
            )

    def __reduce__(self) -> tuple[Callable[..., TileStore], tuple[Path, tuple[SlideRecord, ...], str]]:
        # A worker process reads the columns anew: cheaper than sending gigabytes through a pipe.
        return _reopen, (self.path, self.slides, self.digest)


def _reopen(path: Path, slides: tuple[SlideRecord, ...], expected_digest: str) -> TileStore:
    store = TileStore(path, slides)
    if store.digest != expected_digest:
        raise TileStoreError(
            str(path),
            "changed while it was in use.",
            "The tiles must stay as they are while a command reads them.",
            "Let tiling finish, then start the command again.",
        )
    return store


def _no_tiles(
    path: Path, records: Sequence[SlideRecord], done: Sequence[SlideRecord], split: str | None
) -> TileStoreError:
    counts = {status: sum(record.status == status for record in records) for status in ("done", "empty", "failed")}
    found = f"no tiles to read ({', '.join(f'{count} slides {status}' for status, count in counts.items())}"
    found += f"; splits: {', '.join(sorted({str(record.split) for record in done}))})." if done else ")."
    needed = "At least one slide with tiles is needed" + (f" in split {split!r}." if split is not None else ".")
    remedy = "Look at slides/*.json and overlays/ there: the reasons stand in them."
    if done:
        remedy = "Check slides.split and slides.exclude."
    return TileStoreError(str(path), found, needed, remedy)


def _damaged_tar(file: Path, found: str) -> TileStoreError:
    return TileStoreError(
        str(file),
        f"is missing or damaged ({' '.join(found.split())}).",
        "The files of a slide must be as `dino-path tile` wrote them.",
        f"Delete slides/{file.stem}.json in the store and run `dino-path tile` again.",
    )
