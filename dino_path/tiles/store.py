"""Reading a tile store: random access to any tile by one read of the disk. The format is in `layout`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from dino_path.errors import TileStoreError
from dino_path.records.slide import SlideRecord
from dino_path.slides.find import SlideRow
from dino_path.slides.images.decoding import BadImage, decode_image
from dino_path.slides.slide import RgbImage
from dino_path.tiles.handles import FileHandles
from dino_path.tiles.index import open_places
from dino_path.tiles.layout import StoreFolder, damaged_slide, slide_config
from dino_path.tiles.slide_tiles import SlideTiles
from dino_path.tiles.tile_table import limits_of, read_tile_table

__all__ = ["SlideRecord", "TileStore"]


class TileStore:
    """The kept tiles of finished slides, in the order of slide ids, each slide's row by row.

    Attributes:
        slides: records of the slides that have tiles.
        starts: (S + 1,) number of each slide's first tile, and N at the end.
        x_level0, y_level0, size_level0: (N,) top-left corner and edge, level-0 px of the tile's slide.
        offset, length: (N,) where the JPEG lies in its slide's tar; 0 in a store of coordinates.
        size_px, mpp: edge of the tiles, and the microns per pixel that were asked for.
        digest: changes when the tiles do.
    """

    def __init__(
        self, path: Path, slides: Sequence[SlideRecord], selection: str, rows: Mapping[str, SlideRow] | None = None
    ) -> None:
        """The tiles of these slides. Use `open`."""
        self.path, self.slides, self._selection = path, tuple(slides), selection
        self._folder, self._handles = StoreFolder(path), FileHandles()
        self._config = self._folder.read_config()
        self.size_px, self.mpp = self._config.size_px, self._config.mpp
        self._rows = rows
        self._slide_tiles = SlideTiles(self._config, rows) if self._config.coordinates_only else None
        for record in self.slides:
            self._refuse_other_limits(record)
        num_bytes = [self._num_bytes(record) for record in self.slides]
        content = hashlib.sha256(self._folder.config_digest().encode())
        for record, size in zip(self.slides, num_bytes, strict=True):
            content.update(f"{record.slide_id}/{record.num_tiles}/{size};".encode())
        self.digest = content.hexdigest()[:16]
        self.starts = np.cumsum([0, *(record.num_tiles for record in self.slides)], dtype=np.int64)
        places = open_places(self._folder, self.slides, num_bytes, selection)
        self.x_level0: NDArray[np.int32] = places["x_level0"]
        self.y_level0: NDArray[np.int32] = places["y_level0"]
        self.size_level0: NDArray[np.int32] = places["size_level0"]
        self.offset: NDArray[np.int64] = places["offset"]
        self.length: NDArray[np.int64] = places["length"]
        self._crc32: NDArray[np.uint32] = places["crc32"]

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        split: str | None = None,
        exclude: Sequence[str] = (),
        rows: Mapping[str, SlideRow] | None = None,
    ) -> TileStore:
        """Open a store.

        Args:
            split: only slides whose record has this split; None: all.
            exclude: slide ids or file names to leave out.
            rows: where slides under pseudonyms lie, by their ids; for a store of coordinates.

        Raises:
            TileStoreError: missing, damaged, or without tiles.
        """
        folder = StoreFolder(path)
        folder.read_config()
        records = folder.records()
        done = [record for record in records if record.status == "done"]
        chosen = [
            record
            for record in done
            if (split is None or record.split == split)
            and not {record.slide_id, Path(record.path).name}.intersection(exclude)
        ]
        if not chosen:
            raise _no_tiles(path, records, done, split)
        selection = hashlib.sha256(repr((split, sorted(exclude))).encode()).hexdigest()[:8]
        return cls(path, chosen, selection, rows)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read_image(self, index: int) -> RgbImage:
        """One tile: (size_px, size_px, 3) uint8 RGB.

        Raises:
            TileStoreError: it cannot be read.
        """
        if self._slide_tiles is None:
            try:
                return decode_image(self.read_bytes(index))
            except BadImage as error:
                raise self._unreadable(index, str(error)) from None
        corner = int(self.x_level0[index]), int(self.y_level0[index])
        return self._slide_tiles.read(self._slide(index), corner)

    def read_bytes(self, index: int) -> bytes:
        """The JPEG of one tile; in a store of coordinates its raw pixels.

        Raises:
            TileStoreError: the tar is missing, cut short or changed since it was written, or the slide cannot be read.
        """
        if self._slide_tiles is not None:
            return self.read_image(index).tobytes()
        tar, length = self._folder.tar_file(self.slide_id(index)), int(self.length[index])
        try:
            encoded = self._handles.read(tar, int(self.offset[index]), length)
        except OSError as error:
            raise damaged_slide(tar, str(error)) from None
        if len(encoded) != length:
            raise damaged_slide(tar, f"it ends before {self.name(index)}")
        if (known := int(self._crc32[index])) and crc32(encoded) != known:
            raise self._unreadable(index, "its checksum is wrong")
        return encoded

    def _unreadable(self, index: int, why: str) -> TileStoreError:
        slide = damaged_slide(self._folder.tar_file(self.slide_id(index)), why)
        return TileStoreError(self.name(index), f"cannot be read ({why}).", slide.needed, slide.remedy)

    def slide_id(self, index: int) -> str:
        """The slide that a tile was read from."""
        return self._slide(index).slide_id

    def name(self, index: int) -> str:
        """A tile's name for messages."""
        return f"{self.slide_id(index)} x={self.x_level0[index]} y={self.y_level0[index]}"

    def measured(self, name: str) -> NDArray[np.float32]:
        """(N,) one of the numbers that were measured when tiled, such as `sharpness`; read from the disk each time."""
        return self.all_measured([name])[name]

    def all_measured(self, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """As `measured`, of several numbers at once.

        Raises:
            TileStoreError: a slide's table is missing or damaged.
        """
        parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
        for record in self.slides:
            file = self._folder.table_file(record.slide_id)
            try:
                table = read_tile_table(file)
            except (OSError, ValueError) as error:
                raise damaged_slide(file, str(error)) from None
            for name, part in parts.items():
                part.append(getattr(table, name)[table.kept].astype(np.float32))
        return {name: np.concatenate(part) for name, part in parts.items()}

    def _slide(self, index: int) -> SlideRecord:
        return self.slides[int(np.searchsorted(self.starts, index, side="right")) - 1]

    def _num_bytes(self, record: SlideRecord) -> int:
        """Size of a slide's tar; of the slide itself in a store of coordinates."""
        if self._slide_tiles is not None:
            return record.file_bytes
        tar = self._folder.tar_file(record.slide_id)
        try:
            return tar.stat().st_size
        except OSError as error:
            raise damaged_slide(tar, str(error)) from None

    def _refuse_other_limits(self, record: SlideRecord) -> None:
        limits = limits_of(slide_config(self._config, record.overrides, record.slide_id))
        if record.limits != limits:
            raise TileStoreError(
                str(self.path),
                f"{record.slide_id} was judged by other quality limits ({record.limits}) than the store's ({limits}).",
                "All slides of a store must have the same limits.",
                "Run `dino-path tile` on all its slides again: it takes seconds, and no slide is read.",
            )

    def __reduce__(self) -> tuple[Callable[..., TileStore], tuple[object, ...]]:
        # A worker process opens the places again: cheaper than sending gigabytes through a pipe.
        return _reopen, (self.path, self.slides, self._selection, self._rows, self.digest)


def _reopen(
    path: Path,
    slides: tuple[SlideRecord, ...],
    selection: str,
    rows: Mapping[str, SlideRow] | None,
    expected_digest: str,
) -> TileStore:
    store = TileStore(path, slides, selection, rows)
    if store.digest != expected_digest:
        raise TileStoreError(
            str(path),
            "changed while it was in use.",
            "The tiles must not change while a command reads them.",
            "Wait for tiling to finish, then start the command again.",
        )
    return store


def _no_tiles(
    path: Path, records: Sequence[SlideRecord], done: Sequence[SlideRecord], split: str | None
) -> TileStoreError:
    counts = {status: sum(record.status == status for record in records) for status in ("done", "empty", "failed")}
    found = f"no tiles to read ({', '.join(f'{count} slides {status}' for status, count in counts.items())}"
    found += f"; splits: {', '.join(sorted({str(record.split) for record in done}))})." if done else ")."
    needed = "At least one slide with tiles is needed" + (f" in split {split!r}." if split is not None else ".")
    remedy = "Look at slides/*.json and overlays/ in the store for the reasons."
    if done:
        remedy = "Check slides.split and slides.exclude."
    return TileStoreError(str(path), found, needed, remedy)
